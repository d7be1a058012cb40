"""Definition of routed attention: copy the keys and values of the selected regions to every region."""

from __future__ import annotations

import torch

from visionattn.kernels.record import keep_weights


def routed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], *, scale: float
) -> torch.Tensor:
    """Let queries of region r attend to the keys of the regions `routes[:, r]` (arXiv 2303.08810, eq. 5 and 6)."""
    heads, dim = q.shape[3:]
    queries, keys, values = (to_regions(x, region) for x in (q, k, v))  # B R N heads d
    batch, count, area = queries.shape[:3]

    def chosen(x: torch.Tensor) -> torch.Tensor:  # B R N heads d -> B R heads (topk N) d
        index = routes.view(batch, count, -1, 1, 1, 1).expand(-1, -1, -1, area, heads, dim)
        x = x.unsqueeze(1).expand(-1, count, -1, -1, -1, -1).gather(2, index)  # B R topk N heads d
        return x.flatten(2, 3).transpose(2, 3)

    weights = ((queries.transpose(2, 3) * scale) @ chosen(keys).transpose(-2, -1)).softmax(-1)
    keep_weights("routed_attention", weights, size=tuple(q.shape[1:3]), region=region, routes=routes)
    return from_regions((weights @ chosen(values)).transpose(2, 3), q.shape, region)


def to_regions(x: torch.Tensor, region: tuple[int, int]) -> torch.Tensor:
    """Reshape `[B, H, W, heads, dim]` to `[B, R, N, heads, dim]`: R regions, numbered row by row, of N positions."""
    (rh, rw), (batch, height, width, heads, dim) = region, x.shape
    x = x.reshape(batch, height // rh, rh, width // rw, rw, heads, dim).transpose(2, 3)
    return x.reshape(batch, (height // rh) * (width // rw), rh * rw, heads, dim)


def from_regions(x: torch.Tensor, shape: torch.Size, region: tuple[int, int]) -> torch.Tensor:
    """Reshape `[B, R, N, heads, dim]` back to a map of `shape`."""
    (rh, rw), (batch, height, width, heads, dim) = region, shape
    return x.reshape(batch, height // rh, width // rw, rh, rw, heads, dim).transpose(2, 3).reshape(shape)
