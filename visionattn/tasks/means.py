"""Shares and means that may be undefined, and the mean of what several models find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch


def ratio(part: float, whole: float) -> float | None:
    """A share; None of nothing."""
    return float(part / whole) if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def mean_logits(outputs: Iterable[torch.Tensor], *, independent: bool) -> torch.Tensor:
    """Logits `[B, classes, ...]` whose probabilities are the mean of those of several models, float32.

    Args:
        outputs: logits of each model, of one shape; those of an image may be large, so one at a time.
        independent: whether each logit has a probability of its own (sigmoid), or all classes share it (softmax).
    """
    total, count = None, 0
    for logits in outputs:
        found = logits.float().sigmoid() if independent else logits.float().softmax(1)
        total, count = found if total is None else total.add_(found), count + 1
    assert total is not None
    total /= count
    kind = torch.finfo(torch.float32)
    return total.logit(kind.eps) if independent else total.clamp_min(kind.tiny).log()
