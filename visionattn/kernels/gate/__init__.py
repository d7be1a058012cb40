"""Efficient channel attention: a gate per channel from a 1-D convolution over the channel axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def channel_gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scale each channel by `sigmoid(conv1d(mean over H and W))` (ECA-Net, arXiv 1910.03151, eq. 9).

    Args:
        x: feature map `[B, C, H, W]`.
        weight: taps of the convolution over neighbouring channels, `[1, 1, k]` with k odd; zeros
            stand beyond the first and the last channel.

    Returns:
        `[B, C, H, W]`, dtype of `x`.

    Raises:
        ValueError: `weight` is not `[1, 1, k]` with k odd.
    """
    if weight.dim() != 3 or weight.shape[:2] != (1, 1) or weight.shape[2] % 2 == 0:
        raise ValueError(f"channel_gate: weight must be [1, 1, k] with k odd, got {list(weight.shape)}")
    pooled = x.mean((2, 3)).unsqueeze(1)  # B 1 C
    gate = F.conv1d(pooled, weight, padding=weight.shape[2] // 2).sigmoid()
    return x * gate.transpose(1, 2).unsqueeze(-1)  # B C 1 1
