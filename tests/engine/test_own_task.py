"""A task of one's own on ragged data: the engine calls its parts and never looks into a batch.

A sample is a reading of a sensor, several readings make a case. Readings are of different lengths, so that a batch holds lists
of vectors: nothing in it is called image, and nothing has four axes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import visionattn as va
from visionattn.config.schema import RunConfig, Section, setting
from visionattn.console import Console
from visionattn.data.check import CheckReport
from visionattn.data.loading import eval_loader
from visionattn.data.readers import UnreadableFile
from visionattn.data.splits import Data, ManifestRow
from visionattn.engine.devices import open_accelerator
from visionattn.engine.evaluate import evaluate_model
from visionattn.engine.processes import Processes
from visionattn.engine.trainer import Setup, Trainer
from visionattn.errors import UserError
from visionattn.runs.checkpoint import latest_checkpoint, read_weights
from visionattn.runs.folder import RunFolder
from visionattn.runs.load import load_model
from visionattn.tasks import TASKS, load_config, register_task
from visionattn.tasks.base import Display, Scores, Target, Task, WriterRequest
from visionattn.tasks.batch import Batch, SampleDataset

READINGS = 2  # of a case
TARGET: Target = {"unit": "bar"}


class ToyAugment(Section):
    noise: float = setting(0.05, "Standard deviation of the noise added in training.", ge=0)


class ToyConfig(RunConfig):
    task: Literal["pressure"] = setting("pressure", "Kind of job.")
    augment: ToyAugment = ToyAugment()


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Sensors:
    """One split: readings that are made when they are asked for; the last case of a broken split cannot be read."""

    name: str
    cases: list[str]
    images: Any = None

    @property
    def ids(self) -> list[str]:
        return [f"{case}/{number}" for case in self.cases for number in range(READINGS)]

    def __len__(self) -> int:
        return READINGS * len(self.cases)

    def take(self, indices: Sequence[int], name: str | None = None) -> Sensors:
        return replace(self, cases=[self.cases[index] for index in indices[::READINGS]], name=name or self.name)


class Readings(SampleDataset):
    """Samples `reading`, a vector of a length of its own, and `pressure`, what it should give."""

    def __init__(self, split: Sensors, seed: int | None = None, noise: float = 0.0) -> None:
        super().__init__(split.ids, seed, [case for case in split.cases for _ in range(READINGS)])
        self.noise = noise
        self.collate = ragged

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        if self.cases[index] == "broken":
            raise UnreadableFile(self.ids[index], "truncated")
        pressure = float(index // READINGS % 2)
        reading = 0.6 * np.random.default_rng([index, len(self)]).random(3 + index % 4) + 0.4 * pressure
        if seed is not None:
            reading = reading + self.noise * np.random.default_rng(seed).standard_normal(reading.shape)
        return {"reading": reading.tolist(), "pressure": pressure}


def ragged(samples: list[dict[str, Any]]) -> Batch:
    """Lists instead of stacked tensors."""
    read = [sample for sample in samples if "unreadable" not in sample]
    columns = {key: [sample[key] for sample in read] for key in ("index", "id", "case", "reading", "pressure")}
    broken = [(sample["id"], sample["unreadable"]) for sample in samples if "unreadable" in sample]
    data = {"readings": columns["reading"], "pressures": columns["pressure"]} if read else {}
    return Batch(data, columns["index"], columns["id"], columns["case"], broken)


# ---------------------------------------------------------------- model and parts


class Pooled(nn.Module):
    """Features of readings of any length, `[readings, 8]`."""

    cnn = False

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.drop = nn.Linear(1, 8), nn.Dropout(0.1)  # dropout, so that random state matters

    def forward(self, readings: list[list[float]]) -> torch.Tensor:
        weight = self.lift.weight
        vectors = [torch.tensor(reading, dtype=weight.dtype, device=weight.device) for reading in readings]
        return torch.stack([self.drop(torch.tanh(self.lift(vector[:, None]))).mean(0) for vector in vectors])


class Toy(nn.Module):
    """A number for each reading, and in training the logit of a second head."""

    pretrained_cfg: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.side = Pooled(), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, *, readings: list[list[float]]) -> dict[str, torch.Tensor]:
        features = self.backbone(readings)
        outputs = {"logit": self.head(features)[:, 0]}
        return {**outputs, "side": self.side(features)[:, 0]} if self.training else outputs

    def set_grad_checkpointing(self, enable: bool) -> None:
        assert not enable


class ToyObjective:
    def mix(self, batch: Batch) -> Batch:
        return batch

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        label = torch.tensor(batch["pressures"], device=outputs["logit"].device)
        parts = {name: nn.functional.binary_cross_entropy_with_logits(logit.float(), label) for name, logit in outputs.items()}
        return {"loss": parts["logit"] + 0.4 * parts["side"] if "side" in parts else parts["logit"], **parts}


class ToyMeter:
    """Share of cases that are right: the mean of the readings of a case decides."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, str, float, float]] = []

    def update(self, predictions: dict[str, torch.Tensor], batch: Batch) -> None:
        facts = zip(batch.indices, batch.ids, batch.cases, predictions["logit"].tolist(), batch["pressures"], strict=True)
        self.rows += list(facts)

    def state(self) -> Any:
        return self.rows

    def merge(self, states: list[Any]) -> None:
        self.rows += [row for state in states for row in state]

    def result(self) -> Scores:
        rows = []
        for case in dict.fromkeys(row[2] for row in sorted(self.rows)):
            own = sorted(row for row in self.rows if row[2] == case)
            right = (np.mean([row[3] for row in own]) > 0) == (np.mean([row[4] for row in own]) > 0.5)
            rows.append({"index": own[0][0], "id": own[0][1], "case": case, "readings": len(own), "right": bool(right)})
        return Scores({"right": float(np.mean([row["right"] for row in rows])), "empty": None}, [], rows)


