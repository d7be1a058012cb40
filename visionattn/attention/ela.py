"""Efficient local attention.

Paper: Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv 2403.01123.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from visionattn.kernels import strip_gate

GateName = Literal["t", "b", "s", "l"]

# Kernel size, channels per group of the convolution, groups of the norm.
ELA_GATES: dict[GateName, tuple[int, int, int]] = {"t": (5, 1, 32), "b": (7, 1, 16), "s": (5, 8, 16), "l": (7, 8, 16)}


class ELA(nn.Module):
    """Scale each position by a gate of its row and a gate of its column; both share one convolution and one norm.

    Args:
        channels: channels of the map. If a group count of the paper does not divide them, the greatest
            common divisor is used.
        gate: variant of the paper: "t", "b", "s" or "l".
    """

    def __init__(self, channels: int, gate: GateName) -> None:
        super().__init__()
        kernel_size, group_width, num_groups = ELA_GATES[gate]
        groups = math.gcd(channels // group_width, channels)
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.gn = nn.GroupNorm(math.gcd(num_groups, channels), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return strip_gate(x, self.conv.weight, self.gn.weight, self.gn.bias, num_groups=self.gn.num_groups, eps=self.gn.eps)
