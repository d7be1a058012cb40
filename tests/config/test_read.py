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

from tests.config.files import refused, write
from visionattn.config.read import changed_values, describe, find_config, shipped_names, to_yaml
from visionattn.errors import UserError
from visionattn.tasks import TASKS, config_from_dict, load_config
from visionattn.tasks.classification.settings import ClassifyConfig
from visionattn.tasks.segmentation.settings import SegmentConfig

# ---------------------------------------------------------------- good configs


def test_defaults() -> None:
    config = load_config()
    assert config == ClassifyConfig() == config_from_dict({})
    assert config.task == "classify" and config.model.weights == "auto" and config.train.deterministic
    assert config.model.size == (224, 224) and load_config(None, ["model.img_size=[64, 96]"]).model.size == (64, 96)
    with pytest.raises(ValidationError):
        config.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("task", list(TASKS))
def test_reading_a_config_leaves_torch_alone(task: str) -> None:
    code = f"import sys; from visionattn.tasks import load_config; load_config(None, ['task={task}'])"
    code += "; heavy = {'torch', 'numpy', 'timm'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_load_and_say_what_they_are(name: str) -> None:
    config = load_config(name)
    assert len(changed_values(config)) > 1 and config.output.name
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
    assert load_config(write(tmp_path / "my.yaml", text)) == ClassifyConfig()


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


def test_key_value_that_is_not_utf8() -> None:
    assert 'not UTF-8: data.root="cat\\udce9"' in refused("VA-C002", None, 'data.root="cat\udce9"').block()
    assert load_config(None, ["data.root=b\udcc3\udcbccher"]).data.root == "b\u00fccher", "as LC_ALL=C gives it"


@pytest.mark.parametrize(
    "settings", [("optim=[]", "optim.clip_grad=1"), ("optim.lr=1", "optim.lr.x=2"), ("optim={}", "optim[0]=1"), ("[seed=1",)]
)
def test_settings_that_do_not_fit_together(settings: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, settings)
    assert caught.value.code in ("VA-C001", "VA-C002") and caught.value.block()


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


NAMES = ["yes", "no", "on", "007", "2023", "1e3", "0x1F", "2023-01-05", "null", "1:30", "a"]


def test_text_is_taken_as_it_was_written(tmp_path: Path) -> None:
    lines = "".join(f"    - {name}\n" for name in NAMES)
    text = (
        f"data:\n  root: 2024\n  train: 007\n  val: on\n  exclude: [no, 1e3]\n  classes:\n{lines}output: {{name: 1e3, dir: 2023-01-05}}\n"
    )
    config = load_config(write(tmp_path / "my.yaml", text))
    assert isinstance(config, ClassifyConfig) and config.data.classes == NAMES
    assert (config.data.root, config.data.train, config.data.val, config.data.exclude) == ("2024", "007", "on", ["no", "1e3"])
    assert (config.output.name, config.output.dir) == ("1e3", "2023-01-05")
    over = load_config(tmp_path / "my.yaml", ["data.root=010", "output.name=yes", f"data.classes=[{', '.join(NAMES)}]", "data={test: off}"])
    assert isinstance(over, ClassifyConfig) and over.data.classes == NAMES
    assert (over.data.root, over.data.test, over.output.name) == ("010", "off", "yes")
    (tmp_path / "mine.yaml").write_text("base: my.yaml\ndata: {root: 1_000}\n")
    assert load_config(tmp_path / "mine.yaml").data.root == "1_000" and load_config(tmp_path / "mine.yaml").data.train == "007"


def test_numbers_and_switches_stay_what_they_are() -> None:
    config = load_config(None, ["seed=010", "train.deterministic=no", "model.args={a: yes, b: 007}", "data.root='2024'"])
    assert (config.seed, config.train.deterministic, config.model.args, config.data.root) == (8, False, {"a": True, "b": 7}, "2024")


