"""Results of `predict` for classification: the most probable classes of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionattn.tasks import base
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_scores import probabilities


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
        self.names, self.files, self.topk, self.multi_label = names, files, min(topk, len(names)), multi_label

    def write(self, predictions: torch.Tensor, batch: Batch) -> list[Prediction]:
        """Results of logits `[B, classes]`."""
        found = probabilities(predictions, multi_label=self.multi_label)
        return [self._ranked(str(self.files[index]), row) for index, row in zip(batch.indices, found, strict=True)]

    def table(self, predictions: Sequence[Prediction]) -> tuple[list[str], Iterable[list[Any]]]:
        """Classes and probabilities in columns by rank."""
        columns = ["path", *(name for rank in range(1, self.topk + 1) for name in (f"class{rank}", f"probability{rank}"))]
        return columns, map(_table_row, predictions)

    def _ranked(self, path: str, found: torch.Tensor) -> Prediction:
        values, order = found.topk(self.topk)
        return Prediction(path, [self.names[index] for index in order.tolist()], values.tolist())


def _table_row(item: Prediction) -> list[Any]:
    pairs = zip(item.classes, (f"{value:.6f}" for value in item.probabilities), strict=True)
    return [item.path, *(value for pair in pairs for value in pair)]
