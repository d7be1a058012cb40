"""UPerNet (arXiv:1807.10221), as in mmsegmentation 1.2.2: pyramid pooling on the last map, then a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to
from visionattn.heads.psp import pyramid_pooling, with_averages


class UPerNet(Head):
    """Compute logits at the resolution of the first map from all maps.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head.
        pool_sizes: cells per side of the grids for averages of the last map.
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
        self.lateral_convs = nn.ModuleList(ConvModule(given, width) for given in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvModule(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(with_averages(maps[-1], self.psp_modules)))
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + resize_to(levels[fine + 1], levels[fine].shape[2:])
        smooth = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]  # the last is already convolved
        size = levels[0].shape[2:]
        x = self.fpn_bottleneck(torch.cat([resize_to(x, size) for x in [*smooth, levels[-1]]], 1))
        return HeadOutput(self.conv_seg(self.dropout(x)))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        return {"width": state["conv_seg.weight"].shape[1]} if "fpn_bottleneck.conv.weight" in state else None
