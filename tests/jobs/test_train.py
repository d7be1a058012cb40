"""Training: it learns, it stops where it must, and it resumes as if it had never stopped."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

import visionattn as va
from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.engine.trainer import Trainer
from visionattn.errors import Interrupted, UserError
from visionattn.jobs.check import check
from visionattn.tasks import load_config, task_of

TINY = (
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.batch_size=6",
    "data.workers=0",
    "log.to=[]",
    "log.every_steps=1",
    "schedule.warmup_epochs=0",
)


def config(root: Path, *overrides: str) -> RunConfig:
    return load_config(None, [*TINY, f"data.root={root / 'flowers'}", f"output.dir={root / 'runs'}", *overrides])


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / checkpoint / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def quiet(given: RunConfig, **arguments: Any) -> Any:
    return va.train(given, console=Console(quiet=True), **arguments)


def test_learns_a_tiny_set_and_the_run_tells_all(flowers: Path) -> None:
    result = quiet(config(flowers.parent, "train.epochs=12", "augment.color_jitter=0", "train.ema=0.5"))
    assert result.best["metric"] == "top1" and result.best["value"] == 1.0
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    steps, epochs = ([line for line in lines if line["kind"] == kind] for kind in ("step", "epoch"))
    assert [line["step"] for line in steps] == list(range(1, 49))
    assert len(epochs) == 12 and epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert json.loads((result.run / "run.json").read_text())["state"] == "done"
    again = va.evaluate(result.run, console=Console(quiet=True))
    assert again.metrics == result.metrics
    test = va.evaluate(result.run, split="test", console=Console(quiet=True))
    assert test.count == 6 and test.metrics["top1"] == 1.0
    assert (result.run / "eval" / "test" / "metrics.json").is_file()
    found, unreadable = va.predict(result.run, [flowers / "test" / "rose"], topk=2)
    assert [item.classes[0] for item in found] == ["rose", "rose"] and not unreadable
    assert "ema.safetensors" in {path.name for path in (result.run / "checkpoints" / "best").iterdir()}


def test_checkpoint_folder_and_file_are_enough(flowers: Path, tmp_path: Path) -> None:
    result = quiet(config(flowers.parent, "train.epochs=2"))
    moved = tmp_path / "elsewhere"
    (result.run / "checkpoints" / "best").rename(moved)
    for source in (moved, moved / "model.safetensors"):
        assert va.evaluate(source, data=flowers, console=Console(quiet=True)).metrics == result.metrics
    started = quiet(config(flowers.parent, f"model.weights={moved}", "train.epochs=1", "optim.lr=1e-12", "train.freeze=backbone"))
    assert started.metrics["top1"] == result.metrics["top1"]  # nothing moved: the weights were the start


@pytest.mark.parametrize("accum", [1, 2])
def test_same_seed_same_weights_whatever_the_workers(flowers: Path, accum: int) -> None:
    settings = ("train.epochs=2", f"train.accum={accum}", "model.drop_path_rate=0.2", "augment.mixup=0.2")
    one = quiet(config(flowers.parent, *settings))
    two = quiet(config(flowers.parent, *settings, "data.workers=2"))
    other = quiet(config(flowers.parent, *settings, "seed=1"))
    assert same(weights(one.run), weights(two.run))
    assert not same(weights(one.run), weights(other.run))


def test_accumulation_equals_the_large_batch(flowers: Path) -> None:
    """Without batch statistics the trainer's sum over parts is the step of the whole."""
    swin = "model.args={patch_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [1, 2], window_size: 4}"
    common = [setting for setting in TINY if "model.name" not in setting and "model.args" not in setting]
    common += [
        "model.name=swin_tiny",
        swin,
        "train.precision=fp32",
        "train.epochs=1",
        "optim.name=sgd",
        "optim.lr=0.1",
        f"data.root={flowers}",
    ]

    def trained(*overrides: str) -> dict[str, torch.Tensor]:
        return weights(quiet(load_config(None, [*common, f"output.dir={flowers.parent / 'runs'}", *overrides])).run)

    whole, parts, other = trained(), trained("train.batch_size=2", "train.accum=3"), trained("train.batch_size=2")
    assert all(torch.allclose(parts[name], whole[name], atol=1e-5) for name in whole)
    assert not all(torch.allclose(other[name], whole[name], atol=1e-5) for name in whole)


