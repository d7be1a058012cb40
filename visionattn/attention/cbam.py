"""Convolutional block attention module.

Paper: Woo et al., "CBAM: Convolutional Block Attention Module", arXiv 1807.06521.
Upstream: github Jongchan/attention-module, commit 459efad (MIT); same names and results.
"""

from __future__ import annotations

import torch
from torch import nn

from visionattn.attention.triplet import PooledConv


class CBAM(nn.Module):
    """Scale channels by a gate from their maximum and mean, then positions by a gate from theirs.

    Args:
        channels: channels of the map.
        reduction: the hidden layer of the channels' MLP has `channels / reduction` units, at least one.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels, max(1, channels // reduction))
        self.SpatialGate = SpatialGate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return self.SpatialGate(self.ChannelGate(x))  # type: ignore[no-any-return]


class ChannelGate(nn.Module):
    """Scale each channel by `sigmoid(mlp(mean) + mlp(max))` over positions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()
        return x * gate[:, :, None, None]  # type: ignore[no-any-return]


class SpatialGate(nn.Module):
    """Scale each position by a gate that convolves the maximum and the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = PooledConv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.spatial(x, 1).sigmoid()  # type: ignore[no-any-return]
