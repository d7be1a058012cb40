"""Definition of dense attention."""

from __future__ import annotations

import torch

from visionattn.kernels.record import keep_weights


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Compute `softmax(scale * q @ k^T + bias) @ v` (arXiv 1706.03762, eq. 1)."""
    scores = (rows(q) * scale) @ rows(k).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1)
    keep_weights("dense_attention", weights, size=tuple(q.shape[1:3]), key_size=tuple(k.shape[1:3]))
    return from_rows(weights @ rows(v), q.shape)


def rows(x: torch.Tensor) -> torch.Tensor:
    """Reshape `[B, H, W, heads, d]` to `[B, heads, H * W, d]`, and `[B, H, W, d]` to `[B, H * W, d]`."""
    return x.flatten(1, 2).movedim(1, -2)


def from_rows(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Reshape back to a map of `shape`, except for the last axis."""
    return x.movedim(-2, 1).reshape(*shape[:-1], x.shape[-1])
