"""Triplet attention.

Paper: Misra et al., "Rotate to Attend: Convolutional Triplet Attention Module", arXiv 2010.03045.
Upstream: github LandskapeAI/triplet-attention, commit f07524e (MIT); same names and results. It turns the map so that each pair of
axes is convolved in turn; here the two pooled maps are taken along the axis itself, and the map is read and written once.
"""

from __future__ import annotations

import torch
from torch import nn


class PooledConv(nn.Module):
    """7x7 convolution and batch norm of the maximum and the mean over one axis: a score for each position of the other two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor, axis: int) -> torch.Tensor:  # B C H W -> B 1 and the two other axes
        return self.bn(self.conv(torch.stack([x.amax(axis), x.mean(axis)], 1)))  # type: ignore[no-any-return]


class PairGate(nn.Module):
    """Gate of each position of two axes of the map, from the maximum and the mean over the third."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = PooledConv()

    def forward(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return self.conv(x, axis).sigmoid()  # type: ignore[no-any-return]


class TripletAttention(nn.Module):
    """Scale the map by the mean of three gates, which convolve channels and columns, rows and channels, rows and columns.

    Args:
        channels: not used: the gates have 300 parameters for maps of any size and number of channels.
        spatial: with the gate of rows and columns; otherwise the mean of the other two.
    """

    def __init__(self, channels: int, *, spatial: bool = True) -> None:
        super().__init__()
        self.cw = PairGate()
        self.hc = PairGate()
        self.hw = PairGate() if spatial else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        gate = self.cw(x, 2).squeeze(1).unsqueeze(2)  # B C 1 W
        gate = gate + self.hc(x.transpose(1, 2), 3).squeeze(1).transpose(1, 2).unsqueeze(3)  # B C H 1
        if self.hw is None:
            return x * (gate / 2)
        return x * ((gate + self.hw(x, 1)) / 3)
