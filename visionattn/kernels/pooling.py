"""Averages over a grid of bins, also in exported graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def adaptive_average(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average a map `[B, C, H, W]` over a grid of `size` bins, which may differ in length and overlap, as `F.adaptive_avg_pool2d`.

    An exported graph has the average as two products, because that operation would freeze the size of the map.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    rows, cols = (_bins(length, bins, x) for length, bins in zip(x.shape[2:], size, strict=True))
    return rows @ x @ cols.transpose(0, 1)


def _bins(length: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `[bins, length]` of an adaptive average along one axis."""
    cell, position = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    first, end = cell * length // bins, ((cell + 1) * length + bins - 1) // bins
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
