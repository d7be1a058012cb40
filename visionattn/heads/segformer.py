"""The head of SegFormer (arXiv:2105.15203): all maps brought to one width and one size, concatenated, mixed.

Two functions go by that name. mmsegmentation 1.2.2 has batch norm and ReLU at every map and begins
with the finest one; the authors (NVlabs/SegFormer) have a linear layer only and begin with the coarsest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to


class SegFormer(Head):
    """Logits at the first map's resolution from all maps.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head; 256 for small, 768 for large models.
        style: "mmseg" or "original", each with its authors' names of parameters.
        dropout: of whole channels, before the classifier.

    Raises:
        ValueError: another style.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        style: Literal["mmseg", "original"] = "mmseg",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if style not in ("mmseg", "original"):
            raise ValueError(f'style: expected "mmseg" or "original", got {style!r}')
        self.style = style
        self.levels = len(channels)
        self.dropout = nn.Dropout2d(dropout)
        if style == "mmseg":
            self.convs = nn.ModuleList(ConvModule(given, width) for given in channels)
            self.fusion_conv = ConvModule(len(channels) * width, width)
            self.conv_seg = nn.Conv2d(width, num_classes, 1)
        else:
            for level, given in enumerate(channels, 1):
                self.add_module(f"linear_c{level}", nn.Sequential(OrderedDict(proj=nn.Linear(given, width))))
            self.linear_fuse = ConvModule(len(channels) * width, width)
            self.linear_pred = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        size = maps[0].shape[2:]
        if self.style == "mmseg":
            levels = [resize_to(conv(x), size) for conv, x in zip(self.convs, maps, strict=True)]
            return HeadOutput(self.conv_seg(self.dropout(self.fusion_conv(torch.cat(levels, 1)))))
        linear = [self.get_submodule(f"linear_c{level}") for level in range(1, self.levels + 1)]
        levels = [resize_to(layer(x.movedim(1, -1)).movedim(-1, 1), size) for layer, x in zip(linear, maps, strict=True)]
        return HeadOutput(self.linear_pred(self.dropout(self.linear_fuse(torch.cat(levels[::-1], 1)))))
