"""What two or more families share, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from visionattn.kernels import channel_gate, neighborhood_attention, strip_gate

GateName = Literal["t", "b", "s", "l"]

# Kernel size, channels per group of the convolution, groups of the norm.
ELA_GATES: dict[str, tuple[int, int, int]] = {"t": (5, 1, 32), "b": (7, 1, 16), "s": (5, 8, 16), "l": (7, 8, 16)}


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


class PatchMerging(nn.Module):
    """Neighbourhoods of 2 x 2 concatenated, normed and projected: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        return self.reduction(self.norm(concat_2x2(x)))  # type: ignore[no-any-return]


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention with a learned bias per relative position and head.

    A map smaller than kernel size x dilation is padded with zeros below and to the right, as in NATTEN
    0.14 and 0.15: the zeros become keys and values (the projection's bias) and are attended to.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        least = self.kernel_size * self.dilation
        bottom, right = max(least - height, 0), max(least - width, 0)
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        q, k, v = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, dim // self.num_heads).unbind(3)
        x = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, bias=self.rpb)
        return self.proj(x[:, :height, :width].reshape(batch, height, width, dim))  # type: ignore[no-any-return]


def block_dilations(dilations: Sequence[int | Sequence[int]], depths: Sequence[int]) -> list[list[int]]:
    """Dilation per block of each stage.

    Args:
        dilations: per stage a number d, which stands for 1, d, 1, d, ..., or one number per block.
        depths: blocks per stage.

    Raises:
        ValueError: the lists do not fit `depths`.
    """
    if len(dilations) != len(depths):
        raise ValueError(f"dilations: expected one entry for each of the {len(depths)} stages, got {len(dilations)}")
    stages = []
    for index, (given, depth) in enumerate(zip(dilations, depths, strict=True)):
        stage = [given if block % 2 else 1 for block in range(depth)] if isinstance(given, int) else list(given)
        if len(stage) != depth:
            raise ValueError(f"dilations: stage {index} has {depth} blocks, got {len(stage)} dilations {stage}")
        stages.append(stage)
    return stages


class ECA(nn.Module):
    """Gate per channel; the convolution over channels has no bias."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.set_kernel_size(kernel_size)

    def set_kernel_size(self, kernel_size: int) -> None:
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channel_gate(x, self.conv.weight)


class ELA(nn.Module):
    """Gates per row and per column, from one convolution along the strip and one norm for both.

    Args:
        channels: channels of the map.
        gate: "t", "b", "s" or "l".
    """

    def __init__(self, channels: int, gate: GateName) -> None:
        super().__init__()
        kernel_size, group_width, num_groups = ELA_GATES[gate]
        groups = math.gcd(channels // group_width, channels)
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.gn = nn.GroupNorm(math.gcd(num_groups, channels), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return strip_gate(x, self.conv.weight, self.gn.weight, self.gn.bias, num_groups=self.gn.num_groups, eps=self.gn.eps)
