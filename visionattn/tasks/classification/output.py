"""Results of `predict` for classification: the most probable classes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionattn.tasks import base
from visionattn.tasks.batch import Batch
from visionattn.tasks.classification.scores import probabilities


@dataclass(frozen=True)
class Prediction(base.Prediction):
    """One image: classes with their probabilities, most probable first."""

    path: str
    classes: list[str]
    probabilities: list[float]

    def display_row(self) -> dict[str, str]:
        """A row of the table on the terminal."""
        return {"image": self.path, "class": self.classes[0], "probability": f"{self.probabilities[0]:.3f}"}


class RankedClasses(base.Writer):
    """Writes nothing but the tables.

    Args:
        names: of the classes, as shown.
        topk: classes per image.
    """

    def __init__(self, names: list[str], files: Sequence[Path], topk: int, *, multi_label: bool) -> None:
        self.names, self.files, self.topk, self.multi_label = names, files, topk, multi_label

    def write(self, predictions: torch.Tensor, batch: Batch) -> list[Prediction]:
        """Results of logits `[B, classes]`."""
        found = probabilities(predictions, multi_label=self.multi_label)
        return [self._ranked(str(self.files[index]), row) for index, row in zip(batch.indices, found, strict=True)]

    def table(self, predictions: Sequence[Prediction]) -> tuple[list[str], list[list[Any]]]:
        """Classes and probabilities in columns by rank."""
        count = max(len(prediction.classes) for prediction in predictions)
        columns = ["path", *(name for rank in range(1, count + 1) for name in (f"class{rank}", f"probability{rank}"))]
        rows = [
            [item.path, *(value for pair in zip(item.classes, (f"{p:.6f}" for p in item.probabilities), strict=True) for value in pair)]
            for item in predictions
        ]
        return columns, rows

    def _ranked(self, path: str, found: torch.Tensor) -> Prediction:
        values, order = found.topk(min(self.topk, len(self.names)))
        return Prediction(path, [self.names[index] for index in order.tolist()], values.tolist())
