"""InLine attention as a module, of which the InLine Swin, PVT and DeiT are built (`inline_swin.py`, `inline_pvt.py`, `inline_deit.py`).

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590.
Upstream: github LeapLabTHU/InLine, commit e463a6f (no licence); written from the paper and from recorded outputs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from visionattn.kernels import inline_attention


def convolve_each(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Convolve each image and channel of a map `[B, H, W, C]` with a 3x3 kernel of its own, `[B, C, 9]`, and zeros outside."""
    batch, height, width, dim = x.shape
    if not torch.compiler.is_compiling():
        groups = x.permute(0, 3, 1, 2).reshape(1, batch * dim, height, width)
        out = F.conv2d(groups, kernels.reshape(batch * dim, 1, 3, 3), padding=1, groups=batch * dim)
        return out.view(batch, dim, height, width).permute(0, 2, 3, 1)
    # A traced graph may be open in the number of images, which that of groups cannot depend on.
    padded, taps = F.pad(x, (0, 0, 1, 1, 1, 1)), kernels[:, None, None].unbind(4)  # B 1 1 C
    out = padded[:, :height, :width] * taps[0]
    for tap in range(1, 9):
        row, col = divmod(tap, 3)
        out = out + padded[:, row : row + height, col : col + width] * taps[tap]
    return out


class InlineAttention(nn.Module):
    """Multi-head InLine attention plus a depthwise convolution of the values, with kernels predicted from the average input.

    With `size` the input is a class token and the positions of a map of this size; the class token is not convolved.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.residual = nn.Sequential(nn.Conv1d(dim, dim, 1, groups=num_heads), nn.GELU(), nn.Conv1d(dim, 9 * dim, 1, groups=num_heads))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:  # B H W C, or B 1+N C
        average = x.flatten(1, -2).mean(1)
        kernels = self.residual(average.unsqueeze(2)).squeeze(2).unflatten(1, (-1, 9))  # B C 9
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        if size is None:
            y = inline_attention(q, k, v).flatten(3) + convolve_each(v.flatten(3), kernels)
        else:
            y = inline_attention(*(part.unsqueeze(1) for part in (q, k, v))).flatten(3)[:, 0]
            near = convolve_each(v[:, 1:].flatten(2).unflatten(1, size), kernels)
            y = y + F.pad(near.flatten(1, 2), (0, 0, 1, 0))
        return self.proj(y)  # type: ignore[no-any-return]


def square(count: int) -> tuple[int, int]:
    """Sides of a square map of `count` positions, as all maps are upstream.

    Raises:
        ValueError: it is no square; a file has another layout.
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"a table of {count} positions is not that of a square map")
    return side, side
