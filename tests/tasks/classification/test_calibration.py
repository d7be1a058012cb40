"""Calibration error, temperature and thresholds against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax

from tests.tasks.test_class_scores import CLASSES, scored
from visionattn import spill
from visionattn.errors import UserError
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.class_scores import ClassificationMeter, answer, calibration_error, class_metrics, confidence_bins
from visionattn.tasks.classification.calibration import best_thresholds, fit_temperature, negative_log_likelihood


def slow_error(found: np.ndarray, labels: np.ndarray, count: int = 15) -> float:
    """Guo et al. 2017, equations 2 and 3, image by image."""
    total = 0.0
    for number in range(1, count + 1):
        inside = [row for row, values in enumerate(found) if (number - 1) / count < float(values.max()) <= number / count]
        if inside:
            accuracy = sum(int(found[row].argmax()) == labels[row] for row in inside) / len(inside)
            confidence = sum(float(found[row].max()) for row in inside) / len(inside)
            total += len(inside) / len(found) * abs(accuracy - confidence)
    return total


def test_calibration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.full(4, 0.4), 300).astype(np.float32)
    labels = rng.integers(0, 4, 300)
    want = slow_error(found, labels)
    assert 0.1 < want < 0.9 and class_metrics(found, labels, CLASSES)[0]["ece"] == pytest.approx(want)
    monkeypatch.setattr(spill, "BLOCK", 28)
    assert calibration_error(confidence_bins(found, labels)) == pytest.approx(want)


def test_bins_end_with_their_upper_edge() -> None:
    found = np.array([[0.2, 0.8], [0.5, 0.5], [0.0, 1.0]])
    images, right, confidence = confidence_bins(found, np.array([1, 1, 1]), 10)
    assert np.flatnonzero(images).tolist() == [4, 7, 9] and right.tolist() == [0] * 7 + [1, 0, 1]
    assert confidence[[4, 7, 9]].tolist() == [0.5, 0.8, 1.0]
    assert calibration_error(confidence_bins(np.empty((0, 2)), np.empty(0, np.int64))) is None


def test_calibration_error_of_several_processes() -> None:
    logits, label = torch.randn(41, 4, generator=torch.Generator().manual_seed(0)) * 2, torch.arange(41) % 4
    want = scored(ClassificationMeter(CLASSES, multi_label=False), logits, label, list(range(41))).result().metrics["ece"]
    whole = ClassificationMeter(CLASSES, multi_label=False)
    whole.merge([scored(ClassificationMeter(CLASSES, multi_label=False), logits, label, list(range(n, 41, 3))).state() for n in (2, 0, 1)])
    assert whole.result().metrics["ece"] == want == pytest.approx(slow_error(logits.softmax(1).numpy(), label.numpy()))


def drawn(factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are `factor` times too large, their probabilities, and labels drawn from the true ones."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (3000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(true, 1)])
    logits = (true * factor).astype(np.float32)
    return logits, softmax(logits, 1), labels


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_temperature(factor: float) -> None:
    logits, found, labels = drawn(factor)
    temperature = fit_temperature(found, labels)
    assert temperature == pytest.approx(factor, rel=0.1)

    def loss(divisor: float) -> float:
        return float(-log_softmax(logits / divisor, 1)[np.arange(len(labels)), labels].mean())

    grid = np.linspace(0.9 * temperature, 1.1 * temperature, 201)
    assert grid[int(np.argmin([loss(value) for value in grid]))] == pytest.approx(temperature, rel=2e-3)
    assert negative_log_likelihood(found, labels) == pytest.approx(
        float(F.cross_entropy(torch.tensor(logits), torch.tensor(labels))), rel=1e-4
    )
    assert negative_log_likelihood(found, labels, temperature) == pytest.approx(loss(temperature), rel=1e-4)
    before, after = (slow_error(softmax(logits / value, 1), labels) for value in (1, temperature))
    assert after < before / 2


def test_no_temperature() -> None:
    found = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    for labels, why in (([0, 1], "every image is right"), ([1, 0], "no better than chance")):
        with pytest.raises(UserError, match="VA-D005") as caught:
            fit_temperature(found, np.array(labels))
        assert why in caught.value.why


def f1(guess: np.ndarray, truth: np.ndarray) -> float:
    return 2 * int((guess & truth).sum()) / max(1, int(guess.sum()) + int(truth.sum()))


def test_thresholds_of_the_best_f1() -> None:
    rng = np.random.default_rng(0)
    found = rng.random((60, 3), np.float32).round(2)
    labels = (rng.random((60, 3)) < found**2).astype(np.float32)
    labels[:, 2] = 0
    chosen = best_thresholds(found, labels, ["a", "b", "c"])
    assert set(chosen) == {"a", "b"}
    for number, name in enumerate(("a", "b")):
        truth = labels[:, number] > 0
        best = max(f1(found[:, number] >= cut, truth) for cut in np.unique(found[:, number]))
        assert f1(found[:, number] >= np.float32(chosen[name]), truth) == pytest.approx(best)
    thresholds = np.array([chosen["a"], chosen["b"], 0.5], np.float32)
    _, rows = class_metrics(found, labels, ["a", "b", "c"], multi_label=True, thresholds=thresholds)
    assert rows[0]["f1"] == pytest.approx(f1(found[:, 0] >= thresholds[0], labels[:, 0] > 0)) and rows[0]["f1"] > 0.5


def test_answers_with_thresholds() -> None:
    found = np.array([[0.6, 0.4], [0.3, 0.7], [0.55, 0.45], [0.1, 0.9]], np.float32)
    thresholds = np.array([0.6, 0.8], np.float32)
    assert [answer(row, ["a", "b"], thresholds, multi_label=False) for row in found] == ["a", "unsure", "unsure", "b"]
    assert [answer(row, ["a", "b"], thresholds, multi_label=True) for row in found] == ["a", "", "", "b"]
    assert answer(found[1], ["a", "b"], None, multi_label=False) == "b"
    metrics, _ = class_metrics(found, np.array([0, 0, 0, 0]), ["a", "b"], thresholds=thresholds)
    assert (metrics["top1"], metrics["answered"], metrics["answered_top1"]) == (0.5, 0.5, 0.5)
    none, _ = class_metrics(found, np.array([0, 0, 0, 0]), ["a", "b"], thresholds=np.ones(2, np.float32))
    assert none["answered"] == 0 and none["answered_top1"] is None


def test_thresholds_of_a_config() -> None:
    task, target = TASKS["classify"], {"classes": ["cat", "dog", "007"], "display_classes": ["a cat", "a dog", "a spy"]}

    def thresholds(*settings: str) -> list[float]:
        meter = task.meter(load_config(None, settings), target)
        assert isinstance(meter, ClassificationMeter) and meter.thresholds is not None
        return [round(float(value), 3) for value in meter.thresholds]

    assert thresholds("eval.threshold=0.7") == [0.7, 0.7, 0.7]
    assert thresholds("eval.threshold={cat: 0.7}") == [0.7, 0, 0]
    assert thresholds('eval.threshold={"007": 0.7, "a dog": 0.2}', "data.multi_label=true") == [0.5, 0.2, 0.7]
    with pytest.raises(UserError, match=r"VA-C002.*caat.*is not a class[\s\S]*Did you mean cat"):
        thresholds("eval.threshold={caat: 0.7}")
    for wrong in ("1.5", "-0.1", "{cat: 2}", "true"):
        with pytest.raises(UserError, match=r"VA-C00\d.*eval\.threshold"):
            load_config(None, [f"eval.threshold={wrong}"])
