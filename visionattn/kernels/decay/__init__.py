"""Attention whose weights decay with the distance between positions."""

from __future__ import annotations

from typing import Literal

import torch

from visionattn.kernels.decay import fast, reference
from visionattn.kernels.dispatch import choose, torch_only

Along = Literal["map", "rows", "columns"]


def decayed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    *,
    along: Along = "map",
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention with `decay` times the Manhattan distance added to each score (RMT, arXiv 2309.11523, section 3).

    `along` decides what a position sees: the whole map, its row, or its column. Attention along rows, and along
    columns with its output as values, is the decomposed form of the paper: a position sees the whole map at a cost that grows
    with the sides of the map instead of its area. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        decay: `[heads]`, what a step to a neighbour adds to a score; negative, so that weights decay.
        along: "map", "rows" or "columns".
        scale: factor on q; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: shapes do not match; unknown `along` or backend.
        RuntimeError: the backend is not available for these tensors.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"decayed_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    if decay.shape != q.shape[3:4]:
        raise ValueError(f"decayed_attention: decay must be [heads] = [{q.shape[3]}], got {list(decay.shape)}")
    if along not in ("map", "rows", "columns"):
        raise ValueError(f"decayed_attention: along must be map, rows or columns, got {along!r}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("decayed_attention", backend, torch_only())
    run = fast.decayed_attention if chosen == "torch" else reference.decayed_attention
    return run(q, k, v, decay, along=along, scale=scale)
