"""Fully convolutional head (arXiv:1411.4038), as in mmsegmentation 1.2.2: the auxiliary head of UPerNet and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput


class FCN(Head):
    """3x3 convolutions on one map.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels of the convolutions.
        num_convs: number of convolutions.
        concat_input: concatenate the map with their output and convolve once more.
        dilation: dilation of the convolutions.
        level: index of the map.
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
        num_convs: int = 2,
        concat_input: bool = True,
        dilation: int = 1,
        level: int = -1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.level = level
        given = channels[level]
        self.convs = nn.Sequential(*(ConvModule(width if i else given, width, 3, dilation=dilation) for i in range(num_convs)))
        self.conv_cat = ConvModule(given + width, width, 3) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        x = maps[self.level]
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat([x, y], 1))
        return HeadOutput(self.conv_seg(self.dropout(y)))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "convs.0.conv.weight" not in state or any(key.startswith(("cca.", "fusion_conv.")) for key in state):
            return None
        count = sum(key.startswith("convs.") and key.endswith(".conv.weight") for key in state)
        concat = "conv_cat.conv.weight" in state
        return {"width": state["conv_seg.weight"].shape[1], "num_convs": count, "concat_input": concat}
