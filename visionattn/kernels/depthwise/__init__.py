"""Depthwise convolution with dilation: the long-range part of large kernel attention."""

from __future__ import annotations

import torch

from visionattn.kernels.depthwise import fast, reference
from visionattn.kernels.dispatch import choose, torch_only


def dilated_depthwise_conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, dilation: int = 1, backend: str | None = None
) -> torch.Tensor:
    """Convolve each channel with its own kernel and zero padding (VAN, arXiv 2202.09741, section 3.1).

    As in all frameworks, the kernel is not flipped:
    `out[b, c, i, j] = bias[c] + sum over u, v of weight[c, 0, u, v] * x[b, c, i + dilation * (u - kh // 2), j + dilation * (v - kw // 2)]`.

    Args:
        x: map `[B, C, H, W]`, any strides.
        weight: one kernel per channel, `[C, 1, kh, kw]` with kh and kw odd.
        bias: `[C]`.
        dilation: distance between neighbouring taps, in positions of the map.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, C, H, W]`, dtype of `x`; its memory layout is unspecified.

    Raises:
        ValueError: `weight` is not `[C, 1, kh, kw]` with odd sides; `dilation` is less than 1; the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    channels, (height, width) = x.shape[1], weight.shape[-2:]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"dilated_depthwise_conv2d: weight must be [{channels}, 1, kh, kw] with kh and kw odd, got {list(weight.shape)}")
    if dilation < 1:
        raise ValueError(f"dilated_depthwise_conv2d: dilation must be 1 or more, got {dilation}")
    chosen = choose("dilated_depthwise_conv2d", backend, torch_only())
    run = fast.dilated_depthwise_conv2d if chosen == "torch" else reference.dilated_depthwise_conv2d
    return run(x, weight, bias, dilation=dilation)
