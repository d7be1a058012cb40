"""Padding cut off, also in exported graphs."""

from __future__ import annotations

import torch


def without_padding(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut the padding of a map `[B, H, W, ...]` off at the bottom and right.

    An exported graph of open size gathers the positions: a slice's layout in memory depends on whether there is padding, which its
    program would take for granted.
    """
    if not isinstance(height, torch.SymInt):
        return x[:, :height, :width]
    rows, cols = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(1, rows).index_select(2, cols)
