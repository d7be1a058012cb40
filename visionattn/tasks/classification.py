"""Classification: one class per image, or several (multi-label)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from timm.data import Mixup
from torch import nn

from visionattn.config import AugmentConfig, LossConfig
from visionattn.errors import UserError
from visionattn.tasks.base import Batch, Metrics, Scores, mean, ratio


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


class Classification:
    """Cross-entropy over classes; binary cross-entropy per class if `multi_label`.

    Args:
        classes: class names in index order.
        labels: labels of the training set, `[N]` int or `[N, classes]` 0/1, for balanced class weights.
        loss: smoothing and class weights.
        augment: mixup and CutMix, which mix labels too.
        multi_label: whether an image may have several classes.
    """

    name = "classify"
    shown = ("top1", "top5", "auroc")

    def __init__(
        self, classes: list[str], labels: np.ndarray, loss: LossConfig, augment: AugmentConfig, *, multi_label: bool = False
    ) -> None:
        self.classes, self.multi_label = classes, multi_label
        self.label_smoothing = loss.label_smoothing
        self.class_weights = _class_weights(loss, labels, len(classes))
        self.mixup = None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=loss.label_smoothing, num_classes=len(classes))

    @property
    def meta(self) -> dict[str, Any]:
        """Nothing besides the classes."""
        return {}

    @property
    def monitor(self) -> str:
        """The metric that chooses the best checkpoint, unless the config names one; higher is better."""
        return "macro_f1" if self.multi_label else "top1"

    def mix(self, batch: Batch) -> Batch:
        """Mixup or CutMix on a batch of even size; draws from numpy's global generator."""
        if self.mixup is None:
            return batch
        even = len(batch["image"]) // 2 * 2
        batch = {key: value[:even] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        image, label = self.mixup(batch["image"], batch["label"])
        return {**batch, "image": image, "label": label}

    def loss(self, output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss` of logits, computed in float32, averaged over the batch."""
        logits, label = output.float(), batch["label"]
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.multi_label:
            target = label.float() * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            return {"loss": F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)}
        smoothing = 0.0 if label.is_floating_point() else self.label_smoothing  # mixup has smoothed already
        return {"loss": F.cross_entropy(logits, label, weight=weight, label_smoothing=smoothing)}

    def predict(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """Logits `[B, classes]`."""
        logits: torch.Tensor = model(image)
        return logits

    def outputs(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities `[B, classes]`, float32."""
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)

    def meter(self) -> ClassificationMeter:
        """Collects probabilities and labels."""
        return ClassificationMeter(self)

    def metrics(self, probabilities: np.ndarray, labels: np.ndarray) -> tuple[Metrics, list[dict[str, Any]]]:
        """Metrics of a whole split and a row per class; None where a metric is not defined.

        Args:
            probabilities: `[N, classes]`.
            labels: `[N]` class indices, or `[N, classes]` 0/1.
        """
        truth = labels.astype(bool) if self.multi_label else np.eye(len(self.classes), dtype=bool)[labels]
        guess = probabilities >= 0.5 if self.multi_label else np.eye(len(self.classes), dtype=bool)[probabilities.argmax(1)]
        hits, support, guessed = (truth & guess).sum(0), truth.sum(0), guess.sum(0)
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(self.classes):
            recall = ratio(hits[index], support[index])
            precision = ratio(hits[index], guessed[index])
            f1 = ratio(2 * hits[index], support[index] + guessed[index])
            defined = 0 < support[index] < len(truth)
            auroc = float(roc_auc_score(truth[:, index], probabilities[:, index])) if defined else None
            rows.append({"class": name, "support": int(support[index]), "precision": precision, "recall": recall, "f1": f1, "auroc": auroc})
        common: Metrics = {
            "balanced_accuracy": mean([row["recall"] for row in rows]),
            # A class without images has no F1 to average, even if it was guessed.
            "macro_f1": mean([row["f1"] for row in rows if row["support"]]),
            "auroc": mean([row["auroc"] for row in rows]),
        }
        if self.multi_label:
            present = support > 0
            average = (
                float(average_precision_score(truth[:, present], probabilities[:, present], average="macro")) if present.any() else None
            )
            return {"exact_match": float((truth == guess).all(1).mean()), "mean_average_precision": average, **common}, rows
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        correct = order == labels[:, None]
        return {"top1": float(correct[:, 0].mean()), "top5": float(correct.any(1).mean()), **common}, rows


class ClassificationMeter:
    """Keeps the probabilities of all images: AUROC and the confusion matrix need them at once."""

    def __init__(self, task: Classification) -> None:
        self.task = task
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, prediction: torch.Tensor, batch: Batch) -> None:
        probabilities = self.task.outputs(prediction).cpu().numpy()
        self.parts.append((probabilities, batch["label"].cpu().numpy(), batch["index"].cpu().numpy()))

    def state(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return self.parts

    def merge(self, states: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> None:
        self.parts += [part for state in states for part in state]

    def result(self) -> Scores:
        """Scores with the interval of top-1 and `Guesses` as details."""
        probabilities, labels, indices = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        order = np.argsort(indices, kind="stable")
        found = Guesses(probabilities[order], labels[order], indices[order])
        metrics, per_class = self.task.metrics(found.probabilities, found.labels)
        top1 = metrics.get("top1")
        intervals = {} if top1 is None else {"top1": wilson_interval(top1, len(labels))}
        return Scores(metrics, per_class, self._per_image(found), intervals, found)

    def _per_image(self, found: Guesses) -> list[dict[str, Any]]:
        classes = self.task.classes
        rows = []
        for index, label, probabilities in zip(found.indices.tolist(), found.labels, found.probabilities, strict=True):
            if self.task.multi_label:
                truth, guess = ";".join(names_of(label, classes)) or "none", ";".join(names_of(probabilities, classes))
            else:
                truth, guess = classes[int(label)], classes[int(probabilities.argmax())]
            rows.append({"index": index, "label": truth, "prediction": guess, "probability": float(probabilities.max())})
        return rows


def names_of(vector: np.ndarray, classes: list[str]) -> list[str]:
    """Names of the classes that are on, or probable, in a vector of several labels."""
    return [name for name, value in zip(classes, vector, strict=True) if value >= 0.5]


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts `[true class, predicted class]` of single labels."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` independent cases (Wilson 1927)."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _class_weights(loss: LossConfig, labels: np.ndarray, classes: int) -> torch.Tensor | None:
    if loss.class_weights == "none":
        return None
    if isinstance(loss.class_weights, list):
        if len(loss.class_weights) != classes:
            raise UserError("VA-C002", f"loss.class_weights: expected {classes} numbers, one per class, got {len(loss.class_weights)}")
        return torch.tensor(loss.class_weights, dtype=torch.float32)
    if labels.ndim == 2:  # negatives per positive
        positives = labels.sum(0)
        return torch.tensor((len(labels) - positives) / np.maximum(positives, 1), dtype=torch.float32)
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(counts.sum() / (classes * np.maximum(counts, 1)), dtype=torch.float32)
