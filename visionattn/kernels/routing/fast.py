"""Routed attention without the gather: whole regions are rows of a table, or all positions are read with a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.routing.reference import from_regions, to_regions

_DENSE_POSITIONS = 1024  # the mask has its square per image


def routed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], *, scale: float
) -> torch.Tensor:
    """Compute the same as the definition, up to rounding.

    Copying keys costs more than the products: if a query sees a quarter of the map or more, the whole map is read in place.
    """
    count, topk = routes.shape[1:]
    dense = 4 * topk >= count and q.shape[1] * q.shape[2] <= _DENSE_POSITIONS
    return (_masked if dense else _rows)(q, k, v, routes, region, scale)


def _rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], scale: float) -> torch.Tensor:
    batch, count, _ = routes.shape
    heads, dim = q.shape[3:]
    # Rows of one table for all images: the backward pass of index_select adds whole regions, that of gather single numbers.
    first = count * torch.arange(batch, device=routes.device)
    index = (routes + first[:, None, None]).flatten()

    def chosen(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> (B R) heads (topk N) d
        rows = to_regions(x, region).flatten(0, 1).index_select(0, index)
        return rows.view(batch * count, -1, heads, dim).transpose(1, 2)

    queries = to_regions(q, region).flatten(0, 1).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, chosen(k), chosen(v), scale=scale)
    return from_regions(out.transpose(1, 2), q.shape, region)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], scale: float) -> torch.Tensor:
    (batch, height, width), (rh, rw), count = q.shape[:3], region, routes.shape[1]
    rows, cols = height // rh, width // rw
    # How often each region is listed; its keys count as many times.
    named = (routes.unsqueeze(-1) == torch.arange(count, device=routes.device)).sum(2)  # B R R
    mask = named.to(torch.promote_types(q.dtype, torch.float32)).log().to(q.dtype).view(batch, rows, 1, cols, 1, rows, 1, cols, 1)
    mask = mask.expand(-1, -1, rh, -1, rw, -1, rh, -1, rw).reshape(batch, 1, height * width, height * width)
    q_, k_, v_ = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # B heads HW d
    return F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, scale=scale).transpose(1, 2).reshape(q.shape)
