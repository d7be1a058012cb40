"""Definitions of the gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def channel_gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A channel is scaled by the sigmoid of a convolution over the means of neighbouring channels (arXiv 1910.03151, eq. 9)."""
    pooled = x.mean((2, 3)).unsqueeze(1)  # B 1 C
    gate = F.conv1d(pooled, weight, padding=weight.shape[2] // 2).sigmoid()
    return x * gate.transpose(1, 2).unsqueeze(-1)  # B C 1 1


def strip_gate(
    x: torch.Tensor, conv_weight: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, *, num_groups: int, eps: float
) -> torch.Tensor:
    """A position is scaled by the gate of its row and the gate of its column (arXiv 2403.01123, section 3)."""
    channels, per_group, taps = conv_weight.shape

    def gate(strip: torch.Tensor) -> torch.Tensor:  # B C length
        strip = F.conv1d(strip, conv_weight, padding=taps // 2, groups=channels // per_group)
        return F.group_norm(strip, num_groups, norm_weight, norm_bias, eps).sigmoid()

    return x * gate(x.mean(3)).unsqueeze(3) * gate(x.mean(2)).unsqueeze(2)
