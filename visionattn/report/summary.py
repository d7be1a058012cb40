"""What the folder of a run tells of it: how it was trained, how far it came, and how its figures changed."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.console import duration
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.runs.folder import RunFolder
from visionattn.runs.load import best_weights
from visionattn.tasks.base import Display, Task

_LARGEST = 2**27  # bytes of a JSON file that is read for a page


@dataclass(frozen=True)
class RunSummary:
    """A run, read from its folder, which may come from somebody else: what is of another type than expected is left out.

    Attributes:
        path: of the folder.
        config: of the run.
        task: its task.
        state: content of `run.json`.
        history: lines of `metrics.jsonl`.
    """

    path: Path
    config: RunConfig
    task: Task
    state: dict[str, Any]
    history: list[dict[str, Any]]

    @classmethod
    def of(cls, run: RunFolder, config: RunConfig, task: Task) -> RunSummary:
        return cls(run.path, config, task, run.read_state(), run.read_metrics())

    @property
    def name(self) -> str:
        """The last two parts of its path, which tell runs of a project apart."""
        whole = self.path.resolve()
        return f"{whole.parent.name}/{whole.name}"

    @property
    def display(self) -> Display:
        return self.task.display

    @property
    def monitor(self) -> str:
        """Metric that selects the best checkpoint."""
        chosen = str(self.config.eval.best)
        return self.task.monitor(self.config) if chosen == "auto" else chosen

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of epochs."""
        return [line for line in self.history if line.get("kind") == "epoch" and number(line.get("epoch")) is not None]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of steps, with their place in epochs as `at`."""
        first = self.epochs[0] if self.epochs else {}
        per_epoch = (number(first.get("step")) or 1) / (first.get("epoch") or 1)
        lines = [line for line in self.history if line.get("kind") == "step" and number(line.get("step")) is not None]
        return [{**line, "at": line["step"] / max(per_epoch, 1e-9)} for line in lines]

    def points(self, key: str) -> list[tuple[float, float]]:
        """Values of the epochs' lines, by epoch."""
        return [(float(line["epoch"]), value) for line in self.epochs if (value := number(line.get(key))) is not None]

    def step_points(self, key: str) -> list[tuple[float, float]]:
        """Values of the steps' lines, by epoch."""
        return [(line["at"], value) for line in self.steps if (value := number(line.get(key))) is not None]

    @cached_property
    def best_epoch(self) -> float | None:
        """The epoch of the best checkpoint: of equals the last one."""
        values = self.points(f"val_{self.monitor}")
        return max(values, key=lambda point: (point[1], point[0]))[0] if values else None

    @property
    def done(self) -> bool:
        """Whether it ended: what `run.json` says of the end may be that of an earlier one, before it was resumed."""
        return self.state.get("state") == "done"

    @property
    def ended(self) -> str:
        """Why it ended before its last step; empty if it did not."""
        return str(self.state.get("ended") or "") if self.done else ""

    @property
    def trained(self) -> str:
        """How many epochs it was trained."""
        if self.done and isinstance(self.state.get("trained"), str):
            return str(self.state["trained"])
        done = self.epochs[-1]["epoch"] if self.epochs else 0
        return f"{done:.4g} of {self.config.train.epochs} epochs"

    @property
    def seconds(self) -> float | None:
        """Time of training and its evaluations; of a run that did not end that of its epochs."""
        own = number(self.state.get("seconds"))
        if self.done and own is not None:
            return own
        epochs = [value for _, value in self.points("seconds")]
        return sum(epochs) if epochs else None

    @property
    def time(self) -> str:
        return "n/a" if self.seconds is None else duration(self.seconds)

    @property
    def parameters(self) -> str:
        """Their number, in millions where it is that large."""
        found = number(self.state.get("parameters"))
        return "n/a" if found is None else f"{found / 1e6:.2f} M" if found >= 1e5 else f"{found:,.0f}"

    @property
    def samples(self) -> dict[str, int]:
        """Samples of each split."""
        known = self.state.get("samples")
        if isinstance(known, dict) and all(isinstance(value, int) for value in known.values()):
            return {str(split): value for split, value in known.items()}
        try:
            with (self.path / "data" / "manifest.csv").open(encoding="utf-8", newline="") as file:
                return dict(Counter(row["split"] for row in csv.DictReader(file)))
        except (OSError, ValueError, KeyError, csv.Error):
            return {}

    @property
    def data_name(self) -> str:
        known, root = self.state.get("data_name"), getattr(self.config.data, "root", None)
        if isinstance(known, str) and known:
            return known
        return Path(str(root)).name if root else "its data"

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Content of `eval/val/metrics.json`: the evaluation of the best checkpoint; empty if there is none, or of an earlier one only."""
        found = read_object(self.path / "eval" / "val" / "metrics.json")
        with suppress(UserError):  # a run is compared without its checkpoints too
            if found.get("weights", best := best_weights(RunFolder(self.path))) != best:
                return {}
        return found

    @property
    def metrics(self) -> dict[str, float | None]:
        """Validation metrics of the best checkpoint, from its evaluation or else from its epoch."""
        found = self.evaluation.get("metrics")
        if isinstance(found, dict):
            return {str(name): number(value) for name, value in found.items()}
        line = next((line for line in self.epochs if line["epoch"] == self.best_epoch), {})
        return {key.removeprefix("val_"): number(value) for key, value in line.items() if key.startswith("val_") and key != "val_count"}

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric, where the evaluation has one."""
        known = self.evaluation.get("interval")
        bounds = known.get(name) if isinstance(known, dict) else None
        if not isinstance(bounds, list) or len(bounds) != 2:
            return None
        low, high = map(number, bounds)
        return None if low is None or high is None else (low, high)

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Warnings of the data check."""
        notes = read_object(self.path / "data" / "check.json").get("notes")
        return [note for note in notes if isinstance(note, dict) and note.get("level") == "warning"] if isinstance(notes, list) else []

    def split_text(self) -> str:
        """Its data in a line."""
        return ", ".join(f"{split} {counted(count, self.task.unit)}" for split, count in self.samples.items())


def number(value: Any) -> float | None:
    """A finite number from a file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or a damaged or very large one."""
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Plain nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
