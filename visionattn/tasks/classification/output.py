"""Results of `predict` for classification: the most probable classes of each image, and the probabilities of all."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.files import atomic_write, csv_lines
from visionattn.names import shown
from visionattn.spill import Table
from visionattn.tasks import base
from visionattn.tasks.base import WriterRequest
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_scores import answer, probabilities

_PROBABILITIES = "probabilities.csv"


@dataclass(frozen=True)
class Prediction(base.Prediction):
    """One image: classes with their probabilities, most probable first.

    Attributes:
        answer: with thresholds, the class or `unsure`; of several labels per image their names, or `none`.
    """

    path: str
    classes: list[str]
    probabilities: list[float]
    answer: str | None = None

    def display_row(self) -> dict[str, str]:
        """A row of the table on the terminal."""
        return {"image": self.path, "class": self.answer or self.classes[0], "probability": f"{self.probabilities[0]:.3f}"}

    def as_dict(self) -> dict[str, Any]:
        """The entry of `predictions.json`; without thresholds it has no answer."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class RankedClasses(base.Writer):
    """Keeps probabilities until all images are done, on the disk if they are many.

    Args:
        names: of the classes, as shown.
        thresholds: of each class; None for no answers.
    """

    def __init__(self, names: list[str], request: WriterRequest, *, multi_label: bool, thresholds: np.ndarray | None) -> None:
        self.names, self.files, self.topk = names, list(request.files), min(request.topk, len(names))
        self.multi_label, self.thresholds = multi_label, thresholds
        self.target = request.out / _PROBABILITIES if request.out is not None and "probs" in request.formats else None
        self.indices, self.found = array("q"), Table()

    def planned_files(self) -> list[Path]:
        return [] if self.target is None else [self.target]

    def write(self, predictions: torch.Tensor, batch: Batch) -> list[Prediction]:
        """Results of logits `[B, classes]`."""
        found = probabilities(predictions, multi_label=self.multi_label).cpu()
        if self.target is not None:
            self.indices.extend(batch.indices)
            self.found.append(found.numpy())
        return [self._ranked(str(self.files[index]), row) for index, row in zip(batch.indices, found, strict=True)]

    def finish(self) -> None:
        if self.target is not None:
            columns = ["path", *(f"p({name})" for name in self.names)]
            atomic_write(self.target, csv_lines(columns, self._rows()))

    def table(self, predictions: Sequence[Prediction]) -> tuple[list[str], Iterable[list[Any]]]:
        """Classes and probabilities in columns by rank."""
        answered = ["answer"] * (self.thresholds is not None)
        columns = ["path", *answered, *(name for rank in range(1, self.topk + 1) for name in (f"class{rank}", f"probability{rank}"))]
        return columns, map(_table_row, predictions)

    def _rows(self) -> Iterator[list[str]]:
        for index, row in zip(self.indices, self.found.array(), strict=True):
            yield [str(self.files[index]), *(f"{value:.6f}" for value in row.tolist())]

    def _ranked(self, path: str, found: torch.Tensor) -> Prediction:
        values, order = found.topk(self.topk)
        text = None
        if self.thresholds is not None:
            text = answer(found.numpy(), self.names, self.thresholds, multi_label=self.multi_label) or "none"
        return Prediction(path, [self.names[index] for index in order.tolist()], values.tolist(), text)


def present(found: Any) -> base.Answer:
    """The prediction for one image as an answer of `serve`."""
    facts = {key: value for key, value in found.as_dict().items() if key != "path"}
    bars = [base.Bar(shown(name), share) for name, share in zip(found.classes, found.probabilities, strict=True)]
    return base.Answer(facts, shown(found.answer or found.classes[0]), "probability", bars)


def _table_row(item: Prediction) -> list[Any]:
    pairs = zip(item.classes, (f"{value:.6f}" for value in item.probabilities), strict=True)
    return [item.path, *([] if item.answer is None else [item.answer]), *(value for pair in pairs for value in pair)]
