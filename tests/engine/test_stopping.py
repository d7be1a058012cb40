"""Runs that end before their last step: no gain for a while, or no time left; resumed, they go on as if they had not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.toy import Pressure, metrics, settings, trainer
from visionattn.console import Console
from visionattn.engine.progress import evaluations_without_gain, why_enough
from visionattn.engine.trainer import Trainer
from visionattn.errors import Interrupted
from visionattn.tasks import load_config

STEP = 10.0  # seconds, by the clock of these tests
EPOCHS = ("train.epochs=4", "train.accum=1", "train.ema=0.9")  # of 4 steps


@pytest.mark.parametrize(
    ("values", "min_delta", "waited"),
    [
        ([], 0, 0),
        ([0.5], 0, 0),
        ([0.5, 0.5, 0.4], 0, 2),
        ([0.5, 0.4, 0.6], 0, 0),
        ([None, None], 0, 2),
        ([None, 0.1, None], 0, 1),
        ([0.5, 0.505, 0.509], 0.01, 2),  # each gain is compared with the value that counted, not with the one before
        ([0.5, 0.505, 0.511, 0.52], 0.01, 1),
    ],
)
def test_evaluations_without_gain(values: list[float | None], min_delta: float, waited: int) -> None:
    assert evaluations_without_gain(values, min_delta) == waited


def test_reasons() -> None:
    train = load_config(None, ["train.patience=2", "train.min_delta=0.01", "train.max_time=1m 30s"]).train
    assert train.max_seconds == 90 and load_config(None, ["train.max_time=1d2h"]).train.max_seconds == 93600
    assert why_enough(train, [0.5, 0.5], 89, "top1") == ""
    assert why_enough(train, [0.5, 0.5, 0.505], 89, "top1") == "train.patience=2: top1 has not risen by more than 0.01 in 2 evaluations"
    assert why_enough(train, [], 90, "top1") == "train.max_time=1m 30s: 1:30 are over"


class Clock:
    """Time that passes only in steps of training and, if asked, in evaluations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("visionattn.engine.trainer.time", SimpleNamespace(perf_counter=lambda: self.now))

    def drive(self, run: Trainer, *, before: Callable[[Trainer], None] = lambda run: None, evaluation: float = 0.0) -> None:
        take, evaluate = run.train_step, run.evaluate

        def step(batch: Any) -> Any:
            self.now += STEP
            before(run)
            return take(batch)

        def evaluated() -> Any:
            self.now += evaluation
            return evaluate()

        run.train_step, run.evaluate = step, evaluated  # type: ignore[method-assign]


