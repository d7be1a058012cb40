"""Losses and metrics against slow, obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from visionattn.config import AugmentConfig, LossConfig
from visionattn.errors import UserError
from visionattn.tasks import Classification
from visionattn.tasks.classification import confusion_matrix, wilson_interval

CLASSES = ["a", "b", "c", "d"]


def task(*, multi_label: bool = False, labels: np.ndarray | None = None, **loss: object) -> Classification:
    given = labels if labels is not None else np.array([0, 0, 0, 1, 2, 3])
    return Classification(CLASSES, given, LossConfig(**loss), AugmentConfig(), multi_label=multi_label)


def area(scores: list[float], positive: list[bool]) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    pairs = [(a, b) for a, p in zip(scores, positive, strict=True) if p for b, q in zip(scores, positive, strict=True) if not q]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_metrics_with_a_class_that_is_absent_but_guessed() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 0])  # no image of "d"
    probabilities = rng.dirichlet(np.ones(4), 8).astype(np.float32)
    probabilities[0] = [0.1, 0.1, 0.1, 0.7]
    metrics, rows = task().metrics(probabilities, labels)
    guess = probabilities.argmax(1)
    assert metrics["top1"] == pytest.approx(sum(g == t for g, t in zip(guess, labels, strict=True)) / 8)
    assert metrics["top5"] == 1.0
    recalls = [float((guess[labels == index] == index).mean()) for index in range(3)]
    assert metrics["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    f1 = []
    for index in range(3):
        hits = int(((guess == index) & (labels == index)).sum())
        f1.append(2 * hits / (int((guess == index).sum()) + int((labels == index).sum())))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 3)
    areas = [area(probabilities[:, index].tolist(), (labels == index).tolist()) for index in range(3)]
    assert metrics["auroc"] == pytest.approx(sum(areas) / 3)
    assert rows[3]["recall"] is None and rows[3]["auroc"] is None and rows[3]["precision"] == 0.0 and rows[3]["support"] == 0


def test_one_class_only_leaves_auroc_undefined() -> None:
    metrics, _ = task().metrics(np.eye(4, dtype=np.float32)[[0, 0, 1]], np.array([0, 0, 0]))
    assert metrics["auroc"] is None and metrics["top1"] == pytest.approx(2 / 3)


def test_multi_label_metrics() -> None:
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)
    probabilities = np.array([[0.9, 0.2, 0.4, 0.1], [0.3, 0.8, 0.1, 0.6], [0.7, 0.9, 0.2, 0.2]], np.float32)
    metrics, rows = task(multi_label=True, labels=truth).metrics(probabilities, truth)
    assert metrics["exact_match"] == pytest.approx(1 / 3)  # the first misses "c", the second adds "d"
    assert [row["f1"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert metrics["macro_f1"] == pytest.approx(2 / 3)  # "d" has no image
    assert "top1" not in metrics and task(multi_label=True, labels=truth).monitor == "macro_f1"


def test_losses() -> None:
    logits, label = torch.randn(5, 4, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 0])
    smoothed = float(task(label_smoothing=0.1).loss(logits, {"label": label})["loss"])
    want = 0.0
    for row, target in zip(logits.tolist(), label.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        want += sum((norm - value) * (0.9 * (index == target) + 0.1 / 4) for index, value in enumerate(row)) / 5
    assert smoothed == pytest.approx(want, rel=1e-5)
    soft = torch.nn.functional.one_hot(label, 4).float() * 0.9 + 0.1 / 4  # as mixup gives it, smoothed already
    assert float(task(label_smoothing=0.1).loss(logits, {"label": soft})["loss"]) == pytest.approx(want, rel=1e-5)
    assert task(class_weights="balanced").class_weights.tolist() == pytest.approx([0.5, 1.5, 1.5, 1.5])
    assert task().loss(logits.bfloat16(), {"label": label})["loss"].dtype == torch.float32
    with pytest.raises(UserError) as caught:
        task(class_weights=[1.0, 2.0])
    assert caught.value.code == "VA-C002"


def test_mixup_leaves_an_odd_image_out() -> None:
    np.random.seed(0)
    mixing = Classification(CLASSES, np.array([0]), LossConfig(label_smoothing=0.1), AugmentConfig(mixup=0.4))
    mixed = mixing.mix({"image": torch.randn(5, 3, 8, 8), "label": torch.tensor([0, 1, 2, 3, 0])})
    assert mixed["image"].shape[0] == 4 and mixed["label"].shape == (4, 4)
    assert torch.allclose(mixed["label"].sum(1), torch.ones(4), atol=1e-5)


def test_confusion_matrix_and_interval() -> None:
    counts = confusion_matrix(np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], np.array([0, 0, 1, 2]))
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    low, high = wilson_interval(0.9, 100)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    assert wilson_interval(1.0, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
