"""Depthwise convolution with dilation: the long range of large kernel attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dilated_depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, dilation: int = 1) -> torch.Tensor:
    """Convolve each channel with its own kernel (VAN, arXiv 2202.09741, section 3.1); zeros stand outside the map.

    As in every framework the kernel is not flipped:
    `out[b, c, i, j] = bias[c] + sum over u, v of weight[c, 0, u, v] * x[b, c, i + dilation * (u - kh // 2), j + dilation * (v - kw // 2)]`.

    Args:
        x: map `[B, C, H, W]`, any strides.
        weight: one kernel per channel, `[C, 1, kh, kw]` with kh and kw odd.
        bias: `[C]`.
        dilation: distance of neighbouring taps, in positions of the map.

    Returns:
        `[B, C, H, W]`, dtype of `x`.

    Raises:
        ValueError: `weight` is not `[C, 1, kh, kw]` with odd sides; `dilation` is less than 1.
    """
    channels, (height, width) = x.shape[1], weight.shape[-2:]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"dilated_depthwise_conv2d: weight must be [{channels}, 1, kh, kw] with kh and kw odd, got {list(weight.shape)}")
    if dilation < 1:
        raise ValueError(f"dilated_depthwise_conv2d: dilation must be 1 or more, got {dilation}")
    padding = (dilation * (height // 2), dilation * (width // 2))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=channels)