@dataclass(frozen=True)
class ToyPrediction:
    path: str
    logit: float

    def display_row(self) -> dict[str, str]:
        return {"reading": self.path, "logit": f"{self.logit:.2f}"}

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "logit": self.logit}


class ToyWriter:
    def planned_files(self) -> list[Path]:
        return []

    def write(self, predictions: dict[str, torch.Tensor], batch: Batch) -> list[Any]:
        return [ToyPrediction(name, logit) for name, logit in zip(batch.ids, predictions["logit"].tolist(), strict=True)]

    def table(self, predictions: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
        return ["path", "logit"], [[item.path, item.logit] for item in predictions]


class Files(SampleDataset):
    """A reading per text file, numbers separated by blanks."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(list(map(str, files)))
        self.collate = ragged

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        return {"reading": [float(word) for word in Path(self.ids[index]).read_text().split()], "pressure": None}


class Pressure(Task):
    """`parts` counts the cuts that gradient accumulation asked for."""

    name = "pressure"
    config = ToyConfig
    unit = "reading"
    display = Display(metrics=("right", "empty"), curves=("right",))
    input_suffixes = frozenset({".txt"})  # type: ignore[assignment]

    def __init__(self) -> None:
        self.parts: list[list[int]] = []

    def read_data(self, config: ToyConfig) -> Data[Any]:
        train = Sensors("train", [f"t{number}" for number in range(8)])
        return Data("sensors", train, Sensors("val", ["v0", "v1", "broken"]), None, [])

    def read_split(self, config: ToyConfig, split: str, target: Target) -> Any:
        return getattr(self.read_data(config), split)

    def check_data(self, config: ToyConfig, data: Any, *, cache_dir: Path, progress: Any) -> CheckReport:
        return CheckReport([], {}, {}, {}, {})

    def manifest(self, data: Any, report: CheckReport) -> list[ManifestRow]:
        return [ManifestRow(name, "", part.name, 0, "") for part in data.sets for name in part.ids]

    def target(self, config: ToyConfig, data: Any) -> Target:
        return TARGET

    def describe(self, config: ToyConfig, target: Target) -> str:
        return f"in {target['unit']}"

    def train_dataset(self, config: ToyConfig, model: nn.Module, data: Any, report: CheckReport) -> Any:
        return Readings(data.train, config.seed, config.augment.noise)

    def eval_dataset(self, config: ToyConfig, model: nn.Module, split: Any) -> Any:
        return Readings(split)

    def file_dataset(self, config: ToyConfig, model: nn.Module, files: Sequence[Path]) -> Any:
        return Files(files)

    def check_names(self, config: ToyConfig) -> None:
        """Any name: the model is the task's own."""

    def build_model(self, config: ToyConfig, target: Target) -> nn.Module:
        assert target == TARGET
        return Toy()

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return model(readings=batch["readings"])

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Whole cases, not samples in a row."""
        cases = sorted(set(batch.cases))
        chosen = [[i for i, case in enumerate(batch.cases) if cases.index(case) % parts == part] for part in range(parts)]
        cut = [_pick(batch, rows) for rows in chosen if rows]
        self.parts.append([len(part) for part in cut])
        return cut

    def objective(self, config: ToyConfig, target: Target, dataset: Any) -> Any:
        return ToyObjective()

    def predictor(self, config: ToyConfig, target: Target, model: nn.Module, device: torch.device) -> Any:
        return lambda batch: model(readings=batch["readings"])

    def meter(self, config: ToyConfig, target: Target) -> Any:
        return ToyMeter()

    def monitor(self, config: ToyConfig) -> str:
        return "right"

    def writer(self, config: ToyConfig, target: Target, request: WriterRequest) -> Any:
        return ToyWriter()


def _pick(batch: Batch, rows: list[int]) -> Batch:
    data = {key: [values[row] for row in rows] for key, values in batch.data.items()}
    return Batch(data, *([values[row] for row in rows] for values in (batch.indices, batch.ids, batch.cases)))


# ---------------------------------------------------------------- tests


@pytest.fixture
def task() -> Iterator[Pressure]:
    own = Pressure()
    register_task(own)
    yield own
    del TASKS[own.name]


def settings(folder: Path, *overrides: str) -> RunConfig:
    common = [
        "task=pressure",
        "data.root=sensors",
        "data.workers=0",
        "train.device=cpu",
        "train.precision=fp32",
        "log.tensorboard=false",
        "log.every_steps=1",
    ]
    return load_config(None, [*common, "optim.lr=0.05", "train.batch_size=4", "train.accum=2", f"output.dir={folder}", *overrides])


@contextmanager
def trainer(task: Pressure, run: Path, config: RunConfig) -> Iterator[Trainer]:
    torch.manual_seed(0)
    data = task.read_data(config)  # type: ignore[arg-type]
    model = task.build_model(config, TARGET)  # type: ignore[arg-type]
    report = CheckReport([], {}, {}, {}, {})
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    with open_accelerator(config.train) as accelerator:
        train_set, val_set = task.train_dataset(config, model, data, report), task.eval_dataset(config, model, data.val)  # type: ignore[arg-type]
        setup = Setup(config, task, TARGET, model, ToyObjective(), train_set, val_set)
        torch.manual_seed(1)
        yield Trainer(setup, RunFolder(run), accelerator, Processes(accelerator), Console(quiet=True))


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]


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

        def stop_before_the_sixth(batch: Batch) -> tuple[float, float, bool]:
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
    config = settings(tmp_path / "runs", "train.epochs=2", "log.tensorboard=true")
    result = va.train(config, console=Console(quiet=True))
    assert result is not None and result.run == tmp_path / "runs" / "sensors-eca_resnet18" / "001"
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
