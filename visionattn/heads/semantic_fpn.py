"""Semantic FPN (arXiv:1901.02446), as in mmsegmentation 1.2.2: FPN and FPNHead combined in one head.

In published files the neck (`neck.*`) is separate from the head; here it is part of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to


class FeaturePyramid(nn.Module):
    """Project all maps to one width and add the coarser ones to each.

    Convolutions have a bias, but no norm or activation; coarse maps are upsampled to the nearest pixels.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_plain(nn.Conv2d(given, width, 1)) for given in channels)
        self.fpn_convs = nn.ModuleList(_plain(nn.Conv2d(width, width, 3, padding=1)) for _ in channels)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]


class SemanticFPN(Head):
    """Sum all levels of a feature pyramid, each convolved and upsampled by 2 until it has the size of the finest.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        neck_width: channels of the pyramid.
        width: channels of the sum.
        dropout: dropout rate of whole channels before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        neck_width: int = 256,
        width: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.neck = FeaturePyramid(channels, neck_width)
        self.scale_heads = nn.ModuleList()
        for stride in strides:
            doublings = round(math.log2(stride / strides[0]))
            layers: list[nn.Module] = []
            for index in range(max(1, doublings)):
                layers.append(ConvModule(width if index else neck_width, width, 3))
                if doublings:
                    layers.append(Double())
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        levels = [head(x) for head, x in zip(self.scale_heads, self.neck(maps), strict=True)]
        total = levels[0]
        for level in levels[1:]:
            total = total + resize_to(level, total.shape[2:])  # doubling odd sides gives one position too many
        return HeadOutput(self.conv_seg(self.dropout(total)))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        lateral = state.get("neck.lateral_convs.0.conv.weight")
        if lateral is None or "scale_heads.0.0.conv.weight" not in state:
            return None
        return {"neck_width": lateral.shape[0], "width": state["conv_seg.weight"].shape[1]}


class Double(nn.Module):
    """Double height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return resize_to(x, (2 * x.shape[2], 2 * x.shape[3]))


def _plain(conv: nn.Conv2d) -> nn.Module:
    """Name a convolution as in a ConvModule."""
    return nn.Sequential(OrderedDict(conv=conv))
