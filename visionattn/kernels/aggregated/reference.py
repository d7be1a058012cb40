"""Definition of aggregated attention, one query position at a time."""

from __future__ import annotations

import torch


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
) -> torch.Tensor:
    """One softmax over the neighbours inside the map and the pooled positions (arXiv 2311.17132, section 3.2)."""
    _, height, width, heads, dim = q.shape
    k_pool, v_pool = k_pool.reshape(len(q), -1, heads, dim), v_pool.reshape(len(q), -1, heads, dim)
    out = torch.empty_like(q)
    for row in range(height):
        for col in range(width):
            square = [(row + i - kernel_size // 2, col + j - kernel_size // 2) for i in range(kernel_size) for j in range(kernel_size)]
            seen = [index for index, (y, x) in enumerate(square) if 0 <= y < height and 0 <= x < width]
            rows, cols = [square[index][0] for index in seen], [square[index][1] for index in seen]
            keys = torch.cat([k[:, rows, cols], k_pool], 1)  # B n+P heads dim
            values = torch.cat([v[:, rows, cols], v_pool], 1)
            bias = torch.cat([local_bias[:, seen], pool_bias[:, row * width + col]], 1)  # heads n+P
            weights = (torch.einsum("bhd,bnhd->bhn", q[:, row, col], keys) + bias).softmax(-1)
            weights = torch.cat([weights[..., : len(seen)] + local_weight[:, row, col, :, seen], weights[..., len(seen) :]], -1)
            out[:, row, col] = torch.einsum("bhn,bnhd->bhd", weights, values)
    return out