def fit(task: Pressure, folder: Path, clock: Clock | None, *given: str, console: Console | None = None, **driven: Any) -> Trainer:
    """Train in a folder, from its last checkpoint if there is one."""
    with trainer(task, folder, settings(folder, *EPOCHS, *given), console=console) as run:
        if clock is not None:
            clock.drive(run, **driven)
        if (folder / "checkpoints" / "last").is_dir():
            run.resume(folder / "checkpoints" / "last")
        run.fit()
    return run


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What was logged, without times."""
    return [{key: line[key] for key in line if key not in ("seconds", "readings_per_second")} for line in metrics(folder, kind)]


def same_weights(one: Trainer, two: Trainer) -> bool:
    pairs = [(one.bare_model, two.bare_model), (one.ema.module, two.ema.module)]  # type: ignore[union-attr]
    return all(torch.equal(value, b.state_dict()[name]) for a, b in pairs for name, value in a.state_dict().items())


def scored(run: Trainer, values: list[float]) -> None:
    """Give evaluations these results."""
    evaluate = run.evaluate

    def evaluated() -> Any:
        found = evaluate()
        found.metrics["right"] = values[run.step // 4 - 1]
        return found

    run.evaluate = evaluated  # type: ignore[method-assign]


def test_patience(task: Pressure, tmp_path: Path) -> None:
    """The best epoch is kept, the latest in a tie; resumed with more patience, the run goes on to the same bits."""
    values, runs = [0.5, 0.6, 0.6, 0.7], {}
    for name, given in (("straight", ["null"]), ("stopped", ["1", "1", "2"])):
        for patience in given:
            with trainer(task, tmp_path / name, settings(tmp_path, *EPOCHS, f"train.patience={patience}")) as run:
                scored(run, values)
                if (tmp_path / name / "checkpoints").is_dir() and (tmp_path / name / "checkpoints" / "last").is_dir():
                    run.resume(tmp_path / name / "checkpoints" / "last")
                run.fit()
            if patience == "1":
                assert run.step == 12 and run.trained == "3 of 4 epochs" and "right has not risen in 1 evaluation" in run.ended
                assert run.best == {"metric": "right", "value": 0.6, "epoch": 3} and len(lines(tmp_path / name, "epoch")) == 3
        runs[name] = run
    assert same_weights(runs["straight"], runs["stopped"]) and runs["stopped"].ended == "" and runs["stopped"].step == 16
    for kind in ("step", "epoch"):
        assert lines(tmp_path / "straight", kind) == lines(tmp_path / "stopped", kind)


def test_time_ends_within_an_epoch_which_goes_on_when_resumed(task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = fit(task, tmp_path / "straight", None)
    clock, console = Clock(monkeypatch), Console()
    console.log_to(tmp_path / "log.txt")
    first = fit(task, tmp_path / "stopped", clock, "train.max_time=55s", console=console)
    assert first.step == 6 and first.trained == "1.5 of 4 epochs"
    last = lines(tmp_path / "stopped", "epoch")[-1]
    assert (last["step"], last["epoch"]) == (6, 1.5) and "val_right" in last
    log = (tmp_path / "log.txt").read_text()
    assert "! train.max_time=55s is enough for about 1.4 of 4 epochs" in log
    assert "ended       train.max_time=55s: 1:00 are over, after 1.5 of 4 epochs; the learning rate was " in log
    again = fit(task, tmp_path / "stopped", clock, "train.max_time=55s")
    assert again.step == 6 and len(lines(tmp_path / "stopped", "epoch")) == 2  # nothing is left to do
    second = fit(task, tmp_path / "stopped", clock, "train.max_time=1h")
    assert second.step == 16 and second.ended == "" and same_weights(straight, second)
    assert lines(tmp_path / "straight", "step") == lines(tmp_path / "stopped", "step")
    assert lines(tmp_path / "straight", "epoch") == [line for line in lines(tmp_path / "stopped", "epoch") if line["epoch"] != 1.5]


def test_time_counts_over_resumptions_with_evaluations(task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def interrupt(run: Trainer) -> None:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(task, tmp_path / "run", clock, "train.max_time=75s", before=interrupt)
    clock.now += 1000  # before somebody resumes it
    run = fit(task, tmp_path / "run", clock, "train.max_time=75s", evaluation=15)
    assert run.step == 6 and run.progress.elapsed == 90  # six steps, one evaluation before the time was over, and the final one


def test_less_time_than_was_used_evaluates_what_was_trained(task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def interrupt(run: Trainer) -> None:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(task, tmp_path / "run", clock, before=interrupt)
    run = fit(task, tmp_path / "run", clock, "train.max_time=20s")
    assert run.step == 3 and [line["epoch"] for line in lines(tmp_path / "run", "epoch")] == [0.75]


def test_time_that_ends_with_an_epoch_evaluates_it_whatever_eval_every_is(
    task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(task, tmp_path / "run", Clock(monkeypatch), "train.max_time=40s", "eval.every=4")
    found = lines(tmp_path / "run", "epoch")
    assert run.step == 4 and [line["epoch"] for line in found] == [1] and "val_right" in found[0] and run.progress.values == []


def test_balanced_classes_resume_within_an_epoch(task: Pressure, tmp_path: Path) -> None:
    """Two of 16 samples are of one class, and half of what is shown."""
    seen: dict[str, list[int]] = {"straight": [], "stopped": []}
    runs = {}
    for name in seen:
        for stop in [6] if name == "straight" else [6, 99]:

            def before(run: Trainer, name: str = name, stop: int = stop) -> None:
                if name == "stopped" and run.step == stop:
                    os.kill(os.getpid(), signal.SIGINT)

            with trainer(task, tmp_path / name, settings(tmp_path, *EPOCHS, "data.sampler=balanced")) as run:
                take = run.train_step

                def step(batch: Any, run: Trainer = run, take: Any = take, name: str = name, before: Any = before) -> Any:
                    before(run)
                    seen[name] += batch.indices
                    return take(batch)

                run.train_step = step  # type: ignore[method-assign]
                if (tmp_path / name / "checkpoints" / "last").is_dir():
                    run.resume(tmp_path / name / "checkpoints" / "last")
                try:
                    run.fit()
                except Interrupted:
                    assert run.step == 7
            runs[name] = run
    assert seen["straight"] == seen["stopped"] and same_weights(*runs.values())
    assert sum(index < 2 for index in seen["straight"]) == len(seen["straight"]) // 2 == 32
