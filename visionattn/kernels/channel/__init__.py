"""Attention among the channels of each head instead of among positions."""

from __future__ import annotations

import torch


def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    """Mix the channels of `q` by weights that compare channels of `k` and `v` over the whole map (DaViT, arXiv 2204.03645, section 3.3).

    The weights of a head are `softmax(scale * k^T v)`, a row per channel of k, its softmax over the
    channels of v. As in the authors' code they are applied to q, and the sum over positions is not
    divided by their number. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        scale: factor on the scores; default `dim ** -0.5`.

    Returns:
        `[B, H, W, heads, dim]`, dtype of `q`.

    Raises:
        ValueError: `q`, `k` and `v` are not of one shape `[B, H, W, heads, dim]`.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"channel_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, height, width, heads, dim = q.shape
    q, k, v = (tensor.flatten(1, 2).transpose(1, 2) for tensor in (q, k, v))  # B heads N d
    weights = ((k * scale).transpose(-2, -1) @ v).softmax(-1)  # B heads d d; k is scaled first, against overflow in the sum over N
    out = q @ weights.transpose(-2, -1)
    return out.transpose(1, 2).reshape(batch, height, width, heads, dim)
