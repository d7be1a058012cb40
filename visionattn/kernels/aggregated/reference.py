"""Definition of aggregated attention: unfold the neighbourhoods, then one softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.record import keep_weights


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
    kernel_size: int,
) -> torch.Tensor:
    """Compute one softmax over the neighbours inside the map and the pooled positions (arXiv 2311.17132, section 3.2).

    `k_pool` and `v_pool` are `[B, Hp, Wp, heads, dim]` or `[B, P, heads, dim]`.
    """
    batch, height, width, heads, dim = q.shape
    pool = tuple(k_pool.shape[1:-2])
    k_pool, v_pool = k_pool.flatten(1, -3), v_pool.flatten(1, -3)
    area, pooled = kernel_size**2, k_pool.shape[1]

    def neighbors(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B heads HW k*k d, zeros outside
        x = F.unfold(x.flatten(3).permute(0, 3, 1, 2), kernel_size, padding=kernel_size // 2)
        return x.view(batch, heads, dim, area, height * width).permute(0, 1, 4, 3, 2)

    beyond = outside(height, width, kernel_size, q.device).flatten(0, 1)
    queries = q.flatten(1, 2).transpose(1, 2)  # B heads HW d
    near = (neighbors(k) @ queries.unsqueeze(-1)).squeeze(-1) + local_bias.unsqueeze(1)
    far = queries @ k_pool.permute(0, 2, 3, 1) + pool_bias
    weights = torch.cat([near.masked_fill(beyond, float("-inf")), far], -1).softmax(-1)
    weights = weights.unflatten(2, (height, width))  # B heads H W K
    keep_weights(
        "aggregated_attention",
        weights,
        size=(height, width),
        kernel_size=kernel_size,
        pool=pool,
        local_weight=local_weight.permute(0, 3, 1, 2, 4),
    )
    near, far = weights.flatten(2, 3).split([area, pooled], -1)
    near = near + local_weight.flatten(1, 2).transpose(1, 2)
    out = (near.unsqueeze(-2) @ neighbors(v)).squeeze(-2) + far @ v_pool.transpose(1, 2)
    return out.transpose(1, 2).reshape(q.shape).to(q.dtype)


def outside(height: int, width: int, kernel_size: int, device: torch.device) -> torch.Tensor:
    """Mask of neighbours outside the map, `[H, W, kernel_size**2]`."""

    def beyond(length: int) -> torch.Tensor:  # length, kernel_size
        neighbour = torch.arange(length, device=device)[:, None] + torch.arange(kernel_size, device=device) - kernel_size // 2
        return (neighbour < 0) | (neighbour >= length)

    return (beyond(height)[:, None, :, None] | beyond(width)[None, :, None, :]).flatten(2)
