"""Attention among the channels of each head instead of among positions."""

from __future__ import annotations

import torch

from visionattn.kernels.channel import reference
from visionattn.kernels.dispatch import choose, torch_only


def channel_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None, backend: str | None = None
) -> torch.Tensor:
    """Mix the channels of `q` by weights that compare channels of `k` and `v` over the whole map (DaViT, arXiv 2204.03645, section 3.3).

    The weights of a head are `softmax(scale * k^T v)`, a row per channel of k, its softmax over the
    channels of v. As in the authors' code they are applied to q, and the sum over positions is not
    divided by their number. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        scale: factor on the scores; default `dim ** -0.5`.
        backend: see `dispatch`; "torch" is the definition too.

    Returns:
        `[B, H, W, heads, dim]`, dtype of `q`.

    Raises:
        ValueError: `q`, `k` and `v` are not of one shape `[B, H, W, heads, dim]`; no such backend.
        RuntimeError: the backend cannot run.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"channel_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    choose("channel_attention", backend, torch_only())  # two products of matrices: nothing faster was found
    return reference.channel_attention(q, k, v, scale=scale)
