"""Rank-augmented linear attention and InLine attention by batched products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.dispatch import emulated
from visionattn.kernels.linear.reference import EPSILON
from visionattn.kernels.rotary import Rotation, turn


def rank_augmented_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rotation: Rotation, scale: float) -> torch.Tensor:
    """Compute the same as the definition, up to rounding.

    The weight of a key multiplies its value instead, so that keys are rotated as they are; averages are products with the maps.
    """
    shape = q.shape
    q, k = (F.elu(x).add_(1) for x in (q, k))
    plain_q, plain_k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # B heads N d
    cos, sin = (table.to(q.dtype).flatten(0, 1) for table in rotation)  # N d/2
    q, k = turn(plain_q, cos, sin), turn(plain_k, cos, sin)
    average = plain_q.mean(2, keepdim=True)  # B heads 1 d
    weights = (average * scale @ plain_k.transpose(-2, -1)).softmax(-1)  # B heads 1 N, which sum to 1
    normaliser = plain_q @ (weights @ plain_k).transpose(-2, -1) + EPSILON  # B heads N 1
    out = q @ (k.transpose(-2, -1) @ (v * weights.transpose(-2, -1))) / normaliser
    return out.transpose(1, 2).reshape(shape)


def inline_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Compute the same as the definition, up to rounding: the mean value plus the query times the covariance of keys and values."""
    if emulated(q):
        with torch.autocast("cpu", enabled=False):
            return inline_attention(q.float(), k.float(), v.float(), scale=scale).to(q.dtype)
    shape = q.shape
    q, k, v = (x.flatten(1, 2).transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # B * heads N d
    mean = v.mean(1, keepdim=True)
    # A factor of the product itself, and nothing added to it (beta): multiplied by 1 / N, values of a large map vanish in float16.
    covariance = torch.baddbmm(mean.detach(), k.transpose(1, 2), v - mean, beta=0, alpha=scale / k.shape[1])
    out = torch.baddbmm(mean, q, covariance)
    return out.unflatten(0, (shape[0], shape[3])).transpose(1, 2).reshape(shape)
