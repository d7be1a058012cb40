"""Dilated depthwise convolution as a dense one: each residue class of positions modulo the dilation is a separate small image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.depthwise import reference

_LEAST_IN_TRAINING = 128  # positions of all images together


def dilated_depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, dilation: int) -> torch.Tensor:
    """Compute the same as the definition.

    Used only on the CPU, where convolutions are fast with dense kernels and channels last; not measured elsewhere.
    Exported graphs keep the native convolution, because they may run on any device and at any size. The gradient of the
    weights adds a fixed cost that does not pay off for few positions; in half precision it takes several times as long as in
    float32, so it is computed in float32.
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    few = trains and x.shape[0] * x.shape[2] * x.shape[3] < _LEAST_IN_TRAINING
    if dilation == 1 or x.device.type not in ("cpu", "meta") or torch.compiler.is_exporting() or few:
        return reference.dilated_depthwise_conv2d(x, weight, bias, dilation=dilation)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 else x.dtype
    if trains and dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return _dense(x.float(), weight.float(), None if bias is None else bias.float(), dilation).to(dtype)
    return _dense(x, weight, bias, dilation)


def _dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    rows, cols = (height + dilation - 1) // dilation, (width + dilation - 1) // dilation
    y = F.pad(x, (0, cols * dilation - width, 0, rows * dilation - height))
    y = y.view(batch, channels, rows, dilation, cols, dilation).permute(0, 3, 5, 2, 4, 1)  # B d d rows cols C
    y = y.reshape(batch * dilation**2, rows, cols, channels).permute(0, 3, 1, 2)  # channels last
    y = F.conv2d(y, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=channels)
    y = y.permute(0, 2, 3, 1).reshape(batch, dilation, dilation, rows, cols, channels).permute(0, 3, 1, 4, 2, 5)
    y = y.reshape(batch, rows * dilation, cols * dilation, channels)
    return y[:, :height, :width].permute(0, 3, 1, 2)
