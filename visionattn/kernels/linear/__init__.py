"""Linear attention: with keys weighted by how well they match the average query, and with weights normalised by subtraction."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, torch_only
from visionattn.kernels.linear import fast, reference
from visionattn.kernels.rotary import Rotation


def rank_augmented_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rotation: Rotation,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Linear attention with rank-augmented keys (RALA, arXiv 2411.07635, section 3.2): time grows with the number of positions.

    Queries and keys become positive by `elu + 1`; a softmax over the positions weights each key by its product with the
    average query. `rotation` encodes positions in the sum over keys and not in its normaliser, as in the authors' code, so that
    weights may be negative. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides, an even `dim`.
        rotation: cosine and sine of the angles of each position, `[H, W, dim / 2]`.
        scale: factor on the product of keys and average query; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: shapes do not match, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if q.dim() != 5 or q.shape[-1] % 2 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"rank_augmented_attention: q, k and v must have one shape [B, H, W, heads, dim] with an even dim, got {shapes}")
    angles = (*q.shape[1:3], q.shape[-1] // 2)
    if any(table.shape != angles for table in rotation):
        shapes = ", ".join(str(list(table.shape)) for table in rotation)
        raise ValueError(f"rank_augmented_attention: rotation must be [H, W, dim / 2] = {list(angles)} twice, got {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("rank_augmented_attention", backend, torch_only())
    run = fast.rank_augmented_attention if chosen == "torch" else reference.rank_augmented_attention
    return run(q, k, v, rotation=rotation, scale=scale)


def inline_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None, backend: str | None = None
) -> torch.Tensor:
    """Linear attention whose weights are normalised by subtraction, and so differ between queries (InLine, arXiv 2412.06590, eq. 6).

    The weight of a key is `(1 + scale * q . (k - mean(k))) / N`: the weights sum to 1, and may be negative. Time grows with the number of
    positions. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        scale: factor on q; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: shapes do not match, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"inline_attention: q, k and v must have one shape [B, H, W, heads, dim], got {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("inline_attention", backend, torch_only())
    run = fast.inline_attention if chosen == "torch" else reference.inline_attention
    return run(q, k, v, scale=scale)
