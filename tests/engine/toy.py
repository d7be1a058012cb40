"""A task of its own on ragged data, to try the engine on: it calls the parts of a task and never looks into a batch.

A sample is a reading of a sensor, several readings make a case. Readings are of different lengths, so that a batch holds lists
of vectors: nothing in it is called image, and nothing has four axes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from visionattn.config.schema import RunConfig, Section, setting
from visionattn.console import Console
from visionattn.data.check import CheckReport
from visionattn.data.readers import UnreadableFile
from visionattn.data.splits import Data, ManifestRow
from visionattn.engine.devices import open_accelerator
from visionattn.engine.processes import Processes
from visionattn.engine.setup import Setup
from visionattn.engine.trainer import Trainer
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config
from visionattn.tasks.base import Display, Scores, Target, Task, Writer, WriterRequest
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


class ToyWriter(Writer):
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

    def sample_classes(self, config: ToyConfig, dataset: Any) -> list[int]:
        """The first case is a class, the other seven are one."""
        return [int(case == "t0") for case in dataset.cases]

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


# ---------------------------------------------------------------- runs


def settings(folder: Path, *overrides: str) -> RunConfig:
    common = [
        "task=pressure",
        "data.root=sensors",
        "data.workers=0",
        "model.weights=none",
        "train.device=cpu",
        "train.precision=fp32",
        "log.to=[]",
        "log.every_steps=1",
    ]
    return load_config(None, [*common, "optim.lr=0.05", "train.batch_size=4", "train.accum=2", f"output.dir={folder}", *overrides])


@contextmanager
def trainer(
    task: Pressure, run: Path, config: RunConfig, objective: Callable[[], ToyObjective] = ToyObjective, console: Console | None = None
) -> Iterator[Trainer]:
    torch.manual_seed(0)
    data = task.read_data(config)  # type: ignore[arg-type]
    model = task.build_model(config, TARGET)  # type: ignore[arg-type]
    report = CheckReport([], {}, {}, {}, {})
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    with open_accelerator(config.train) as accelerator:
        train_set, val_set = task.train_dataset(config, model, data, report), task.eval_dataset(config, model, data.val)  # type: ignore[arg-type]
        classes = task.sample_classes(config, train_set) if config.data.sampler == "balanced" else None
        setup = Setup(config, task, TARGET, model, objective(), train_set, val_set, classes)
        torch.manual_seed(1)
        yield Trainer(setup, RunFolder(run), accelerator, Processes(accelerator, 60), console or Console(quiet=True))


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]
