"""What two or more families share, and no more."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import calculate_drop_path_rates


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per block of each stage, growing linearly from 0 at the first block to `rate` at the last."""
    rates = iter(calculate_drop_path_rates(rate, sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]
