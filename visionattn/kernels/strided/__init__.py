"""Attention in groups of positions at regular intervals."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, torch_only
from visionattn.kernels.strided import fast, reference


def strided_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group_size: tuple[int, int],
    interval: tuple[int, int] = (1, 1),
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention among the positions of each group (CrossFormer, arXiv 2108.00154, section 3.2).

    The map is divided into areas of `group_size * interval` positions, those at the bottom and right cut off by the border. A group is
    made of every `interval`-th row and column of an area; with an interval of 1 it is the whole area. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any size and strides.
        group_size: rows and columns of a group.
        interval: rows and columns from a position of a group to the next.
        bias: added to the scores, `[heads, N, N]` with N = rows x columns of a group.
        scale: factor on q; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: shapes do not match; a group or interval is less than 1; the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"strided_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    if min(*group_size, *interval) < 1:
        raise ValueError(f"strided_attention: group_size and interval must be at least 1, got {group_size} and {interval}")
    area = group_size[0] * group_size[1]
    if bias is not None and bias.shape != (q.shape[3], area, area):
        raise ValueError(f"strided_attention: bias must be [heads, N, N] = {[q.shape[3], area, area]}, got {list(bias.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("strided_attention", backend, torch_only())
    run = fast.strided_attention if chosen == "torch" else reference.strided_attention
    return run(q, k, v, group_size=group_size, interval=interval, bias=bias, scale=scale)
