"""Attention to the neighbours of a position and to a pooled copy of the whole map, in one softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
    """Pixel-focused attention with learnable tokens (TransNeXt, arXiv 2311.17132, section 3.2).

    A query sees the `kernel_size**2` positions around it and all P pooled positions. Positions
    outside the map are left out of the softmax, so a query at the border sees fewer. After the
    softmax `local_weight` is added to the weights of the neighbours, which need not sum to one
    then; outside the map it has no effect. Neighbours are counted row by row from the upper left.
    `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides. Scores are plain products `q . k`: q carries its scale.
        k_pool, v_pool: `[B, Hp, Wp, heads, dim]`, or `[B, P, heads, dim]` with P = Hp * Wp.
        local_bias: added to the scores of the neighbours, `[heads, kernel_size**2]`.
        pool_bias: added to the scores of the pooled positions, `[heads, H * W, P]`.
        local_weight: added to the weights of the neighbours, `[B, H, W, heads, kernel_size**2]`.
        kernel_size: side of the neighbourhood, odd.

    Returns:
        `[B, H, W, heads, dim]`; all arguments have one floating dtype, which is kept.

    Raises:
        ValueError: an even `kernel_size`; a bias or weight of another shape.
    """
    batch, height, width, heads, dim = q.shape
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

    # Each neighbour is a view of the padded map; nothing is unfolded.
    border = (0, 0, 0, 0) + 4 * (kernel_size // 2,)
    keys, values = F.pad(k, border), F.pad(v, border)
    cells = [(slice(row, row + height), slice(col, col + width)) for row in range(kernel_size) for col in range(kernel_size)]
    local = torch.stack([(q * keys[:, rows, cols]).sum(-1) for rows, cols in cells], -1) + local_bias  # B H W heads k*k
    local = local.masked_fill(_outside(height, width, kernel_size, q.device).unsqueeze(2), float("-inf"))
    far = q.flatten(1, 2).transpose(1, 2) @ k_pool.permute(0, 2, 3, 1) + pool_bias  # B heads HW P

    weights = torch.cat([local.flatten(1, 2).transpose(1, 2), far], -1).softmax(-1)
    near, far = weights.split([area, pooled], -1)
    near = near.transpose(1, 2).reshape(local_weight.shape) + local_weight
    out = (far @ v_pool.transpose(1, 2)).transpose(1, 2).reshape(q.shape)
    for index, (rows, cols) in enumerate(cells):
        out = out + near[..., index, None] * values[:, rows, cols]
    return out


def _outside(height: int, width: int, kernel_size: int, device: torch.device) -> torch.Tensor:
    """`[H, W, kernel_size**2]`: where a neighbour lies beyond the border."""

    def beyond(length: int) -> torch.Tensor:  # length, kernel_size
        neighbour = torch.arange(length, device=device)[:, None] + torch.arange(kernel_size, device=device) - kernel_size // 2
        return (neighbour < 0) | (neighbour >= length)

    return (beyond(height)[:, None, :, None] | beyond(width)[None, :, None, :]).flatten(2)
