"""Rotation of pairs of channels by angles of the position (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine per position and pair, [H, W, dim / 2]


def rotate_pairs(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate neighbouring channels 2i and 2i + 1 of `[B, H, W, heads, dim]` by the angle i of their position."""
    cos, sin = (table.to(x.dtype).unsqueeze(2) for table in rotation)
    return turn(x, cos, sin)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels of `[..., dim]`, with tables that broadcast with `[..., dim / 2]`."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
