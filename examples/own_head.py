"""A custom segmentation head: fuse the maps of all stages by addition, top down.

    visionattn train --data roads plugins=[own_head.py] --model van_b0 model.head.name=own_sum model.head.args={width: 64} \
        data.classes=[background,road]
"""

from collections.abc import Sequence

import torch
from torch import nn

import visionattn
from visionattn.heads import ConvModule, Head, HeadOutput, resize_to


class OwnSum(Head):
    """Project each map to `width` channels, add them from coarse to fine, classify at the finest.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels of the sum.
        dropout: dropout rate on the features of the classifier.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, width: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(ConvModule(dim, width) for dim in channels)
        self.smooth = ConvModule(width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        total = projected[-1]
        for finer in reversed(projected[:-1]):
            total = finer + resize_to(total, finer.shape[2:])
        return HeadOutput(self.conv_seg(self.dropout(self.smooth(total))))  # B num_classes H/4 W/4


visionattn.register_head("own_sum", OwnSum)
