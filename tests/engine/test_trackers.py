"""Trackers: a run is logged whole and once, whatever stops it, and no tracker stops a run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import typing
from pathlib import Path

import mlflow
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, MLflowTracker
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import visionattn as va
from tests.commands import done, only_run, refused
from tests.commands import settings as small
from tests.engine.toy import Pressure, settings
from visionattn.config.schema import LogConfig, RunConfig, Tracker
from visionattn.console import Console
from visionattn.engine.devices import open_accelerator
from visionattn.errors import Interrupted
from visionattn.report.trackers import _IDS, Trackers, _options, _scalars, require_packages, tracking
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config
from visionattn.tasks.base import Display, Pictures


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow in a local folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path / "mlruns"


def logged() -> Run:
    """The one run in the store."""
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([item.experiment_id for item in client.search_experiments()])
    return run


def history() -> dict[str, list[tuple[int, float]]]:
    """Steps and values of its metrics, as often as they were logged."""
    run, client = logged(), mlflow.MlflowClient()
    return {name: [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Compute the expected values from the run folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in RunFolder(folder).read_metrics():
        for name, value in _scalars(line).items():
            found.setdefault(name, []).append((line["step"], value))
    return found


def without_best(values: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: value for name, value in values.items() if not name.startswith("best/")}


def train(folder: Path, *more: str, resume: Path | None = None) -> Path:
    """Train the toy for two epochs, or resume its run."""
    given = settings(folder / "runs", "train.epochs=2", "train.accum=1", "log.to=[mlflow]", *more)
    result = va.train(given, resume=resume, console=Console())
    assert result is not None
    return result.run


def test_a_server_that_is_not_there_warns_once_and_gets_everything_later(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    local = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the user's own
    more = small(tmp_path, "log.every_steps=1", "log.to=[mlflow]", "log.images=1")
    output = done("train", "--data", flowers, *more).output
    assert output.count("mlflow: ") == 1 and f"! mlflow: API request to {closed}" in output and "refused; nothing more is logged" in output
    assert "done in" in output and os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0" and "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    folder = only_run(tmp_path)
    assert json.loads((folder / "trackers.json").read_text())["mlflow"] == {"id": "", "done": {}, "failed": True}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", local)
    done("train", "--resume", folder, "train.epochs=2")
    run, values = logged(), expected(folder)
    assert run.info.status == "FINISHED" and run.info.run_name == "001"
    assert mlflow.get_experiment(run.info.experiment_id).name == folder.parent.name == "flowers-eca_resnet18"
    assert without_best(history()) == values and len(values["train/loss"]) == 6 and len(values["val/top1"]) == 2
    assert {"train/lr", "train/grad_norm", "epoch/number", "epoch/train_loss", "epoch/seconds", "val/loss", "val/count"} <= values.keys()
    metrics = json.loads((folder / "eval/val/metrics.json").read_text())["metrics"]
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("best/")} == {
        f"best/{name}": value for name, value in metrics.items() if value is not None
    }
    assert run.data.params["model.args.width"] == "8" and run.data.params["optim.lr"] == "0.001" and len(run.data.params) > 60
    pictures = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id, "pictures/val")}
    assert {"pictures/val/predictions.png", "pictures/val/confusion_matrix.png"} <= pictures


def test_a_resumed_run_continues_the_same_one_and_logs_nothing_twice(task: Pressure, tmp_path: Path) -> None:
    both = "log.to=[tensorboard,mlflow]"
    folder = train(tmp_path, both)
    first, record = logged().info.run_id, json.loads((tmp_path / "runs/sensors-davit_tiny/001/trackers.json").read_text())
    assert without_best(history()) == expected(folder)
    train(tmp_path, both, "train.epochs=3", resume=folder)
    assert logged().info.run_id == first == record["mlflow"]["id"]
    # A kill after the last line, before its checkpoint was renamed: the last epoch is trained and logged again.
    shutil.rmtree(folder / "checkpoints/last")
    (folder / "trackers.json").write_text(json.dumps(record))
    before = history()
    train(tmp_path, both, "train.epochs=3", resume=folder)
    values, again = without_best(history()), expected(folder)
    assert values == without_best(before)
    assert values["epoch/seconds"] != again["epoch/seconds"], "it was trained again"
    assert [step for step, _ in values["val/right"]] == [4, 8, 12] and len(values["train/loss"]) == 12
    assert all(values[name] == again[name] for name in ("train/loss", "train/grad_norm", "train/lr", "val/right", "epoch/train_loss"))
    assert logged().info.status == "FINISHED"
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    for name in again:
        shown = [(item.step, item.value) for item in events.Scalars(name)]
        assert shown == [(step, pytest.approx(value)) for step, value in again[name]]


def test_a_tracker_that_is_added_when_a_run_resumes_gets_all_of_it(task: Pressure, tmp_path: Path) -> None:
    folder = train(tmp_path, "log.to=[]")
    assert not (folder / "trackers.json").exists()
    train(tmp_path, "train.epochs=3", "log.to=mlflow", resume=folder)
    assert without_best(history()) == expected(folder) and logged().data.params["train.epochs"] == "3"


def test_a_server_that_fails_during_a_run_warns_once_and_gets_the_rest_later(
    task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MLflowTracker.log

    def fails(self: MLflowTracker, values: dict[str, float], step: int | None = None, **given: object) -> None:
        if step is not None and step > 3:
            raise ConnectionError("the server is gone\nand more lines")
        log(self, values, step, **given)

    with monkeypatch.context() as patch:
        patch.setattr(MLflowTracker, "log", fails)
        folder = train(tmp_path)
    output = capsys.readouterr().out
    assert output.count("! mlflow: ") == 1 and "! mlflow: the server is gone; nothing more is logged there unless" in output
    assert logged().info.status == "FAILED" and [step for step, _ in history()["train/loss"]] == [1, 2, 3]
    train(tmp_path, "train.epochs=3", resume=folder)
    assert f"continues run {logged().info.run_id}" in capsys.readouterr().out
    assert without_best(history()) == expected(folder) and logged().info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(Interrupted("now"), "KILLED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError(), "FAILED")])
def test_how_a_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    config = load_config(None, ["log.to=mlflow"])
    with open_accelerator(config.train), pytest.raises(type(error)), opened(tmp_path, config):
        raise error
    assert logged().info.status == status


def opened(folder: Path, config: RunConfig) -> typing.ContextManager[Trackers]:
    return tracking(RunFolder(folder), config, Display(), Pictures(), Console(quiet=True), 0)


def test_a_record_that_is_damaged_begins_a_new_run(tmp_path: Path) -> None:
    config = load_config(None, ["log.to=mlflow"])
    for text in ("{", "[]", '{"mlflow": 3}', '{"mlflow": {"id": "x", "done": {"step": "y"}, "failed": false}}'):
        (tmp_path / "trackers.json").write_text(text)
        with open_accelerator(config.train), opened(tmp_path, config) as trackers:
            assert list(trackers.opened) == ["mlflow"]


def test_r007_a_package_that_is_not_installed(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comet_ml").mkdir()  # a folder that a tracker makes is not its package
    monkeypatch.syspath_prepend(tmp_path)
    text = refused(tmp_path, "VA-R007", 7, "train", "--data", flowers, *small(tmp_path, "log.to=[tensorboard,comet_ml]"))
    assert "log.to: comet_ml is not installed\n  fix   pip install comet_ml\n        or train without: log.to=[tensorboard]\n" in text
    require_packages(LogConfig(to=["tensorboard", "mlflow"]))


def test_the_trackers_are_those_of_accelerate(tmp_path: Path) -> None:
    names = typing.get_args(Tracker)
    assert set(names) == set(LOGGER_TYPE_TO_CLASS) == _IDS.keys()
    assert all(isinstance(_options(RunFolder(tmp_path), load_config(None), name, "", 0), dict) for name in names)


def test_folds_are_runs_of_one_project(tmp_path: Path) -> None:
    config = load_config(None, ["data.fold=[2,5]"])
    options = _options(RunFolder(tmp_path / "flowers/001/fold2"), config, "wandb", "", 0)
    assert options == {"name": "001-fold2", "group": "001"}
    assert _options(RunFolder(tmp_path / "flowers/002"), config, "wandb", "abc", 0) == {
        "name": "002",
        "group": None,
        "id": "abc",
        "resume": "allow",
    }