def test_more_epochs_go_on_from_the_end(flowers: Path) -> None:
    first = quiet(config(flowers.parent, "train.epochs=1", "schedule.name=constant"))
    straight = quiet(config(flowers.parent, "train.epochs=2", "schedule.name=constant"))
    changed = load_config(first.run / "config.yaml", ["train.epochs=2"])
    quiet(changed, resume=first.run)
    assert same(weights(first.run), weights(straight.run))
    with pytest.raises(UserError) as caught:
        quiet(load_config(first.run / "config.yaml", ["optim.lr=0.5", "train.epochs=3"]), resume=first.run)
    assert caught.value.code == "VA-C010" and "optim.lr: 0.001 -> 0.5" in caught.value.what and "epochs" not in caught.value.what


def test_options_together_resume_to_the_same_bits(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced classes, frozen parts, another optimizer; stopped within an epoch, resumed with other patience and time."""
    for number in range(1, 8):
        (flowers / "train" / "rose" / f"{number}.png").unlink()
    options = ("data.sampler=balanced", "train.freeze=[stem, stages.0, '*.bn1']", "optim.name=lamb", "optim.lr=0.02", "train.patience=9")
    settings = (*options, "train.epochs=3", "train.max_time=1h", "train.ema=0.9")
    straight = quiet(config(flowers.parent, *settings))
    take = Trainer.train_step

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        trainer._interrupted = trainer.step == 2
        return take(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "train_step", interrupted)
        quiet(config(flowers.parent, *settings, "output.name=stopped"))
    stopped = flowers.parent / "runs" / "stopped" / "001"
    quiet(load_config(stopped / "config.yaml", ["train.patience=8", "train.max_time=null", "train.min_delta=0.001"]), resume=stopped)
    names = [name for name, _ in va.create_model("eca_resnet18", num_classes=3, width=8).named_parameters()]
    frozen = {name for name in names if name.startswith(("backbone.stem", "backbone.stages.0")) or ".bn1." in name}
    statistics = {f"{name.rpartition('.')[0]}.running_mean" for name in frozen if "bn" in name}
    for checkpoint in ("last", "best"):
        assert same(weights(straight.run, checkpoint), weights(stopped, checkpoint))
    final = weights(stopped)
    assert all(torch.equal(final[name], torch.zeros_like(final[name])) for name in statistics) and statistics
    set_seed(0)
    start = load_config(stopped / "config.yaml")
    begun = task_of(start).build_model(start, {"classes": ["daisy", "rose", "tulip"]}).state_dict()
    kept = {name for name, value in final.items() if "weight" in name and torch.equal(value, begun[name])}
    assert kept == {name for name in frozen if "weight" in name}
    log = (stopped / "log.txt").read_text()
    assert re.search(r"^frozen +[\d,]+ of [\d,]+ parameters: stem, stages\.0, \*\.bn1$", log, re.MULTILINE)


def test_a_run_ends_when_it_no_longer_gains_and_goes_on_with_more_patience(flowers: Path) -> None:
    given = config(
        flowers.parent, "train.epochs=4", "train.patience=1", "optim.lr=1e-12", "schedule.name=constant", "train.freeze=backbone"
    )
    result = quiet(given)
    assert result.best["epoch"] == 2 and json.loads((result.run / "run.json").read_text())["state"] == "done"
    page, log = (result.run / "report.html").read_text(), (result.run / "log.txt").read_text()
    assert "ended by train.patience=1: top1 has not risen in 1 evaluation" in page and "2 of 4 epochs" in page
    assert "done in" in log and "its schedule is over all 4" in log
    quiet(load_config(result.run / "config.yaml", ["train.patience=null"]), resume=result.run)
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_stops_with_the_module_and_the_batch(flowers: Path) -> None:
    with pytest.raises(UserError) as caught:
        quiet(config(flowers.parent, "optim.name=sgd", "optim.lr=1e30", "optim.clip_grad=null", "train.epochs=5"))
    error = caught.value
    assert (error.code, error.exit_code) == ("VA-R002", 5)
    assert "backbone." in error.where
    (run,) = (flowers.parent / "runs").glob("*/001")
    record = json.loads((run / "diverged.json").read_text())
    assert len(record["samples"]) == 6 and all((flowers / name).is_file() for name in record["samples"])
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["reason"]) == ("failed", "VA-R002")


def test_images_that_break_after_the_check_are_left_out_and_counted(flowers: Path) -> None:
    given = config(flowers.parent, "train.epochs=1", "data.on_error=skip", "train.batch_size=24")
    check(given, console=Console(quiet=True))
    victim = flowers / "train" / "rose" / "0.png"
    size, times = victim.stat().st_size, victim.stat()
    victim.write_bytes(b"\0" * size)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # as the check has it in its cache
    result = quiet(given)
    log = (result.run / "log.txt").read_text()
    assert "unreadable, left out: train/rose/0.png" in log
