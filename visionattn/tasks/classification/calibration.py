"""Fit probabilities and answers to a validation split: one temperature, or a threshold per class for several labels per image."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import precision_recall_curve

from visionattn.errors import UserError
from visionattn.spill import blocks

_RANGE = (0.01, 100.0)  # of temperatures


def fit_temperature(found: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of the logits with the least negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        found: probabilities `[N, classes]` at temperature 1.
        labels: `[N]` class indices.

    Raises:
        UserError: VA-D005, the likelihood has no maximum: every image is right, or the guesses are no better than chance.
    """

    def loss(log: float) -> float:
        return negative_log_likelihood(found, labels, math.exp(log))

    low, high = map(math.log, _RANGE)
    fit = minimize_scalar(loss, bounds=(low, high), method="bounded")  # convex in 1 / temperature: there is one minimum at most
    for edge, why in ((low, "every image is right"), (high, "the model is no better than chance")):
        if loss(edge) <= fit.fun + 1e-6:
            raise UserError("VA-D005", "the validation split determines no temperature", why=why, fix="more validation images")
    return float(round(math.exp(fit.x), 6))


def negative_log_likelihood(found: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over images, of probabilities `[N, classes]` whose logits are divided by a temperature."""
    total = 0.0
    for part in blocks(*found.shape):
        # The logits but for a constant per image, which no temperature notices.
        logits = np.log(np.maximum(found[part], np.finfo(np.float32).tiny).astype(np.float64)) / temperature
        total += float((logsumexp(logits, axis=1) - logits[np.arange(len(logits)), labels[part]]).sum())
    return total / len(found)


def best_thresholds(found: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, float]:
    """The threshold of each class with the best F1; classes without a positive image are left out.

    Args:
        found: probabilities `[N, classes]`.
        labels: `[N, classes]` 0/1.
    """
    thresholds = {}
    for number, name in enumerate(classes):
        truth = labels[:, number] > 0
        if truth.any():
            precision, recall, cuts = precision_recall_curve(truth, found[:, number])
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            thresholds[name] = float(cuts[int(f1[:-1].argmax())])
    return thresholds
