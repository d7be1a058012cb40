"""What a person sees of classification: pictures, worst images, the classes of new images. A `View`, see `training/view.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from visionattn.data.sets import ClassificationDataset
from visionattn.tasks.classification import Classification, Guesses, confusion_matrix, names_of
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import Panel, Shown, confusion_figure, picture_grid, readable_picture, unnormalise
from visionattn.training.run import csv_text

CURVES = ("top1", "balanced_accuracy", "macro_f1", "auroc")
CLASS_CURVES: tuple[str, ...] = ()
WORST_CAPTION = "truth -> prediction, with its probability"
WORST_COLUMNS = 8


def batch_figure(batch: dict[str, Any], task: Classification, cfg: dict[str, Any], count: int) -> Figure | None:
    """A training batch as the network sees it; None where nothing of it could be read."""
    pictures = [unnormalise(image, cfg) for image in batch["image"][:count]]
    titles = [label_text(label, task.classes) for label in batch["label"][:count].numpy()]
    return picture_grid(pictures, titles) if pictures else None


def predictions_figure(evaluation: Evaluation, dataset: ClassificationDataset, classes: list[str], count: int) -> Figure:
    """Images spread over the split, titled truth -> guess; green where right, red where wrong."""
    rows = np.unique(np.linspace(0, evaluation.count - 1, min(count, evaluation.count)).astype(int))
    found: Guesses = evaluation.scores.details
    pictures, titles, colors = [], [], []
    for row in rows:
        picture = readable_picture(dataset.image_set.images, int(found.indices[row]))
        if picture is None:
            continue
        probabilities, label = found.probabilities[row], found.labels[row]
        if np.ndim(label) == 0:
            guess = int(probabilities.argmax())
            right = guess == label
            text = f"{classes[guess]} {probabilities[guess]:.2f}"
        else:
            right = bool(((probabilities >= 0.5) == (label > 0.5)).all())
            text = label_text(probabilities, classes)
        pictures.append(picture)
        titles.append(text if right else f"{label_text(label, classes)} ->\n{text}")
        colors.append("green" if right else "firebrick")
    return picture_grid(pictures, titles, colors) if pictures else Figure()


def panels(evaluation: Evaluation, classes: list[str]) -> list[Panel]:
    """The confusion matrix, of single labels."""
    if evaluation.scores.details.labels.ndim == 2:
        return []
    return [Panel("confusion", "Confusion matrix", _confusion_figure(evaluation, classes))]


def worst(evaluation: Evaluation, dataset: ClassificationDataset, classes: list[str], count: int) -> list[Shown]:
    """Wrong images, by how little probability the truth got."""
    found: Guesses = evaluation.scores.details
    shown = []
    for rank, row in enumerate(_worst_rows(found, count)):
        picture = readable_picture(dataset.image_set.images, int(found.indices[row]))
        if picture is not None:
            truth, guess = label_text(found.labels[row], classes), _guess(found, row, classes)
            shown.append(Shown(f"{rank + 1:02d}_{truth}_as_{guess}", f"{truth} ->\n{guess}", picture))
    return shown


def image_rows(evaluation: Evaluation, classes: list[str]) -> list[dict[str, Any]]:
    """Rows of per_image.csv, with the probability of every class."""
    found: Guesses = evaluation.scores.details
    names = [f"p({name})" for name in classes]
    rows = zip(evaluation.scores.per_image, found.probabilities.tolist(), strict=True)
    return [row | dict(zip(names, probabilities, strict=True)) for row, probabilities in rows]


def label_text(label: Any, classes: list[str]) -> str:
    """Class name of an index; names of all classes that are on in a vector."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return ", ".join(names_of(label, classes)) or "none"


def _confusion_figure(evaluation: Evaluation, classes: list[str]) -> Figure:
    counts = confusion_matrix(evaluation.scores.details.probabilities, evaluation.scores.details.labels)
    top1 = evaluation.metrics["top1"]
    title = f"{evaluation.split}: {evaluation.count} images, top-1 {100 * (top1 or 0):.2f} %"
    return confusion_figure(counts, classes, title, counts.astype(str))


def _worst_rows(found: Guesses, count: int) -> list[int]:
    """Rows of an evaluation by how little probability the truth got, worst first; only wrong ones."""
    probabilities, labels = found.probabilities, found.labels
    if labels.ndim == 1:
        truth = probabilities[np.arange(len(labels)), labels]
        wrong = probabilities.argmax(1) != labels
    else:
        truth = 1 - np.abs(probabilities - labels).max(1)
        wrong = truth < 0.5
    order = np.argsort(truth, kind="stable")
    return [int(row) for row in order if wrong[row]][:count]


def _guess(found: Guesses, row: int, classes: list[str]) -> str:
    probabilities = found.probabilities[row]
    if found.labels.ndim == 2:
        return label_text(probabilities, classes)
    return f"{classes[int(probabilities.argmax())]} {probabilities.max():.2f}"


# ---------------------------------------------------------------- predict


@dataclass(frozen=True)
class Prediction:
    """One image: the classes with their probabilities, most probable first."""

    path: str
    classes: list[str]
    probabilities: list[float]

    def shown(self) -> dict[str, str]:
        """A row for people."""
        return {"image": self.path, "class": self.classes[0], "probability": f"{self.probabilities[0]:.3f}"}

    def as_dict(self) -> dict[str, Any]:
        """What `predict --json` prints of the image."""
        return asdict(self)


def top_classes(path: str, probabilities: torch.Tensor, classes: list[str], topk: int) -> Prediction:
    """The most probable classes of one image from its probabilities `[classes]`."""
    values, order = probabilities.topk(min(topk, len(classes)))
    return Prediction(path, [classes[index] for index in order.tolist()], values.tolist())


def csv_table(predictions: Sequence[Prediction]) -> str:
    """`predictions.csv`: the classes of each image with their probabilities, in columns by rank."""
    count = max(len(prediction.classes) for prediction in predictions)
    columns = ["path", *(name for rank in range(1, count + 1) for name in (f"class{rank}", f"probability{rank}"))]
    rows = [
        [item.path, *(value for pair in zip(item.classes, (f"{p:.6f}" for p in item.probabilities), strict=True) for value in pair)]
        for item in predictions
    ]
    return csv_text(columns, rows)
