"""Pyramid scene parsing (arXiv:1612.01105), as in mmsegmentation 1.2.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to
from visionattn.kernels.pooling import adaptive_average


class PSP(Head):
    """Concatenate the last map with its averages over grids of several sizes.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels of each average and of the classifier's input.
        pool_sizes: cells per side of the grids, for maps of any size.
        dropout: dropout rate of whole channels before the classifier.
    """

    auxiliary = True
    any_size = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.psp_modules = pyramid_pooling(channels[-1], width, pool_sizes)
        self.bottleneck = ConvModule(channels[-1] + len(pool_sizes) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        x = self.bottleneck(with_averages(maps[-1], self.psp_modules))
        return HeadOutput(self.conv_seg(self.dropout(x)))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "psp_modules.0.1.conv.weight" not in state or "fpn_bottleneck.conv.weight" in state:
            return None
        return {"width": state["conv_seg.weight"].shape[1]}


def pyramid_pooling(channels: int, width: int, pool_sizes: Sequence[int]) -> nn.ModuleList:
    """Build, for each size, averaging over a grid and a 1x1 convolution."""
    return nn.ModuleList(nn.Sequential(GridAverage(size), ConvModule(channels, width)) for size in pool_sizes)


class GridAverage(nn.Module):
    """Average a map over a square grid of `size` bins per side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = (size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B C size size
        return adaptive_average(x, self.size)


def with_averages(x: torch.Tensor, pools: nn.ModuleList) -> torch.Tensor:
    """Concatenate the map with the resized outputs of `pools`: [B, C + pools * width, H, W]."""
    return torch.cat([x, *(resize_to(pool(x), x.shape[2:]) for pool in pools)], 1)
