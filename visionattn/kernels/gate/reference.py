"""Definitions of the gates; in half precision gates are computed in float32, since they are small."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.record import keep_weights, recording


def channel_gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scale each channel by the sigmoid of a convolution over the means of neighbouring channels (arXiv 1910.03151, eq. 9)."""
    work = torch.promote_types(x.dtype, torch.float32)
    pooled = x.mean((2, 3), dtype=work).unsqueeze(1)  # B 1 C
    gate = F.conv1d(pooled, weight.to(work), padding=weight.shape[2] // 2).sigmoid().to(x.dtype).squeeze(1)  # B C
    keep_weights("channel_gate", gate, size=tuple(x.shape[2:]))
    return x * gate[:, :, None, None]


def strip_gate(
    x: torch.Tensor, conv_weight: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, *, num_groups: int, eps: float
) -> torch.Tensor:
    """Scale each position by the gate of its row and the gate of its column (arXiv 2403.01123, section 3)."""
    channels, per_group, taps = conv_weight.shape
    work = torch.promote_types(x.dtype, torch.float32)

    def gate(axis: int) -> torch.Tensor:  # from the mean over an axis, which then has one position
        strip = F.conv1d(x.mean(axis, dtype=work), conv_weight.to(work), padding=taps // 2, groups=channels // per_group)
        return F.group_norm(strip, num_groups, norm_weight.to(work), norm_bias.to(work), eps).sigmoid().to(x.dtype)

    rows, columns = gate(3), gate(2)  # B C H, B C W
    if recording():
        keep_weights("strip_gate", torch.cat([rows, columns], -1), size=tuple(x.shape[2:]))
    return x * rows.unsqueeze(3) * columns.unsqueeze(2)
