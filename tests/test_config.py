"""Reading configs: merging, validation, messages, and what is written back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from visionattn.config import (
    CONFIGS,
    Config,
    SegmentConfig,
    changed_values,
    config_from_dict,
    describe,
    find_config,
    load_config,
    shipped_names,
    to_yaml,
)
from visionattn.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(code: str, source: str | Path | None, *overrides: str) -> UserError:
    """The error of loading; config errors exit with 2."""
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    assert (caught.value.code, caught.value.exit_code) == (code, 2), caught.value.block()
    return caught.value


# ---------------------------------------------------------------- good configs


def test_defaults() -> None:
    config = load_config()
    assert config == Config() == config_from_dict({})
    assert config.task == "classify" and config.model.weights == "none" and config.train.deterministic
    assert config.model.size == (224, 224) and load_config(None, ["model.img_size=[64, 96]"]).model.size == (64, 96)
    with pytest.raises(ValidationError):
        config.train.epochs = 3  # type: ignore[misc]


def test_importing_config_leaves_torch_alone() -> None:
    code = "import sys, visionattn.config; heavy = {'torch', 'numpy', 'timm'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_load_and_say_what_they_are(name: str) -> None:
    config = load_config(name)
    assert changed_values(config) and config.output.name
    first = find_config(name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 20


def test_shipped_names() -> None:
    assert {"quickstart", "classification/cifar10", "classification/flowers12"} <= set(shipped_names())
    assert not [name for name in shipped_names() if name.startswith("base/")]
    assert load_config("quickstart").data.format == "digits"
    assert load_config("classification/flowers12").loss.label_smoothing == 0.1, "of base/scratch"


def test_a_file_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "quickstart", "seed: 7")
    assert load_config("quickstart").seed == 7
    assert load_config(tmp_path / "quickstart").seed == 7


def test_arguments_go_with_the_name_they_were_given_for(tmp_path: Path) -> None:
    """Another backbone or head in a recipe: its arguments would mean nothing there."""
    recipe = load_config("segmentation/camvid")
    assert isinstance(recipe, SegmentConfig) and recipe.model.args and recipe.model.head.args
    other = load_config("segmentation/camvid", ["model.name=van_b0", "model.head.name=fcn", "model.head.args={width: 32}"])
    assert isinstance(other, SegmentConfig)
    assert other.model.args == {} and other.model.head.args == {"width": 32} and other.optim == recipe.optim
    same = load_config("segmentation/camvid", ["model.name=eca_resnet18", "model.head.args.width=8"])
    assert isinstance(same, SegmentConfig)
    assert same.model.args == recipe.model.args and same.model.head.args == {**recipe.model.head.args, "width": 8}
    (tmp_path / "mine.yaml").write_text("base: segmentation/camvid\nmodel: {head: {name: psp}}\n")
    mine = load_config(tmp_path / "mine.yaml")
    assert isinstance(mine, SegmentConfig) and mine.model.head.args == {} and mine.model.args == recipe.model.args


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeffseed: 0\n"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path / "my.yaml", text)) == Config()


# ---------------------------------------------------------------- base and key=value


def test_base_merges_depth_first_and_the_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "root.yaml", "seed: 1\noptim: {lr: 1.0e-2, weight_decay: 0.1}\ndata: {exclude: [a, b]}\n")
    write(tmp_path / "shared" / "low.yaml", "base: root.yaml\noptim: {lr: 2.0e-2}\ntrain: {epochs: 5}\n")
    write(tmp_path / "high.yaml", "train: {epochs: 6, accum: 2}\naugment: {random_resized_crop: null}\n")
    mine = write(tmp_path / "my.yaml", "base: [shared/low, high.yaml]\ntrain: {accum: 3}\ndata: {exclude: [c]}\n")
    config = load_config(mine, ["optim.weight_decay=0.2"])
    assert (config.seed, config.optim.lr, config.optim.weight_decay) == (1, 0.02, 0.2)
    assert (config.train.epochs, config.train.accum) == (6, 3)
    assert config.data.exclude == ["c"], "a list is replaced, not appended to"
    assert config.augment.random_resized_crop is None
    assert load_config(mine, ["augment.random_resized_crop.scale=[0.5, 1]"]).augment.random_resized_crop is not None


def test_base_may_be_a_shipped_name_and_shared_by_two(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: base/scratch\nseed: 1\n")
    write(tmp_path / "b.yaml", "base: base/scratch\nseed: 2\n")
    assert load_config(write(tmp_path / "my.yaml", "base: [a, b]")).seed == 2
    assert load_config(tmp_path / "my.yaml").schedule.warmup_epochs == 3


@pytest.mark.parametrize("files", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}])
def test_a_cycle_of_bases_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, base in files.items():
        write(tmp_path / f"{name}.yaml", f"base: {base}.yaml\n")
    error = refused("VA-C003", tmp_path / "a.yaml")
    assert "a.yaml names itself under base:" in error.what and all(f"{name}.yaml" in error.where for name in files)


@pytest.mark.parametrize("base", ["[1]", "{a: 1}", "3"])
def test_base_of_a_wrong_type(tmp_path: Path, base: str) -> None:
    error = refused("VA-C002", write(tmp_path / "my.yaml", f"seed: 1\nbase: {base}\n"))
    assert error.where == "my.yaml:2" and "a config name or a list of names" in error.what


def test_base_that_does_not_exist_names_it(tmp_path: Path) -> None:
    assert '"scrath"' in refused("VA-C004", write(tmp_path / "my.yaml", "base: scrath\n")).what


def test_a_list_where_the_base_has_a_mapping(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", "optim: [1]\n")
    mine = write(tmp_path / "my.yaml", "base: low\noptim: {lr: 1}\n")
    assert str(mine) in refused("VA-C002", mine).where
    refused("VA-C002", tmp_path / "low.yaml", "optim.lr=1")


def test_key_value_comes_last_and_reads_yaml() -> None:
    overrides = ["train.epochs=3", "train.epochs=4", "model.args={width: 8}", "model.args.depth=2", "data.exclude=[x, y]", "train.ema=null"]
    config = load_config("classification/cifar10", overrides)
    assert config.train.epochs == 4 and config.model.args == {"width": 8, "depth": 2}
    assert config.data.exclude == ["x", "y"] and config.train.ema is None
    assert load_config(None, ["data.root=a=b"]).data.root == "a=b"


@pytest.mark.parametrize("text", ["train.epochs", "=3", " =3", ""])
def test_not_key_value(text: str) -> None:
    error = refused("VA-C001", None, text)
    assert f'"{text}" is not of the form key=value' in error.what and error.where == "command line"


@pytest.mark.parametrize("text", ["train.epochs=[", "train.epochs={", "train.epochs=*x"])
def test_key_value_that_is_no_yaml(text: str) -> None:
    assert text in refused("VA-C002", None, text).block()


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "'1e-4'", '"0.0001"', "0.0001", "+1e-4", "10e-5"])
def test_numbers_as_people_write_them(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path / "my.yaml", f"optim: {{lr: {text}}}\n")).optim.lr == 1e-4
    assert load_config(None, [f"optim.lr={text}"]).optim.lr == 1e-4


def test_numeric_text_in_integer_fields() -> None:
    config = config_from_dict({"train": {"epochs": "5"}, "model": {"img_size": "64"}, "data": {"workers": "0"}, "optim": {"lr": 1}})
    assert (config.train.epochs, config.model.img_size, config.data.workers, config.optim.lr) == (5, 64, 0, 1.0)


# ---------------------------------------------------------------- wrong keys and values


def test_a_misspelt_key(tmp_path: Path) -> None:
    mine = write(tmp_path / "my.yaml", "seed: 1\n" + "\n" * 11 + "optim:\n  weigth_decay: 0.1\n")
    error = refused("VA-C001", mine)
    assert error.what == "my.yaml:14 optim.weigth_decay: unknown key. Did you mean optim.weight_decay?"
    assert "visionattn config show" in error.fix


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr=1e-3", "optim.lr"),
        ("epochs=3", "train.epochs"),
        ("batch_size=3", "train.batch_size"),
        ("label_smoothing=0.1", "loss.label_smoothing"),
        ("train.epoch=3", "train.epochs"),
        ("optin.lr=3", "optim"),
        ("model.imgsize=3", "model.img_size"),
        ("augment.random_resized_crop.scal=[1, 1]", "augment.random_resized_crop.scale"),
    ],
)
def test_the_closest_key_is_named(given: str, meant: str) -> None:
    key = given.partition("=")[0]
    shown = key.partition(".")[0] if meant == "optim" else key
    assert f"command line {shown}: unknown key. Did you mean {meant}?" == refused("VA-C001", None, given).what


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", "loss:\n  label_smothing: 0.1\n")
    text = "base: low\noptim:\n  weigth_decay: 1\ntrain:\n  epochs: ten\n  batchsize: 3\nmodel: {nmae: x}\nxyzzy: 1\n"
    error = refused("VA-C001", write(tmp_path / "my.yaml", text), "data.on_error=ignore")
    assert {line.strip() for line in error.what.splitlines()} == {
        "low.yaml:2 loss.label_smothing: unknown key. Did you mean loss.label_smoothing?",
        "my.yaml:3 optim.weigth_decay: unknown key. Did you mean optim.weight_decay?",
        'my.yaml:5 train.epochs: expected integer >= 1, got "ten"',
        "my.yaml:6 train.batchsize: unknown key. Did you mean train.batch_size?",
        "my.yaml:7 model.nmae: unknown key. Did you mean model.name?",
        "my.yaml:8 xyzzy: unknown key.",
        'command line data.on_error: expected one of stop, skip, got "ignore"',
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train.epochs=ten", 'train.epochs: expected integer >= 1, got "ten"'),
        ("train.epochs=0", "train.epochs: expected integer >= 1, got 0"),
        ("train.epochs=1.5", "train.epochs: expected integer >= 1, got 1.5"),
        ("train.epochs=true", "train.epochs: expected integer >= 1, got true"),
        ("train.epochs=", "train.epochs: expected integer >= 1, got null"),
        ("optim.lr=0", "optim.lr: expected number > 0, got 0"),
        ("optim.lr=true", "optim.lr: expected number > 0, got true"),
        ("optim.lr=.nan", "optim.lr: expected number > 0, got NaN"),
        ("optim.lr=.inf", "optim.lr: expected number > 0, got Infinity"),
        ("optim.clip_grad=-1", "optim.clip_grad: expected number > 0 or null, got -1"),
        ("model.drop_rate=1", "model.drop_rate: expected number >= 0 and < 1, got 1"),
        ("optim.name=adam", 'optim.name: expected one of adamw, sgd, got "adam"'),
        ("optim.betas=[0.9]", "optim.betas: expected [number, number], got [0.9]"),
        ("optim.betas=[a, 1]", 'optim.betas: expected [number, number], got "a"'),
        ("model.img_size=big", 'model.img_size: expected integer or [integer, integer], got "big"'),
        ("data.classes=3", "data.classes: expected auto or a list of text or text, got 3"),
        ("plugins=mine", 'plugins: expected a list of text, got "mine"'),
        ("model.args=3", "model.args: expected a mapping, got 3"),
        ("optim=3", "optim: expected a mapping, got 3"),
        ("augment.random_resized_crop=3", "augment.random_resized_crop: expected a mapping or null, got 3"),
        ("log.tensorboard=maybe", 'log.tensorboard: expected true or false, got "maybe"'),
        ("version=2", "version: expected 1, got 2"),
        ("data.root=3", "data.root: expected text, got 3"),
        ("model.img_size=16", "model.img_size: expected at least 32 pixels per side"),
        ("data.workers=-1", "data.workers: expected integer >= 0 or auto, got -1"),
        ("optim.betas=[0.9, 1]", "optim.betas: expected numbers >= 0 and < 1, got [0.9, 1.0]"),
        (
            "augment.random_resized_crop.scale=[1, 0.5]",
            "augment.random_resized_crop.scale: expected [low, high] with 0 < low <= high, got [1, 0.5]",
        ),
    ],
)
def test_wrong_types_and_values(given: str, expected: str) -> None:
    assert refused("VA-C002", None, given).what == f"command line {expected}"


def test_settings_that_exclude_each_other() -> None:
    multi = "data.multi_label=true"
    assert "augment.cutmix" in refused("VA-C002", None, multi, "augment.cutmix=1").what
    assert "macro_f1" in refused("VA-C002", None, multi, "eval.best=top1").what
    assert load_config(None, [multi, "eval.best=auroc"]).data.multi_label


@pytest.mark.parametrize(("text", "where"), [("1: 2\n", "1: unknown key"), ("optim:\n  3: 1\n", "my.yaml:1 optim: 3: unknown key")])
def test_keys_that_are_no_text(tmp_path: Path, text: str, where: str) -> None:
    assert where in refused("VA-C001", write(tmp_path / "my.yaml", text)).what


# ---------------------------------------------------------------- files that are no config


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("model:\n\tname: x\n", 2, 1),
        ("seed: 1\nmodel: {name: x\ntrain: 3\n", 3, 6),
        ("seed: 1\nseed: 2\n", 2, 1),
        ("a: 1\n---\nb: 2\n", 2, 1),
    ],
)
def test_yaml_syntax_with_line_column_and_caret(tmp_path: Path, text: str, line: int, column: int) -> None:
    mine = write(tmp_path / "my.yaml", text)
    error = refused("VA-C003", mine)
    assert error.where == f"{mine}:{line}, column {column}"
    *_, shown, caret = error.what.splitlines()
    assert shown == "  " + text.splitlines()[line - 1]
    assert caret == "  " + " " * (column - 1) + "^"


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"hello\n", b"data: {root: caf\xe9}\n", b"seed: 1\0\n", b"data: {root: '${a b'}\n"])
def test_files_that_are_no_mapping_or_no_text(tmp_path: Path, content: bytes) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_bytes(content)
    assert str(mine) in refused("VA-C003", mine).where


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quickstrt", "quickstart"),
        ("Quickstart", "quickstart"),
        ("quickstart.yaml", "quickstart"),
        ("classification/flower12", "classification/flowers12"),
        ("flowers12", "classification/flowers12"),
        ("clasification/cifar10", "classification/cifar10"),
        ("cifar", "classification/cifar10"),
    ],
)
def test_unknown_config_names_the_close_one(name: str, meant: str) -> None:
    error = refused("VA-C004", name)
    assert f'"{name}"' in error.what and f"Did you mean {meant}?" in error.fix and "visionattn config list" in error.fix


def test_unknown_config_without_a_close_one(tmp_path: Path) -> None:
    assert refused("VA-C004", "zzz").fix == "List them: visionattn config list"
    refused("VA-C004", tmp_path)  # a folder is no config


# ---------------------------------------------------------------- environment


@pytest.mark.parametrize("key", ["data.root", "output.dir", "model.weights", "data.classes"])
def test_environment_in_paths(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("VA_A", "/disk one")
    monkeypatch.setenv("VA_B", "two")
    section, name = key.split(".")
    assert getattr(getattr(load_config(None, [f"{key}='${{env:VA_A}}/x/${{env:VA_B}}'"]), section), name) == "/disk one/x/two"


def test_environment_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VA_A", "/disk")
    assert load_config(write(tmp_path / "my.yaml", "data: {root: '${env:VA_A}/x'}\noutput:\n  dir: ${env:VA_A}\n")).data.root == "/disk/x"


def test_a_missing_variable_is_said_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VA_NONE", raising=False)
    error = refused("VA-C002", write(tmp_path / "my.yaml", "seed: 1\ndata:\n  root: ${env:VA_NONE}/x\n"))
    assert error.what == "my.yaml:3 data.root: the environment variable VA_NONE is not set"


@pytest.mark.parametrize(
    "given", ["output.name='${env:HOME}'", "model.args={a: '${env:HOME}'}", "data.root='${oc.env:HOME}'", "seed='${x}'"]
)
def test_nothing_else_is_replaced(given: str) -> None:
    assert "only ${env:NAME} is replaced, and only in data.root" in refused("VA-C002", None, given).what


# ---------------------------------------------------------------- written back

VARIED: list[dict[str, Any]] = [
    {},
    {"seed": 3, "model": {"args": {"depths": [1, 2], "act": "gelu"}, "img_size": [64, 96], "name": "swin_tiny"}},
    {"augment": {"random_resized_crop": None, "rotate": 10}, "train": {"ema": 0.99, "channels_last": True}},
    {"augment": {"random_resized_crop": {"scale": [0.5, 1]}}, "data": {"range": [0, 4095], "classes": ["no", "café", "1", "a: b # c"]}},
    {"data": {"root": "ein Ordner/ünï 2024", "workers": 3, "val_fraction": 0.25}, "optim": {"lr": 1e-07, "clip_grad": None}},
    {"loss": {"class_weights": [1, 2.5]}, "eval": {"best": "macro_f1"}, "output": {"name": "001"}},
]


@pytest.mark.parametrize("values", VARIED)
def test_what_is_written_reads_back_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    config = config_from_dict(values)
    assert load_config(write(tmp_path / "all.yaml", to_yaml(config.model_dump(mode="json")))) == config
    assert load_config(write(tmp_path / "changed.yaml", to_yaml(changed_values(config)))) == config
    assert load_config(write(tmp_path / "described.yaml", describe(config))) == config


def test_changed_values_holds_only_what_differs() -> None:
    assert changed_values(Config()) == {}
    config = load_config(None, ["optim.lr=0.5", "model.name=eca_resnet18", "augment.random_resized_crop=null"])
    assert changed_values(config) == {"augment": {"random_resized_crop": None}, "optim": {"lr": 0.5}}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_are_described_whole(tmp_path: Path, name: str) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path / "my.yaml", describe(config))) == config


def leaves(values: dict[str, Any]) -> int:
    return sum(leaves(value) if isinstance(value, dict) and value else 1 for value in values.values())


def test_every_key_has_its_meaning() -> None:
    lines = [line for line in describe(Config()).splitlines() if "  # " in line]
    assert len(lines) == leaves(Config().model_dump())
    assert not [line for line in lines if len(line.partition("  # ")[2]) < 5]


def test_yaml_keeps_the_declared_order() -> None:
    keys = list(yaml.safe_load(to_yaml(Config().model_dump(mode="json"))))
    assert keys == list(Config.model_fields) and keys[0] == "version"
    assert "café" in to_yaml({"data": "café"})


def test_schema_is_json_that_tells_types_and_bounds() -> None:
    schema = json.loads(json.dumps(Config.model_json_schema()))
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)
    epochs = schema["$defs"]["TrainConfig"]["properties"]["epochs"]
    assert epochs["type"] == "integer" and epochs["minimum"] == 1 and epochs["description"]


# ---------------------------------------------------------------- tasks


def test_segmentation_has_sections_of_its_own() -> None:
    config = load_config(
        None, ["task=segment", "model.head.name=unet", "loss=[{name: dice, weight: 0.5}, {name: focal}]", "eval.mode=slide"]
    )
    assert isinstance(config, SegmentConfig) and config.model.head.name == "unet" and config.model.size == (512, 512)
    assert [(term.name, term.weight) for term in config.loss] == [("dice", 0.5), ("focal", 1.0)]
    assert config_from_dict({"task": "segment"}) == SegmentConfig() and list(SegmentConfig.model_fields) == list(Config.model_fields)


@pytest.mark.parametrize(
    ("task", "given", "owner"),
    [
        ("segment", "augment.mixup=1", "classify"),
        ("segment", "eval.crop_pct=1", "classify"),
        ("classify", "model.head.name=unet", "segment"),
        ("classify", "eval.mode=slide", "segment"),
        ("classify", "data.mask_suffix=x", "segment"),
    ],
)
def test_a_key_of_another_task_names_both(task: str, given: str, owner: str) -> None:
    key = "model.head" if given.startswith("model.head") else given.partition("=")[0]
    what = refused("VA-C001", None, f"task={task}", given).what
    assert what == f"command line {key}: unknown key: it belongs to task {owner}, and this is task {task}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("loss={name: dice}", 'loss: expected a list of mappings, got {"name": "dice"}'),
        ("loss=[{name: dice, weight: -1}]", "loss.weight: expected number >= 0, got -1"),
        ("loss=[{weight: 0}]", "loss: expected a term with weight > 0"),
        ("model.head=unet", 'model.head: expected a mapping, got "unet"'),
        ("eval.scales=[1, 0]", "eval.scales: expected numbers > 0, got [1.0, 0.0]"),
        ("eval.best=dice", "eval.best: dice is a score of cases; set eval.per_case=true, or use mdice or miou"),
        ("model.img_size=16", "model.img_size: expected at least 32 pixels per side"),
        ("train.steps=0", "train.steps: expected integer >= 1 or null, got 0"),
    ],
)
def test_wrong_values_of_segmentation(given: str, expected: str) -> None:
    assert refused("VA-C002", None, "task=segment", given).what == f"command line {expected}"


def test_unknown_keys_of_segmentation() -> None:
    error = refused("VA-C001", None, "task=segment", "loss=[{nme: dice}]", "model.head.nme=x", "optim.lrr=1")
    assert "loss.nme: unknown key. Did you mean loss.name?" in error.what and "Did you mean model.head.name?" in error.what
    assert "Did you mean optim.lr?" in error.what and error.fix.endswith("task=segment")


@pytest.mark.parametrize("given", ["task=segmnt", "task=3", "task=null"])
def test_an_unknown_task_is_said_with_all_else(given: str) -> None:
    what = refused("VA-C002", None, given, "train.epochs=0").what
    assert "task: expected one of classify, segment, got " in what and "train.epochs: expected integer >= 1" in what


def test_segmentation_is_written_and_read_back(tmp_path: Path) -> None:
    config = load_config(
        None, ["task=segment", "data.map={128: 1}", "loss=[{name: dice, args: {smooth: 1}}]", "eval.mode=slide", "eval.tile=[64, 96]"]
    )
    for name, text in (
        ("all", to_yaml(config.model_dump(mode="json"))),
        ("changed", to_yaml(changed_values(config))),
        ("described", describe(config)),
    ):
        assert load_config(write(tmp_path / f"{name}.yaml", text)) == config, name
    assert changed_values(SegmentConfig()) == {"task": "segment"}
    lines = [line for line in describe(SegmentConfig()).splitlines() if "  # " in line]
    assert len(lines) == leaves(SegmentConfig().model_dump(exclude={"loss"})) + 1
    assert set(CONFIGS) == {kind.model_fields["task"].default for kind in CONFIGS.values()}
