"""Definition of the dilated depthwise convolution: the one of the framework."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dilated_depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, dilation: int) -> torch.Tensor:
    """A convolution with one group per channel, padded with zeros to keep the size."""
    padding = (dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1])
