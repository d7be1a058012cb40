"""Steps that must not count, losses that stand out, interrupts and samples that vanish: what a run does about them."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.toy import Pressure, ToyObjective, metrics, settings, trainer
from visionattn.console import Console
from visionattn.data.readers import UnreadableFile
from visionattn.engine.guard import LossWatch
from visionattn.errors import Interrupted, UserError
from visionattn.runs.checkpoint import read_checkpoint
from visionattn.runs.folder import RunFolder

EVERY = ("train.epochs=4", "train.save_every=1", "train.accum=1", "schedule.name=constant", "eval.every=4")  # 16 steps


class Poisoned(ToyObjective):
    """Losses that are not finite, counted from the first of a run."""

    at: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.calls = 0

    def loss(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        parts = super().loss(outputs, batch)
        self.calls += "side" in outputs  # in training
        return {**parts, "loss": parts["loss"] * math.nan} if self.calls in self.at and "side" in outputs else parts


def poisoned(*steps: int) -> type[Poisoned]:
    return type("PoisonedAt", (Poisoned,), {"at": steps})


def losses(run: Path) -> dict[int, float | None]:
    return {line["step"]: line["loss"] for line in metrics(run, "step")}


def test_a_step_that_is_not_finite_is_left_out(task: Pressure, tmp_path: Path) -> None:
    config, console = settings(tmp_path, *EVERY, "train.on_nan=skip", "train.nan_limit=2"), Console()
    console.log_to(tmp_path / "log.txt")
    with trainer(task, tmp_path / "run", config, poisoned(3, 4), console) as done:
        done.fit()
    found = losses(tmp_path / "run")
    assert [step for step, loss in found.items() if loss is None] == [3, 4] and len(found) == 16
    assert all(torch.isfinite(tensor).all() for tensor in done.bare_model.state_dict().values())
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last")[2]["progress"]["step"] == 16
    log = (tmp_path / "log.txt").read_text()
    assert "loss is nan at step 4 (epoch 1): the step is left out (2 of 2 in a row)" in log and "diverged.json" in log
    epoch = metrics(tmp_path / "run", "epoch")[0]
    assert epoch["train_loss"] == pytest.approx(sum(loss for step, loss in found.items() if step <= 4 and loss is not None) / 2)


def test_too_many_in_a_row_stop(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, *EVERY, "train.on_nan=skip", "train.nan_limit=2")
    with trainer(task, tmp_path / "run", config, poisoned(2, 5, 6, 7)) as run, pytest.raises(UserError) as caught:
        run.fit()
    assert caught.value.code == "VA-R002" and run.step == 6


def test_back_to_the_weights_of_the_last_checkpoint(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, *EVERY, "train.save_every=2", "train.on_nan=rollback", "train.nan_limit=1")
    with trainer(task, tmp_path / "run", config, poisoned(6)) as run:
        take, before = run.train_step, {}

        def watched(batch: Any) -> Any:
            if run.step == 4:
                before.update({name: tensor.clone() for name, tensor in run.bare_model.state_dict().items()})
            result = take(batch)
            if run.step == 5:  # the sixth step, just undone
                assert result[0] is None and run.progress.rollbacks == 1
                assert all(torch.equal(tensor, before[name]) for name, tensor in run.bare_model.state_dict().items())
            return result

        run.train_step = watched  # type: ignore[method-assign]
        run.fit()
    assert run.step == 16 and losses(tmp_path / "run")[6] is None
    with trainer(task, tmp_path / "again", config, poisoned(4, 7)) as run, pytest.raises(UserError) as caught:
        run.fit()
    assert caught.value.code == "VA-R002" and run.progress.rollbacks == 2


def test_a_loss_that_stands_out_is_said_once() -> None:
    watch = LossWatch()
    assert [watch.spike(1.0 + 0.1 * (step % 3)) for step in range(40)] == [None] * 40
    said = watch.spike(9.0)
    assert said is not None and said.startswith("loss 9.000, ") and "its recent mean 1.097" in said
    assert [watch.spike(9.0) for _ in range(40)] == [None] * 40


def test_an_interrupt_in_an_evaluation_does_not_wait_for_its_end(task: Pressure, tmp_path: Path) -> None:
    """The run saves before the evaluation, which is made when it resumes, to the same lines and bits."""
    config = settings(tmp_path, "train.epochs=3", "train.ema=0.9")
    with trainer(task, tmp_path / "straight", config) as straight:
        straight.fit()
    with trainer(task, tmp_path / "stopped", config) as first:
        evaluate = first.evaluate

        def interrupted() -> Any:
            if first.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate()

        first.evaluate = interrupted  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match="epoch 2, before its evaluation"):
            first.fit()
    with trainer(task, tmp_path / "stopped", config) as second:
        second.resume(tmp_path / "stopped" / "checkpoints" / "last")
        assert (second.progress.step, second.progress.closed) == (4, 2)
        second.fit()
    lines = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in metrics(tmp_path / name, "epoch")]
        for name in ("straight", "stopped")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 3
    for name, tensor in straight.bare_model.state_dict().items():
        assert torch.equal(tensor, second.bare_model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_after_the_step_and_one_of_the_same_event_changes_nothing(task: Pressure, tmp_path: Path, name: str) -> None:
    config = settings(tmp_path, "train.epochs=3", "train.save_signal=SIGUSR1")
    with trainer(task, tmp_path / "run", config) as run:
        take = run.train_step

        def signalled(batch: Any) -> Any:
            if run.step == 2:
                for _ in range(2):  # as GNU timeout and launchers do
                    os.kill(os.getpid(), signal.Signals[name])
            return take(batch)

        run.train_step = signalled  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match="epoch 2, step 1/2"):
            run.fit()
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last")[2]["progress"]["step"] == 3


def test_the_mean_loss_of_an_epoch_resumed_within_covers_all_of_it(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, *EVERY)
    for name in ("straight", "stopped"):
        with trainer(task, tmp_path / name, config) as run:
            if name == "stopped":
                run._interrupted = True
                with pytest.raises(Interrupted):
                    run.fit()
            else:
                run.fit()
    with trainer(task, tmp_path / "stopped", config) as second:
        second.resume(tmp_path / "stopped" / "checkpoints" / "last")
        assert second.step == 1
        second.fit()
    first, again = (metrics(tmp_path / name, "epoch") for name in ("straight", "stopped"))
    assert [line["train_loss"] for line in first] == [line["train_loss"] for line in again]


def test_another_number_of_epochs_says_what_happens_to_the_rate(task: Pressure, tmp_path: Path) -> None:
    with trainer(task, tmp_path / "run", settings(tmp_path, "train.epochs=3", "train.steps=4")) as run:
        run.fit()
    console = Console()
    console.log_to(tmp_path / "log.txt")
    with trainer(task, tmp_path / "run", settings(tmp_path, "train.epochs=3", "train.steps=8"), console=console) as run:
        run.resume(tmp_path / "run" / "checkpoints" / "last")
    log = (tmp_path / "log.txt").read_text()
    assert "learning rate 1.00e-06 -> " in log and "the schedule is now over 8 steps" in log


@pytest.mark.parametrize(
    ("policy", "broken", "code"), [("stop", 1, None), ("stop", 6, "VA-D010"), ("skip", 6, None), ("skip", 16, "VA-D010")]
)
def test_samples_that_vanish_are_counted_once(
    task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, broken: int, code: str | None
) -> None:
    config, console = settings(tmp_path, *EVERY, f"data.on_error={policy}"), Console()
    console.log_to(tmp_path / "log.txt")
    with trainer(task, tmp_path / "run", config, console=console) as run:
        load = run.setup.train_set.load  # type: ignore[attr-defined]

        def vanishing(index: int, seed: int | None) -> Any:
            if index < broken:
                raise UnreadableFile(f"t{index}", "no such file")
            return load(index, seed)

        monkeypatch.setattr(run.setup.train_set, "load", vanishing)
        if code is None:
            run.fit()
        else:
            with pytest.raises(UserError) as caught:
                run.fit()
            assert caught.value.code == code
    log = (tmp_path / "log.txt").read_text()
    names = [line.split("left out: ")[1] for line in log.splitlines() if "left out: " in line]
    assert len(names) == len(set(names))
    listed = RunFolder(tmp_path / "run").read_state()["unreadable"]
    if code is None:  # and the two of the validation set
        assert len(listed) == broken + 2
        last = metrics(tmp_path / "run", "epoch")[-1]
        assert last["val_count"] == 4 and "of 4 of 6 readings" in log
    if broken == 16:
        assert "trained on nothing" in caught.value.what and json.loads((tmp_path / "run" / "run.json").read_text())
