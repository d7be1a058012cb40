"""Polarized self-attention: weights of channels and of positions, each of which keeps half the resolution of its own axis.

Paper: Liu et al., "Polarized Self-Attention: Towards High-quality Pixel-wise Regression", arXiv 2107.00782.
Upstream: github DeLightCMU/PSA, commit 20e307a (Apache-2.0), its file for segmentation; same names and results, except that the norm of
the sequential form has at least two values, where fewer than 16 channels leave it one or none.
"""

from __future__ import annotations

import torch
from torch import nn


def context(x: torch.Tensor, query: nn.Module, value: nn.Module) -> torch.Tensor:
    """Average the values of all positions by the softmax of a learned query: `[B, C, H, W]` to `[B, C', 1, 1]`."""
    weights = query(x).flatten(2).softmax(-1)  # B 1 N
    return (value(x).flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)  # type: ignore[no-any-return]


class ParallelPSA(nn.Module):
    """Sum of the map scaled by a gate per channel and the map scaled by a gate per position.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.conv_q_right = nn.Conv2d(channels, 1, 1, bias=False)
        self.conv_v_right = nn.Conv2d(channels, hidden, 1, bias=False)
        self.conv_up = nn.Conv2d(hidden, channels, 1, bias=False)
        self.conv_q_left = nn.Conv2d(channels, hidden, 1, bias=False)
        self.conv_v_left = nn.Conv2d(channels, hidden, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        channels = self.conv_up(context(x, self.conv_q_right, self.conv_v_right)).sigmoid()
        query = self.conv_q_left(x.mean((2, 3), keepdim=True)).flatten(1)  # the mean of a projection without bias
        scores = query.unsqueeze(1) @ self.conv_v_left(x).flatten(2)  # B 1 N
        positions = scores.softmax(-1).sigmoid().unflatten(2, x.shape[2:])
        return x * (channels + positions)  # type: ignore[no-any-return]


class SequentialPSA(nn.Module):
    """Scale the map by a gate per channel, then by a gate per position of what that gives.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden, narrow = max(1, channels // 2), max(2, channels // 8)
        self.conv_q_right = nn.Conv2d(channels, 1, 1, bias=False)
        self.conv_v_right = nn.Conv2d(channels, hidden, 1, bias=False)
        self.conv_up = nn.Sequential(nn.Conv2d(hidden, narrow, 1), nn.LayerNorm([narrow, 1, 1]), nn.ReLU(), nn.Conv2d(narrow, channels, 1))
        self.conv_q_left = nn.Conv2d(channels, hidden, 1, bias=False)
        self.conv_v_left = nn.Conv2d(channels, hidden, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = x * self.conv_up(context(x, self.conv_q_right, self.conv_v_right)).sigmoid()
        query = self.conv_q_left(x.mean((2, 3), keepdim=True)).flatten(1)
        scores = query.unsqueeze(1) @ self.conv_v_left(x).flatten(2).softmax(-1)  # B 1 N
        return x * scores.sigmoid().unflatten(2, x.shape[2:])  # type: ignore[no-any-return]
