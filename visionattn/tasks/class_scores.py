"""Metrics of tasks that give a class, or several, to each sample, over all samples of a split at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from visionattn.spill import Rows, Table, blocks
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
    """Keeps the probabilities of all images, if they are many on the disk: AUROC and the confusion matrix need them at once."""

    def __init__(self, classes: list[str], *, multi_label: bool) -> None:
        self.classes, self.multi_label = classes, multi_label
        self.indices = array("q")
        self.rows: Rows[dict[str, Any]] = Rows()
        self.probabilities, self.labels = Table(), Table()

    def update(self, predictions: torch.Tensor, batch: Batch) -> None:
        """Add logits `[B, classes]` and labels."""
        found = probabilities(predictions, multi_label=self.multi_label).cpu().numpy()
        labels = batch["label"].cpu().numpy()
        self.indices.extend(batch.indices)
        self.rows.extend(self._rows(found, labels, batch))
        self.probabilities.append(found)
        self.labels.append(labels)

    def state(self) -> Any:
        return self.indices, self.rows, self.probabilities, self.labels

    def merge(self, states: list[Any]) -> None:
        for indices, rows, found, labels in states:
            self.indices.extend(indices)
            self.rows.extend(rows)
            self.probabilities.append(found.array())
            self.labels.append(labels.array())

    def result(self) -> Scores:
        """Scores with the interval of top-1, and `Guesses` as details."""
        order = np.argsort(self.indices, kind="stable")
        guesses = Guesses(self.probabilities.ordered(order), self.labels.ordered(order), np.array(self.indices)[order])
        metrics, per_class = class_metrics(guesses.probabilities, guesses.labels, self.classes, multi_label=self.multi_label)
        top1 = metrics.get("top1")
        intervals = {} if top1 is None else {"top1": wilson_interval(round(top1 * len(order)), len(order))}
        columns = [f"p({name})" for name in self.classes]
        return Scores(
            metrics, per_class, self.rows.reordered(order), intervals, case_values=(columns, guesses.probabilities), details=guesses
        )

    def _rows(self, found: np.ndarray, labels: np.ndarray, batch: Batch) -> Iterator[dict[str, Any]]:
        classes = self.classes
        for index, name, case, label, values in zip(batch.indices, batch.ids, batch.cases, labels, found, strict=True):
            if self.multi_label:
                truth, guess = ";".join(names_of(label, classes)) or "none", ";".join(names_of(values, classes))
            else:
                truth, guess = classes[int(label)], classes[int(values.argmax())]
            row = {"index": index, "id": name, "case": case}
            yield row | {"label": truth, "prediction": guess, "probability": float(values.max())}


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
    hits, support, guessed = np.zeros((3, len(classes)), np.int64)
    whole = first = among = 0  # images whose labels are all right; whose label is first; among the first five
    for part in blocks(*found.shape):
        truth = labels[part]
        if multi_label:
            truth, guess = truth > 0, found[part] >= 0.5
            hits += (truth & guess).sum(0)
            support += truth.sum(0)
            guessed += guess.sum(0)
            whole += int((truth == guess).all(1).sum())
        else:
            guess = found[part].argmax(1)
            hits += np.bincount(truth[guess == truth], minlength=len(classes))
            support += np.bincount(truth, minlength=len(classes))
            guessed += np.bincount(guess, minlength=len(classes))
            correct = np.argsort(-found[part], axis=1, kind="stable")[:, :5] == truth[:, None]
            first += int(correct[:, 0].sum())
            among += int(correct.any(1).sum())
    aurocs, precisions = _ranked_metrics(found, labels, support, multi_label=multi_label)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(classes):
        recall = ratio(hits[index], support[index])
        precision = ratio(hits[index], guessed[index])
        f1 = ratio(2 * hits[index], support[index] + guessed[index])
        facts = {"class": name, "support": int(support[index]), "precision": precision, "recall": recall, "f1": f1}
        rows.append(facts | {"auroc": aurocs[index]})
    common: Metrics = {
        "balanced_accuracy": mean([row["recall"] for row in rows]),
        # A class without images has no F1 to average, even if it was guessed.
        "macro_f1": mean([row["f1"] for row in rows if row["support"]]),
        "auroc": mean(aurocs),
    }
    if multi_label:
        return {"exact_match": ratio(whole, len(found)), "mean_average_precision": mean(precisions), **common}, rows
    return {"top1": ratio(first, len(found)), "top5": ratio(among, len(found)), **common}, rows


def _ranked_metrics(
    found: np.ndarray, labels: np.ndarray, support: np.ndarray, *, multi_label: bool
) -> tuple[list[float | None], list[float | None]]:
    """AUROC of each class, and of several labels per image the average precision."""
    aurocs: list[float | None] = []
    precisions: list[float | None] = []
    for part in blocks(found.shape[1], len(found)):
        for index, values in enumerate(np.ascontiguousarray(found[:, part].T), part.start):
            truth = labels[:, index] > 0 if multi_label else labels == index
            aurocs.append(float(roc_auc_score(truth, values)) if 0 < support[index] < len(truth) else None)
            precisions.append(float(average_precision_score(truth, values)) if multi_label and support[index] else None)
    return aurocs, precisions


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
