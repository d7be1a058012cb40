"""Definition of decayed attention."""

from __future__ import annotations

import torch

from visionattn.kernels.record import keep_weights


def decayed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, *, along: str, scale: float) -> torch.Tensor:
    """Compute `softmax(scale * q @ k^T + decay * distance) @ v` over the lines that positions attend along."""
    height, width = q.shape[1:3]
    scores = (lines(q, along) * scale) @ lines(k, along).transpose(-2, -1)  # B L heads N N
    scores = scores + decay.to(scores.dtype)[:, None, None] * distances(height, width, along, q.device, scores.dtype)
    weights = scores.softmax(-1)
    keep_weights("decayed_attention", weights, size=(height, width), along=along)
    return from_lines(weights @ lines(v, along), q.shape, along)


def lines(x: torch.Tensor, along: str) -> torch.Tensor:
    """Arrange a map `[B, H, W, heads, d]` as `[B, L, heads, N, d]`: its rows, its columns, or the whole map as a single line."""
    if along == "map":
        return x.flatten(1, 2).transpose(1, 2).unsqueeze(1)
    return (x if along == "rows" else x.transpose(1, 2)).transpose(2, 3)


def from_lines(x: torch.Tensor, shape: torch.Size, along: str) -> torch.Tensor:
    """Arrange lines as a map of `shape` again."""
    if along == "map":
        return x.squeeze(1).transpose(1, 2).reshape(shape)
    x = x.transpose(2, 3)
    return x if along == "rows" else x.transpose(1, 2)


def distances(height: int, width: int, along: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Manhattan distances between the positions of a line, `[N, N]`."""
    if along != "map":
        return steps(width if along == "rows" else height, device, dtype)
    both = steps(height, device, dtype)[:, None, :, None] + steps(width, device, dtype)[None, :, None, :]
    return both.reshape(height * width, height * width)


def steps(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Distances along an axis, `[side, side]`."""
    position = torch.arange(side, device=device, dtype=dtype)
    return (position[:, None] - position[None, :]).abs()
