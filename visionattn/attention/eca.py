"""Efficient channel attention.

Paper: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv 1910.03151.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from visionattn.kernels import channel_gate


class ECA(nn.Module):
    """Scale each channel by a gate computed from its neighbouring channels.

    Args:
        channels: channels of the map.
        kernel_size: taps of the convolution over channels, odd; None applies eq. 12 of the paper.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2) | 1  # the next odd number, eq. 12
        self.set_kernel_size(kernel_size)

    def set_kernel_size(self, kernel_size: int) -> None:
        """Replace the convolution, for a checkpoint with another kernel size."""
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return channel_gate(x, self.conv.weight)
