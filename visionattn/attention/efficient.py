"""Efficient attention: global attention at a cost linear in the number of positions.

Paper: Shen et al., "Efficient Attention: Attention with Linear Complexities", arXiv 1812.01243.
Upstream: github cmsflash/efficient-attention, commit 46a5f9e (MIT); same names and results.
"""

from __future__ import annotations

import torch
from torch import nn


def efficient_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention without weights between positions (arXiv 1812.01243, eq. 4): `softmax_d(q) (softmax_N(k)^T v)`, `[B, heads, N, d]`."""
    return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


class EfficientAttention2d(nn.Module):
    """Add to each position what a query of its own finds in a summary of all positions.

    Args:
        channels: channels of the map.
        num_heads: heads, between which keys and values are divided.
        key_channels: channels of keys and queries; None for half of those of the map, as in the non-local block that it replaces.
        value_channels: channels of the values; None for half of those of the map.

    Raises:
        ValueError: the heads do not divide the channels of keys or values.
    """

    def __init__(self, channels: int, *, num_heads: int = 1, key_channels: int | None = None, value_channels: int | None = None) -> None:
        super().__init__()
        keys, values = (max(1, channels // 2) if given is None else given for given in (key_channels, value_channels))
        if keys % num_heads or values % num_heads:
            raise ValueError(f"num_heads: {num_heads} heads do not divide {keys} channels of keys and {values} of values")
        self.num_heads = num_heads
        self.keys = nn.Conv2d(channels, keys, 1)
        self.queries = nn.Conv2d(channels, keys, 1)
        self.values = nn.Conv2d(channels, values, 1)
        self.reprojection = nn.Conv2d(values, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        q, k, v = (
            project(x).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3) for project in (self.queries, self.keys, self.values)
        )  # B heads N d
        out = efficient_attention(q, k, v).transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.reprojection(out) + x  # type: ignore[no-any-return]
