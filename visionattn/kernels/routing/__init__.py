"""Attention from each region of a feature map to a few selected regions."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, triton_reason
from visionattn.kernels.routing import fast, reference


def routed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    routes: torch.Tensor,
    region: tuple[int, int],
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of the positions of a region to those of the regions it is routed to.

    The fine level of bi-level routing attention (BiFormer, arXiv 2303.08810, eq. 5 and 6); the
    coarse level is `region_routes`. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        routes: `[B, R, topk]` int64, the regions whose keys the queries of region r see; regions are
            numbered row by row from 0 to R - 1. The order does not matter; a region listed twice counts
            twice. Values are not checked.
        region: height and width of a region; they divide H and W.
        scale: factor on q; default `dim ** -0.5`. BiFormer uses `(heads * dim) ** -0.5`.
        backend: "triton", "torch" or "reference"; by default the fastest available, see `visionattn.kernels.dispatch`.

    Returns:
        `[B, H, W, heads, dim]`. `routes` receives no gradient.

    Raises:
        ValueError: q, k and v differ in shape, the region does not divide the map, or `routes` is not
            int64 `[B, R, topk]`; the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"routed_attention: q, k and v must have one shape, got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}")
    rows, cols = _region_grid("routed_attention", q, region)
    batch, count = q.shape[0], rows * cols
    if routes.dtype != torch.int64 or routes.dim() != 3 or routes.shape[:2] != (batch, count):
        wanted = f"[{batch}, {count}, topk]"
        raise ValueError(f"routed_attention: routes must be int64 {wanted}, got {routes.dtype} {list(routes.shape)}")
    scale = q.shape[4] ** -0.5 if scale is None else scale
    chosen = choose("routed_attention", backend, reasons(q, k, v))
    if chosen == "triton":
        from visionattn.kernels.routing.triton import routed_attention_triton

        return routed_attention_triton(q, k, v, routes, region, scale)
    run = fast.routed_attention if chosen == "torch" else reference.routed_attention
    return run(q, k, v, routes, region, scale=scale)


def region_routes(q: torch.Tensor, k: torch.Tensor, region: tuple[int, int], topk: int) -> torch.Tensor:
    """Select the regions whose mean key has the largest product with a region's mean query, over all heads.

    The coarse level of bi-level routing attention (BiFormer, arXiv 2303.08810, eq. 3 and 4).

    Args:
        q, k: `[B, H, W, heads, dim]`, any strides.
        region: height and width of a region; they divide H and W.
        topk: regions per region.

    Returns:
        `[B, R, topk]` int64, best first, without gradient. The order of ties is unspecified.

    Raises:
        ValueError: the region does not divide the map, or there are fewer than `topk` regions.
    """
    rows, cols = _region_grid("region_routes", q, region)
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"region_routes: topk must be between 1 and the number of regions, {rows * cols}, got {topk}")

    def mean(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B R C
        x = x.detach().flatten(3)
        return x.reshape(x.shape[0], rows, region[0], cols, region[1], x.shape[3]).mean((2, 4)).flatten(1, 2)

    # The factor does not change the order; it prevents overflow in half precision.
    scores = (mean(q) * (q.shape[3] * q.shape[4]) ** -0.5) @ mean(k).transpose(-2, -1)
    return scores.topk(topk, dim=-1).indices


def _region_grid(name: str, x: torch.Tensor, region: tuple[int, int]) -> tuple[int, int]:
    """Number of rows and columns of regions of a map."""
    height, width = x.shape[1:3]
    rh, rw = region
    if height % rh or width % rw:
        raise ValueError(f"{name}: a region of {rh}x{rw} does not divide the map of {height}x{width}; pad it first")
    return height // rh, width // rw


def reasons(q: torch.Tensor, *others: torch.Tensor) -> dict[str, str]:
    """Map each backend to the reason it cannot run `routed_attention` with q, k and v."""
    why = triton_reason(q)
    if not why:
        from visionattn.kernels.routing.triton import reason

        why = reason(q, *others)
    return {"triton": why, "torch": "", "reference": ""}
