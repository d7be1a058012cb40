"""Attention to the neighbours of a position and to a pooled copy of the whole map, in one softmax."""

from __future__ import annotations

import torch

from visionattn.kernels.aggregated import fast, reference
from visionattn.kernels.dispatch import choose, triton_reason


def aggregated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    *,
    local_bias: torch.Tensor,
    pool_bias: torch.Tensor,
    local_weight: torch.Tensor,
    kernel_size: int = 3,
    backend: str | None = None,
) -> torch.Tensor:
    """Pixel-focused attention with learnable tokens (TransNeXt, arXiv 2311.17132, section 3.2).

    A query sees the `kernel_size**2` positions around it and all P pooled positions. Positions
    outside the map are excluded from the softmax, so a query at the border sees fewer. After the
    softmax, `local_weight` is added to the weights of the neighbours, whose sum then need not be
    one; outside the map it has no effect. Neighbours are counted row by row from the upper left.
    `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides. Scores are plain products `q . k`: q must already be scaled.
        k_pool, v_pool: `[B, Hp, Wp, heads, dim]`, or `[B, P, heads, dim]` with P = Hp * Wp.
        local_bias: added to the scores of the neighbours, `[heads, kernel_size**2]`.
        pool_bias: added to the scores of the pooled positions, `[heads, H * W, P]`.
        local_weight: added to the weights of the neighbours, `[B, H, W, heads, kernel_size**2]`.
        kernel_size: side of the neighbourhood, odd.
        backend: "triton", "torch" or "reference"; by default the fastest available, see `visionattn.kernels.dispatch`.

    Returns:
        `[B, H, W, heads, dim]`, in the floating dtype shared by all arguments.

    Raises:
        ValueError: `kernel_size` is even, a bias or weight has a wrong shape, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    batch, height, width, heads, dim = q.shape
    pooled_maps = k_pool, v_pool
    k_pool, v_pool = k_pool.reshape(batch, -1, heads, dim), v_pool.reshape(batch, -1, heads, dim)
    area, pooled = kernel_size**2, k_pool.shape[1]
    if kernel_size % 2 == 0:
        raise ValueError(f"aggregated_attention: kernel_size must be odd, got {kernel_size}")
    for name, tensor, shape in (
        ("local_bias", local_bias, (heads, area)),
        ("pool_bias", pool_bias, (heads, height * width, pooled)),
        ("local_weight", local_weight, (batch, height, width, heads, area)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"aggregated_attention: {name} must be {list(shape)}, got {list(tensor.shape)}")

    chosen = choose("aggregated_attention", backend, reasons(q, k, v, k_pool, v_pool))
    if chosen == "triton":
        from visionattn.kernels.aggregated.triton import aggregated_attention_triton

        return aggregated_attention_triton(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size)
    more = {"local_bias": local_bias, "pool_bias": pool_bias, "local_weight": local_weight}
    if chosen == "torch":
        return fast.aggregated_attention(q, k, v, k_pool, v_pool, **more, kernel_size=kernel_size)
    return reference.aggregated_attention(q, k, v, *pooled_maps, **more, kernel_size=kernel_size)


def reasons(q: torch.Tensor, *others: torch.Tensor) -> dict[str, str]:
    """Map each backend to the reason it cannot run `aggregated_attention` with q, k, v, k_pool and v_pool."""
    why = triton_reason(q)
    if not why:
        from visionattn.kernels.aggregated.triton import reason

        why = reason(q, *others)
    return {"triton": why, "torch": "", "reference": ""}
