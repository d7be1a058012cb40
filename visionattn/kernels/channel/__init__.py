"""Attention among the channels of each head instead of among positions."""

from __future__ import annotations

import torch

from visionattn.kernels.channel import reference
from visionattn.kernels.dispatch import choose, torch_only


def channel_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None, backend: str | None = None
) -> torch.Tensor:
    """Mix the channels of `q` by weights from comparing channels of `k` and `v` over the whole map (DaViT, arXiv 2204.03645, section 3.3).

    The weights of a head are `softmax(scale * k^T v)`, one row per channel of k, with the softmax over the
    channels of v. As in the authors' code they are applied to q, and the sum over positions is not
    divided by their number. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        scale: factor on the scores; default `dim ** -0.5`.
        backend: see `dispatch`; "torch" also runs the definition.

    Returns:
        `[B, H, W, heads, dim]`, dtype of `q`.

    Raises:
        ValueError: `q`, `k` and `v` differ in shape or are not `[B, H, W, heads, dim]`, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"channel_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    choose("channel_attention", backend, torch_only())  # two matrix products: nothing faster was found
    return reference.channel_attention(q, k, v, scale=scale)
