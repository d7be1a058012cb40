"""A task of one's own: the engine trains, evaluates, saves, resumes and predicts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionattn as va
from tests.engine.toy import (
    TARGET,
    Pressure,
    Readings,
    Sensors,
    Toy,
    ToyConfig,
    ToyObjective,
    ToyPrediction,
    metrics,
    ragged,
    settings,
    trainer,
)
from visionattn.console import Console
from visionattn.data.loading import eval_loader
from visionattn.engine.evaluate import evaluate_model
from visionattn.errors import UserError
from visionattn.runs.checkpoint import latest_checkpoint, read_weights
from visionattn.runs.load import load_model
from visionattn.tasks import load_config
from visionattn.tasks.batch import Batch


def evaluated(task: Pressure, model: nn.Module, split: Sensors, batch_size: int = 1) -> Any:
    loader, place = eval_loader(Readings(split), batch_size, 0), torch.device("cpu")
    return evaluate_model(task, ToyConfig(), TARGET, model, ToyObjective(), loader, split="val", device=place)


def test_trains_evaluates_saves_and_resumes_to_the_same_bits(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, "train.epochs=4", "train.save_every=1", "train.ema=0.9")
    with trainer(task, tmp_path / "straight", config) as straight:
        straight.fit()
        evaluation = straight.evaluate()
    assert (evaluation.task, evaluation.count, evaluation.metrics["empty"]) == ("pressure", 4, None)
    assert evaluation.unreadable == [("broken/0", "truncated"), ("broken/1", "truncated")]
    assert [(row["index"], row["case"], row["readings"]) for row in evaluation.scores.per_case] == [(0, "v0", 2), (2, "v1", 2)]
    assert len(task.parts) == 8 and all(sum(part) == 8 and len(part) == 2 for part in task.parts)

    class Stopped(Exception):
        pass

    with trainer(task, tmp_path / "stopped", config) as first:
        take = first.train_step

        def stop_before_the_sixth(batch: Batch) -> tuple[float | None, float, bool]:
            if first.step == 5:
                raise Stopped
            return take(batch)

        first.train_step = stop_before_the_sixth  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            first.fit()
    with trainer(task, tmp_path / "stopped", config) as second:
        torch.manual_seed(123)  # what resumption must undo
        checkpoint = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
        assert checkpoint is not None
        second.resume(checkpoint)
        assert second.step == 5
        second.fit()
    for name, tensor in straight.bare_model.state_dict().items():
        assert torch.equal(tensor, second.bare_model.state_dict()[name]), name
    assert straight.best == second.best and straight.best is not None and straight.best["metric"] == "right"
    weights = read_weights(tmp_path / "stopped" / "checkpoints" / "best")
    assert weights.keys() == straight.bare_model.state_dict().keys()
    assert {line["step"]: line["loss"] for line in metrics(tmp_path / "straight", "step")} == {
        line["step"]: line["loss"] for line in metrics(tmp_path / "stopped", "step")
    }


def test_it_learns_and_the_best_value_is_that_of_its_checkpoint(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, "train.epochs=60", "augment.noise=0")
    with trainer(task, tmp_path / "run", config) as done:
        done.fit()
    epochs = metrics(tmp_path / "run", "epoch")
    assert epochs[-1]["train_loss"] < 0.8 * epochs[0]["train_loss"] and done.best is not None and done.best["value"] == 1.0
    assert "readings_per_second" in metrics(tmp_path / "run", "step")[0]
    model = Toy()
    model.load_state_dict(read_weights(tmp_path / "run" / "checkpoints" / "best"))
    val = Sensors("val", ["v0", "v1", "broken"])
    again, whole = evaluated(task, model, val), evaluated(task, model, val, batch_size=3)
    assert again.metrics["right"] == done.best["value"] == whole.metrics["right"]
    losses = []
    for index in range(4):  # per sample, not per batch
        batch = ragged([Readings(val)[index]])
        with torch.no_grad():
            losses.append(float(ToyObjective().loss(model.eval()(readings=batch["readings"]), batch)["loss"]))
    assert again.metrics["loss"] == pytest.approx(sum(losses) / 4) and whole.metrics["loss"] == pytest.approx(sum(losses) / 4)


def test_steps_instead_of_epochs(task: Pressure, tmp_path: Path) -> None:
    config = settings(tmp_path, "train.steps=5", "train.epochs=1", "schedule.warmup_steps=2")
    with trainer(task, tmp_path / "run", config) as done:
        done.fit()  # two steps an epoch
    assert [(line["epoch"], line["step"]) for line in metrics(tmp_path / "run", "epoch")] == [(1, 2), (2, 4), (3, 5)]
    rates = [line["lr"] for line in metrics(tmp_path / "run", "step")]
    assert rates[0] < rates[1] < rates[2] and len(rates) == 5 and done.step == 5
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with trainer(task, tmp_path / "run", config) as again:
        again.resume(tmp_path / "run" / "checkpoints" / "last")
        again.fit()
    assert again.step == 5 and (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_split_without_readable_samples(task: Pressure) -> None:
    with pytest.raises(UserError) as caught:
        evaluated(task, Toy(), Sensors("val", ["broken"]))
    assert caught.value.code == "VA-D010" and caught.value.why == "truncated" and "reading" in caught.value.what


def test_a_batch_is_cut_along_its_samples_and_nothing_else() -> None:
    data = {"vector": torch.arange(5), "rows": torch.arange(10).view(5, 2), "ragged": [[1], [2, 2], [], [4], [5]], "spacing": (1.0, 2.0)}
    batch = Batch(data, [3, 4, 5, 6, 7], list("abcde"), list("vvwww"), [("f", "x")])
    one, two = batch.split(2)
    assert [part["vector"].tolist() for part in (one, two)] == [[0, 1, 2], [3, 4]] and two["rows"].tolist() == [[6, 7], [8, 9]]
    assert one["ragged"] == [[1], [2, 2], []] and one["spacing"] == two["spacing"] == (1.0, 2.0)
    assert (two.indices, two.ids, two.cases) == ([6, 7], ["d", "e"], ["w", "w"])
    assert one.unreadable == two.unreadable == [] and len(batch.split(9)) == 5


def test_the_jobs_run_it(task: Pressure, tmp_path: Path) -> None:
    """Train, resume, evaluate and predict by the name of the task alone."""
    config = settings(tmp_path / "runs", "train.epochs=2", "log.to=[tensorboard]")
    result = va.train(config, console=Console(quiet=True))
    assert result is not None and result.run == tmp_path / "runs" / "sensors-davit_tiny" / "001"
    assert (result.run / "eval" / "val" / "per_reading.csv").read_text().splitlines()[0] == "id,case,readings,right"
    page = (result.run / "report.html").read_text()
    assert "Validation, 4 readings" in page and "in bar" in page
    again = va.train(load_config(result.run / "config.yaml", ["train.epochs=3"]), resume=result.run, console=Console(quiet=True))
    assert again is not None and [line["epoch"] for line in metrics(result.run, "epoch")] == [1, 2, 3]
    evaluation = va.evaluate(result.run, console=Console(quiet=True))
    assert evaluation.metrics == again.metrics and evaluation.count == 4
    loaded = load_model(result.run)
    assert loaded.task is task and loaded.target == TARGET and isinstance(loaded.model, Toy)
    (tmp_path / "one.txt").write_text("0.9 0.8 0.9")
    found, unreadable = va.predict(result.run, [tmp_path / "*.txt"], out=tmp_path / "out")
    with torch.no_grad():
        assert (
            found == [ToyPrediction(str(tmp_path / "one.txt"), float(loaded.model(readings=[[0.9, 0.8, 0.9]])["logit"]))] and not unreadable
        )
    assert (tmp_path / "out" / "predictions.csv").read_text().startswith("path,logit\n")
