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
    rows, cols = (bin_shares(length, bins, x) for length, bins in zip(x.shape[2:], size, strict=True))
    return rows @ x @ cols.transpose(0, 1)


def window_average(x: torch.Tensor, size: int) -> torch.Tensor:
    """Average a map `[B, C, H, W]` over windows of `size` x `size` positions, of which those at the border may be smaller.

    An exported graph has the average as two products: the size of a map that pooling rounds up is frozen by it.
    """
    if not torch.compiler.is_exporting():
        return F.avg_pool2d(x, size, ceil_mode=True, count_include_pad=False)
    rows, cols = (_windows(length, size, x) for length in x.shape[2:])
    return rows @ x @ cols.transpose(0, 1)


def _windows(length: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `[ceil(length / size), length]` of the averages of windows along one axis."""
    window = torch.arange((length + size - 1) // size, device=like.device)[:, None]
    inside = (torch.arange(length, device=like.device) // size == window).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def bin_shares(length: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `[bins, length]` of an adaptive average along one axis."""
    cell, position = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    first, end = cell * length // bins, ((cell + 1) * length + bins - 1) // bins
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
