"""Messages for mistakes in a config: the place, the key, what was expected and the likely intention."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.files import refused, write
from visionattn.tasks import TASKS, load_config

TRACKERS = "tensorboard, mlflow, wandb, trackio, comet_ml, aim, clearml, dvclive, swanlab"


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
        ("log.tensorboard=false", "log.to"),
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
        'my.yaml:5 train.epochs: expected integer >= 1 or auto, got "ten"',
        "my.yaml:6 train.batchsize: unknown key. Did you mean train.batch_size?",
        "my.yaml:7 model.nmae: unknown key. Did you mean model.name?",
        "my.yaml:8 xyzzy: unknown key.",
        'command line data.on_error: expected one of stop, skip, got "ignore"',
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train.epochs=ten", 'train.epochs: expected integer >= 1 or auto, got "ten"'),
        ("train.epochs=0", "train.epochs: expected integer >= 1 or auto, got 0"),
        ("train.epochs=1.5", "train.epochs: expected integer >= 1 or auto, got 1.5"),
        ("train.epochs=true", "train.epochs: expected integer >= 1 or auto, got true"),
        ("train.epochs=", "train.epochs: expected integer >= 1 or auto, got null"),
        ("optim.lr=0", "optim.lr: expected number > 0 or auto, got 0"),
        ("optim.lr=true", "optim.lr: expected number > 0 or auto, got true"),
        ("optim.lr=.nan", "optim.lr: expected number > 0 or auto, got NaN"),
        ("optim.lr=.inf", "optim.lr: expected number > 0 or auto, got Infinity"),
        ("optim.clip_grad=-1", "optim.clip_grad: expected number > 0 or null, got -1"),
        ("model.drop_rate=1", "model.drop_rate: expected number >= 0 and < 1, got 1"),
        ("optim.betas=[a, 1]", 'optim.betas: expected a list of number or null, got "a"'),
        ("model.img_size=big", 'model.img_size: expected integer or [integer, integer] or auto, got "big"'),
        ("data.classes=3", "data.classes: expected auto or a list of text or text, got 3"),
        ("plugins=mine", 'plugins: expected a list of text, got "mine"'),
        ("model.args=3", "model.args: expected a mapping, got 3"),
        ("optim=3", "optim: expected a mapping, got 3"),
        ("augment.random_resized_crop=3", "augment.random_resized_crop: expected a mapping or null, got 3"),
        ("train.deterministic=maybe", 'train.deterministic: expected true or false, got "maybe"'),
        ("log.to=[tensorboard,mlfow]", "log.to: unknown tracker mlfow. Did you mean mlflow?"),
        ("log.to=none", f"log.to: unknown tracker none. Choose from {TRACKERS}; none: log.to=[]"),
        ("log.to=[3]", f"log.to: expected a list of one of {TRACKERS}, got 3"),
        ("version=2", "version: expected 1, got 2"),
        ("data.root=null", "data.root: expected text, got null"),
        ("model.img_size=16", "model.img_size: expected at least 32 pixels per side"),
        ("data.workers=-1", "data.workers: expected integer >= 0 or auto, got -1"),
        ("train.save_signal=USR1", "train.save_signal: expected the name of a signal, for example SIGUSR1, got USR1"),
        ("train.save_signal=SIGKILL", "train.save_signal: SIGKILL cannot be handled by a program"),
        ("train={shard: true, ema: 0.9}", "train.shard: the moving average needs whole weights at each step; train.ema=null"),
        ("train.batch_size=0", "train.batch_size: expected integer >= 1 or auto, got 0"),
        ("train.batch_size=ten", 'train.batch_size: expected integer >= 1 or auto, got "ten"'),
        ("train={batch_size: auto, accum: 2}", "train.accum: train.batch_size=auto chooses it; train.accum=1"),
        (
            "train={batch_size: auto, shard: true}",
            "train.batch_size: auto tries the whole model on each device, train.shard shares it out; give a number",
        ),
        ("train.max_time=90", "train.max_time: expected a duration such as 90s, 30m, 2h or 1h30m, got 90"),
        ("train.max_time=0h", "train.max_time: expected a duration such as 90s, 30m, 2h or 1h30m, got 0h"),
        ("train.patience=0", "train.patience: expected integer >= 1 or null, got 0"),
        ("train.freeze=3", "train.freeze: expected a list of text or text, got 3"),
        ("train.device=gpu", "train.device: expected auto, cpu, mps, cuda or a GPU by its number (cuda:0), got gpu"),
        ("data.sampler=weighted", 'data.sampler: expected one of shuffled, balanced, got "weighted"'),
        ("train.on_nan=ignore", 'train.on_nan: expected one of stop, skip, rollback, got "ignore"'),
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
    assert "loss.class_weights=balanced" in refused("VA-C002", None, multi, "data.sampler=balanced").what
    assert "class_weights: balanced" in refused("VA-C002", None, "task=segment", "data.sampler=balanced").what
    assert "augment.cutmix" in refused("VA-C002", None, multi, "augment.cutmix=1").what
    assert "macro_f1" in refused("VA-C002", None, multi, "eval.best=top1").what
    assert load_config(None, [multi, "eval.best=auroc"]).data.multi_label


@pytest.mark.parametrize(("text", "where"), [("1: 2\n", "1: unknown key"), ("optim:\n  3: 1\n", "my.yaml:1 optim: 3: unknown key")])
def test_keys_that_are_no_text(tmp_path: Path, text: str, where: str) -> None:
    assert where in refused("VA-C001", write(tmp_path / "my.yaml", text)).what


# ---------------------------------------------------------------- tasks


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
    assert f"task: expected one of {', '.join(TASKS)}, got " in what and "train.epochs: expected integer >= 1 or auto" in what


def test_a_value_that_yaml_takes_for_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "my.yaml", "data:\n  images: {split}/images\n  masks: '{split}/masks'\n")
    assert refused("VA-C003", path).fix == 'put the value in quotes: images: "{split}/images"'
    write(path, path.read_text().replace("{split}/images", '"{split}/images"'))
    assert load_config(path).data.model_dump()["images"] == "{split}/images"
    assert load_config(None, ["data.images={split}", "data.masks={split}/m"]).data.model_dump()["images"] == "{split}"


def test_an_empty_text_from_a_shell() -> None:
    """A shell leaves the same of `key=""` as of `key=`."""
    assert load_config("quickstart", ["data.group_by=", "output.name="]).data.group_by == ""
    assert load_config(None, ["train.ema="]).train.ema is None
    assert "expected integer" in refused("VA-C002", None, "train.epochs=").what
