"""Ultra-lightweight subspace attention.

Paper: Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks", arXiv 2006.15102.
Upstream: github Nandan91/ULSAM, commit 9a07d68 (no licence); same names and results.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class ULSAM(nn.Module):
    """Add to each group of channels the same group weighted by an attention map of its own.

    Args:
        channels: channels of the map.
        num_groups: groups of channels; where they do not divide, the greatest common divisor is used.
    """

    def __init__(self, channels: int, *, num_groups: int = 4) -> None:
        super().__init__()
        groups = math.gcd(num_groups, channels)
        self.subspaces = nn.ModuleList(Subspace(channels // groups) for _ in range(groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        parts = x.chunk(len(self.subspaces), 1)
        return torch.cat([subspace(part) for subspace, part in zip(self.subspaces, parts, strict=True)], 1)


class Subspace(nn.Module):
    """Weigh the positions of a group by a softmax over all of them, on top of the group itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=0.9)
        self.conv_point = nn.Conv2d(channels, 1, 1)
        self.bn_point = nn.BatchNorm2d(1, momentum=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(F.relu(self.bn_dws(self.conv_dws(x))), 3, 1, 1)
        scores = F.relu(self.bn_point(self.conv_point(y)))  # B 1 H W
        weights = scores.flatten(2).softmax(-1).unflatten(2, x.shape[2:])
        return x + x * weights
