"""What two or more families share, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per block of each stage, growing linearly from 0 at the first block to `rate` at the last."""
    last = max(sum(depths) - 1, 1)
    starts = [sum(depths[:index]) for index in range(len(depths))]
    return [[rate * (start + block) / last for block in range(depth)] for start, depth in zip(starts, depths, strict=True)]


def pad_to_multiple(x: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros below and to the right of `[B, H, W, C]`, until `size` divides both sides."""
    bottom, right = -x.shape[1] % size, -x.shape[2] % size
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x  # padding by nothing would copy
