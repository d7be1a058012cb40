"""Definition of the dilated depthwise convolution: PyTorch's convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dilated_depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, dilation: int) -> torch.Tensor:
    """Convolve with one group per channel, padding with zeros to keep the size."""
    padding = (dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1])
