"""Rotation of pairs of channels by angles of the position (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine per position and pair, [H, W, dim / 2]


def rotate_pairs(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate neighbouring channels 2i and 2i + 1 of `[B, H, W, heads, dim]` by the angle i of their position."""
    cos, sin = (table.to(x.dtype).unsqueeze(2) for table in rotation)
    return turn(x, cos, sin)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels of `[..., dim]`, with tables that broadcast with `[..., dim / 2]`."""
    if not torch.compiler.is_compiling() and _holds_pairs(x):
        # One pass, while channels of a pair taken apart are each read with a stride; compilers and ONNX have no complex numbers.
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def _holds_pairs(x: torch.Tensor) -> bool:
    """Whether neighbouring channels can be read as the real and imaginary part of a number."""
    if x.device.type not in ("cpu", "cuda") or x.dtype not in (torch.float32, torch.float64):
        return False
    return x.stride(-1) == 1 and all(step % 2 == 0 for step in (*x.stride()[:-1], x.storage_offset()))