@pytest.mark.parametrize("text", ["{split}", "{split}/images", "img/{split}", "'{split}'"])
def test_placeholders_need_no_quotes(tmp_path: Path, text: str) -> None:
    config = load_config(None, ["task=segment", f"data.images={text}", "data.masks=x"])
    assert isinstance(config, SegmentConfig) and config.data.images == text.strip("'")
    if text == "{split}":
        config = load_config(write(tmp_path / "my.yaml", f"task: segment\ndata:\n  images: {text}\n  masks: x\n"))
        assert isinstance(config, SegmentConfig) and config.data.images == text


# ---------------------------------------------------------------- files that are no config


def _laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 100_000, "more than 20 levels"),
        ("a: " + "[" * 30 + "]" * 30, "more than 20 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(500)), "more than 20 levels"),
        (_laughs(9), "more than 100,000 values"),
        ("a: &a [*a]", "more than 20 levels"),
        ("# " + "x" * 2**20, "more than 1,048,576 bytes"),
    ],
    ids=["open", "lists", "mappings", "aliases", "circle", "bytes"],
)
def test_files_without_measure(tmp_path: Path, text: str, what: str) -> None:
    assert what in refused("VA-C003", write(tmp_path / "my.yaml", text)).what


@pytest.mark.parametrize(
    "text", ["model.args=" + "[" * 50_000, "model.args=" + "{a: " * 40 + "}" * 40, "a." * 3000 + "b=1", "a" + "[0]" * 3000 + "=1"]
)
def test_settings_without_measure(text: str) -> None:
    error = refused("VA-C002", None, text)
    assert "levels" in error.what and len(error.block()) < 600


def test_a_wrong_value_is_shown_in_part() -> None:
    assert len(refused("VA-C002", None, f"train.epochs={'x' * 100_000}").what) < 500


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


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"hello\n", b"data: {root: cat\xe9}\n", b"seed: 1\0\n", b"data: {root: '${a b'}\n"])
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
    assert changed_values(ClassifyConfig()) == {"task": "classify"}  # always named: it tells whose defaults the others are
    config = load_config(None, ["optim.lr=0.5", "model.name=davit_tiny", "augment.random_resized_crop=null"])
    assert changed_values(config) == {"task": "classify", "augment": {"random_resized_crop": None}, "optim": {"lr": 0.5}}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_are_described_whole(tmp_path: Path, name: str) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path / "my.yaml", describe(config))) == config


def leaves(values: dict[str, Any]) -> int:
    return sum(leaves(value) if isinstance(value, dict) and value else 1 for value in values.values())


def test_every_key_has_its_meaning() -> None:
    lines = [line for line in describe(ClassifyConfig()).splitlines() if "  # " in line]
    assert len(lines) == leaves(ClassifyConfig().model_dump())
    assert not [line for line in lines if len(line.partition("  # ")[2]) < 5]


def test_yaml_keeps_the_declared_order() -> None:
    keys = list(yaml.safe_load(to_yaml(ClassifyConfig().model_dump(mode="json"))))
    assert keys == list(ClassifyConfig.model_fields) and keys[0] == "version"
    assert "café" in to_yaml({"data": "café"})


def test_schema_is_json_that_tells_types_and_bounds() -> None:
    schema = json.loads(json.dumps(ClassifyConfig.model_json_schema()))
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(ClassifyConfig.model_fields)
    settings = schema["$defs"]["TrainConfig"]["properties"]
    assert settings["accum"]["type"] == "integer" and settings["accum"]["minimum"] == 1 and settings["accum"]["description"]
    assert settings["epochs"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"const": "auto", "type": "string"}]


# ---------------------------------------------------------------- tasks


def test_segmentation_has_sections_of_its_own() -> None:
    config = load_config(
        None, ["task=segment", "model.head.name=unet", "loss=[{name: dice, weight: 0.5}, {name: focal}]", "eval.mode=slide"]
    )
    assert isinstance(config, SegmentConfig) and config.model.head.name == "unet" and config.model.size == (512, 512)
    assert [(term.name, term.weight) for term in config.loss] == [("dice", 0.5), ("focal", 1.0)]
    assert config_from_dict({"task": "segment"}) == SegmentConfig()
    assert list(SegmentConfig.model_fields) == list(ClassifyConfig.model_fields)


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
    assert set(TASKS) == {task.config.model_fields["task"].default for task in TASKS.values()}
