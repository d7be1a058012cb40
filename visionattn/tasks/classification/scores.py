"""Metrics of classification, over all images of a split at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from visionattn.tasks.base import Metrics, Scores
from visionattn.tasks.batch import Batch
from visionattn.tasks.means import mean, ratio


@dataclass(frozen=True)
class Guesses:
    """Probabilities and truth of every image of a split, in its order.

    Attributes:
        probabilities: `[N, classes]`.
        labels: `[N]` class indices, or `[N, classes]` 0/1.
        indices: `[N]`, positions in the split.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


class ClassificationMeter:
    """Keeps the probabilities of all images: AUROC and the confusion matrix need them at once."""

    def __init__(self, classes: list[str], *, multi_label: bool) -> None:
        self.classes, self.multi_label = classes, multi_label
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.names: dict[int, tuple[str, str]] = {}  # id and case by position

    def update(self, predictions: torch.Tensor, batch: Batch) -> None:
        """Add logits `[B, classes]` and labels."""
        found = probabilities(predictions, multi_label=self.multi_label).cpu().numpy()
        self.parts.append((found, batch["label"].cpu().numpy(), np.asarray(batch.indices)))
        self.names |= dict(zip(batch.indices, zip(batch.ids, batch.cases, strict=True), strict=True))

    def state(self) -> Any:
        return self.parts, self.names

    def merge(self, states: list[Any]) -> None:
        for parts, names in states:
            self.parts += parts
            self.names |= names

    def result(self) -> Scores:
        """Scores with the interval of top-1, and `Guesses` as details."""
        found, labels, indices = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        order = np.argsort(indices, kind="stable")
        guesses = Guesses(found[order], labels[order], indices[order])
        metrics, per_class = class_metrics(guesses.probabilities, guesses.labels, self.classes, multi_label=self.multi_label)
        top1 = metrics.get("top1")
        intervals = {} if top1 is None else {"top1": wilson_interval(round(top1 * len(labels)), len(labels))}
        columns = [f"p({name})" for name in self.classes]
        return Scores(metrics, per_class, self._per_case(guesses), intervals, case_values=(columns, guesses.probabilities), details=guesses)

    def _per_case(self, guesses: Guesses) -> list[dict[str, Any]]:
        classes = self.classes
        rows = []
        for index, label, found in zip(guesses.indices.tolist(), guesses.labels, guesses.probabilities, strict=True):
            if self.multi_label:
                truth, guess = ";".join(names_of(label, classes)) or "none", ";".join(names_of(found, classes))
            else:
                truth, guess = classes[int(label)], classes[int(found.argmax())]
            name, case = self.names[index]
            row = {"index": index, "id": name, "case": case}
            rows.append(row | {"label": truth, "prediction": guess, "probability": float(found.max())})
        return rows


def probabilities(logits: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Probabilities `[B, classes]`, float32."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(-1)


def class_metrics(
    found: np.ndarray, labels: np.ndarray, classes: list[str], *, multi_label: bool = False
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics of a whole split and a row per class; None where a metric is not defined.

    Args:
        found: probabilities `[N, classes]`.
        labels: `[N]` class indices, or `[N, classes]` 0/1.
    """
    truth = labels.astype(bool) if multi_label else np.eye(len(classes), dtype=bool)[labels]
    guess = found >= 0.5 if multi_label else np.eye(len(classes), dtype=bool)[found.argmax(1)]
    hits, support, guessed = (truth & guess).sum(0), truth.sum(0), guess.sum(0)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(classes):
        recall = ratio(hits[index], support[index])
        precision = ratio(hits[index], guessed[index])
        f1 = ratio(2 * hits[index], support[index] + guessed[index])
        defined = 0 < support[index] < len(truth)
        auroc = float(roc_auc_score(truth[:, index], found[:, index])) if defined else None
        rows.append({"class": name, "support": int(support[index]), "precision": precision, "recall": recall, "f1": f1, "auroc": auroc})
    common: Metrics = {
        "balanced_accuracy": mean([row["recall"] for row in rows]),
        # A class without images has no F1 to average, even if it was guessed.
        "macro_f1": mean([row["f1"] for row in rows if row["support"]]),
        "auroc": mean([row["auroc"] for row in rows]),
    }
    if multi_label:
        present = support > 0
        average = float(average_precision_score(truth[:, present], found[:, present], average="macro")) if present.any() else None
        return {"exact_match": float((truth == guess).all(1).mean()), "mean_average_precision": average, **common}, rows
    order = np.argsort(-found, axis=1, kind="stable")[:, :5]
    correct = order == labels[:, None]
    return {"top1": float(correct[:, 0].mean()), "top5": float(correct.any(1).mean()), **common}, rows


def names_of(vector: np.ndarray, classes: list[str]) -> list[str]:
    """Names of the classes with a value of at least one half."""
    return [name for name, value in zip(classes, vector, strict=True) if value >= 0.5]


def confusion_matrix(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts `[true class, predicted class]` of single labels, from probabilities `[N, classes]`."""
    classes = found.shape[1]
    return np.bincount(labels * classes + found.argmax(1), minlength=classes**2).reshape(classes, classes)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of independent cases (Wilson 1927)."""
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
