"""Definitions of rank-augmented linear attention and of InLine attention, step by step."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.rotary import Rotation, rotate_pairs

EPSILON = 1e-6  # keeps the normaliser from 0


def rank_augmented_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rotation: Rotation, scale: float) -> torch.Tensor:
    """Weight the keys, and divide the rotated sum over them by the sum without rotation (arXiv 2411.07635, eq. 6 to 8)."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    count = q.shape[1] * q.shape[2]
    average = q.mean((1, 2))  # B heads d
    scores = torch.einsum("bhd,byxhd->bhyx", average * scale, k)
    weights = count * scores.flatten(2).softmax(-1).view(scores.shape)
    k = k * weights.permute(0, 2, 3, 1).unsqueeze(-1)
    normaliser = torch.einsum("byxhd,bhd->byxh", q, k.mean((1, 2))) + EPSILON
    state = torch.einsum("byxhd,byxhe->bhde", rotate_pairs(k, rotation), v / count)
    return torch.einsum("byxhd,bhde->byxhe", rotate_pairs(q, rotation), state) / normaliser.unsqueeze(-1)


def inline_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Add to the linear attention of each query the mean value times what its weights lack to a sum of 1 (arXiv 2412.06590, eq. 6)."""
    count = q.shape[1] * q.shape[2]
    state = torch.einsum("byxhd,byxhe->bhde", k, v / count)
    rest = 1 - scale * torch.einsum("byxhd,bhd->byxh", q, k.mean((1, 2)))
    return scale * torch.einsum("byxhd,bhde->byxhe", q, state) + rest.unsqueeze(-1) * v.mean((1, 2))[:, None, None]
