"""Attention of every position to every position."""

from __future__ import annotations

import torch

from visionattn.kernels.dense import fast, reference
from visionattn.kernels.dispatch import choose, torch_only


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention, in which every query sees every key (Transformer, arXiv 1706.03762, eq. 1).

    The map of keys may differ in size from that of the queries; a list of N tokens is a map of 1 x N.
    `reference.py` is the definition.

    Args:
        q: `[B, H, W, heads, dim]`, any strides; `[B, H, W, dim]` for one head.
        k: `[B, Hk, Wk, heads, dim]`, or `[B, Hk, Wk, dim]`.
        v: `[B, Hk, Wk, heads, dim_v]`, or `[B, Hk, Wk, dim_v]`.
        bias: added to the scores, `[heads, H * W, Hk * Wk]`, or `[H * W, Hk * Wk]` for one head; dtype of `q`.
        scale: factor on q; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim_v]`, or `[B, H, W, dim_v]`.

    Raises:
        ValueError: shapes do not match, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    fits = q.dim() == k.dim() == v.dim() and q.dim() in (4, 5)
    if not (fits and q.shape[0] == k.shape[0] and q.shape[3:] == k.shape[3:] and k.shape[:-1] == v.shape[:-1]):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"dense_attention: q, k and v must be [B, H, W, heads, dim] with one B, heads and dim, got {shapes}")
    table = (*q.shape[3:-1], q.shape[1] * q.shape[2], k.shape[1] * k.shape[2])
    if bias is not None and bias.shape != table:
        raise ValueError(f"dense_attention: bias must be [heads, H * W, Hk * Wk] = {list(table)}, got {list(bias.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("dense_attention", backend, torch_only())
    run = fast.dense_attention if chosen == "torch" else reference.dense_attention
    return run(q, k, v, bias=bias, scale=scale)
