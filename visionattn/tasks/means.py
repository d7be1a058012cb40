"""Shares and means that may be undefined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ratio(part: float, whole: float) -> float | None:
    """A share; None of nothing."""
    return float(part / whole) if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
