"""Gates of convolutional networks: per channel (ECA), and per channel, row and column (ELA)."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, torch_only
from visionattn.kernels.gate import reference


def channel_gate(x: torch.Tensor, weight: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Scale each channel by `sigmoid(conv1d(mean over H and W))` (ECA-Net, arXiv 1910.03151, eq. 9).

    Args:
        x: feature map `[B, C, H, W]`.
        weight: taps of the convolution over neighbouring channels, `[1, 1, k]` with k odd; padded
            with zeros beyond the first and last channel.
        backend: see `dispatch`; "torch" also runs the definition.

    Returns:
        `[B, C, H, W]`, dtype of `x`.

    Raises:
        ValueError: `weight` is not `[1, 1, k]` with k odd, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if weight.dim() != 3 or weight.shape[:2] != (1, 1) or weight.shape[2] % 2 == 0:
        raise ValueError(f"channel_gate: weight must be [1, 1, k] with k odd, got {list(weight.shape)}")
    choose("channel_gate", backend, torch_only())  # the map is read and written once: nothing faster was found
    return reference.channel_gate(x, weight)


def strip_gate(
    x: torch.Tensor,
    conv_weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    num_groups: int,
    eps: float = 1e-5,
    backend: str | None = None,
) -> torch.Tensor:
    """Scale each position by a gate of its row and a gate of its column (ELA, arXiv 2403.01123, section 3).

    A gate is `sigmoid(group_norm(conv1d(mean over the other axis)))`; rows and columns share convolution
    and norm.

    Args:
        x: feature map `[B, C, H, W]`.
        conv_weight: `[C, C / g, k]` with k odd, for a convolution in g groups of channels along the
            strip; padded with zeros beyond its ends.
        norm_weight, norm_bias: `[C]`.
        num_groups: groups of channels that are normalised together, over all positions of the strip.
        eps: added to the variance.
        backend: see `dispatch`; "torch" also runs the definition.

    Returns:
        `[B, C, H, W]`, dtype of `x`.

    Raises:
        ValueError: `conv_weight` is not `[C, C / g, k]` with k odd; `num_groups` does not divide C; the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    channels, shape = x.shape[1], list(conv_weight.shape)
    if len(shape) != 3 or shape[0] != channels or channels % shape[1] or shape[2] % 2 == 0:
        raise ValueError(f"strip_gate: conv_weight must be [{channels}, {channels} / groups, k] with k odd, got {shape}")
    if channels % num_groups:
        raise ValueError(f"strip_gate: {num_groups} groups of the norm do not divide {channels} channels")
    choose("strip_gate", backend, torch_only())
    return reference.strip_gate(x, conv_weight, norm_weight, norm_bias, num_groups=num_groups, eps=eps)
