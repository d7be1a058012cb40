"""What two or more families share, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per block of each stage, growing linearly from 0 at the first block to `rate` at the last."""
    last = max(sum(depths) - 1, 1)
    starts = [sum(depths[:index]) for index in range(len(depths))]
    return [[rate * (start + block) / last for block in range(depth)] for start, depth in zip(starts, depths, strict=True)]


def pad_to_multiple(x: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros below and to the right of `[B, H, W, ...]`, until `size` divides both sides."""
    bottom, right = -x.shape[1] % size, -x.shape[2] % size
    if not bottom and not right:
        return x  # padding by nothing would copy
    return F.pad(x, (0, 0) * (x.dim() - 3) + (0, right, 0, bottom))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normed."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/p W/p C
        x = pad_to_multiple(x.permute(0, 2, 3, 1), self.patch_size).permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def concat_2x2(x: torch.Tensor) -> torch.Tensor:
    """Neighbourhoods of 2 x 2 side by side in the channels, zeros beyond odd borders: B H W C -> B H/2 W/2 4C."""
    x = pad_to_multiple(x, 2)
    batch, height, width, dim = x.shape
    x = x.view(batch, height // 2, 2, width // 2, 2, dim)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # the column in the pair before the row: Swin's order


def window_and_shift(height: int, width: int, window_size: int, shift: int, dense: bool) -> tuple[int, int]:
    """Swin's window and shift for a map: as in the classifier where it takes the size, else as in the segmentation code (`dense`)."""
    side = min(height, width)
    if not dense and side <= window_size and height % side == 0 and width % side == 0:
        return side, 0
    return window_size, shift


def relative_position_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    """Bias between the positions of a window, `[heads, N, N]`, query before key.

    `table` is `[2R - 1, 2R - 1, heads]`, by the rows and columns from key to query, offset 0 in the middle; R >= `window`.
    """
    side = table.shape[0]
    position = torch.arange(window, device=table.device)
    offset = position[:, None] - position[None, :] + side // 2  # query - key, from 0
    index = offset[:, None, :, None] * side + offset[None, :, None, :]  # row, column of query; of key
    return table.flatten(0, 1)[index.reshape(-1)].view(window**2, window**2, -1).permute(2, 0, 1)
