"""Decoder of DAE-Former: dual attention blocks, and skips by cross attention.

Paper: Azad et al., "DAE-Former: Dual Attention-guided Efficient Transformer for Medical Image Segmentation", arXiv 2212.13504.
Upstream: github xmindflow/DAEFormer, commit a13909b (MIT); same names and results on its encoder's maps.

The coarsest map is expanded to twice the size. At each finer level, the decoder's map is projected to the channels of the skip and joined
with it by efficient attention, in which keys and queries come from the skip and values from the decoder; two dual blocks follow, and the
next expansion, by four at the finest.

Differences from upstream:

* Any backbone and any size; maps that are not exactly twice as large are cropped.
* Layers of upstream's coarsest level that it never calls are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.attention.dual_efficient import DualBlock, EfficientAttention, MixMlp, TransposedAttention, init_dual
from visionattn.attention.efficient import efficient_attention
from visionattn.heads.att_swin import PatchExpand, cropped
from visionattn.heads.base import Head, HeadOutput


class DAE(Head):
    """Compute logits at a quarter of the stride of the finest map: the size of the image for a stride of 4.

    Args:
        channels: channels of the image and the maps, finest first.
        strides: strides of the image and the maps.
        num_classes: logits per position.
        depth: dual blocks per level.
    """

    uses_image = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, depth: int = 2) -> None:
        super().__init__()
        *skips, coarsest = channels[1:]
        self.expand = PatchExpand(coarsest, max(1, coarsest // 2), 2)
        below = [*(max(1, count // 2) for count in skips[1:]), max(1, coarsest // 2)]
        self.levels = nn.ModuleList(Level(low, skip, depth) for low, skip in zip(below, skips, strict=True))
        self.expands = nn.ModuleList(
            PatchExpand(skip, max(1, skip // 2) if index else skip, 2 if index else 4) for index, skip in enumerate(skips)
        )
        self.conv_seg = nn.Conv2d(skips[0], num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        image, *maps = maps
        *skips, x = (y.permute(0, 2, 3, 1) for y in maps)  # B H W C
        x = self.expand(x)
        for level, expand, skip in zip(reversed(self.levels), reversed(self.expands), reversed(skips), strict=True):
            x = expand(level(x, skip))
        return HeadOutput(self.conv_seg(cropped(x, image.shape[2:]).permute(0, 3, 1, 2)))

    def init_weights(self) -> None:
        super().init_weights()
        init_dual(self.levels)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        blocks = [key for key in state if key.startswith("levels.0.blocks.") and key.endswith(".channel_attn.temperature")]
        return {"depth": len(blocks)} if blocks else None


class Level(nn.Module):
    """Project the coarser map, join it with the skip, project, dual blocks; channels last."""

    def __init__(self, below: int, skip: int, depth: int) -> None:
        super().__init__()
        self.x1_linear = nn.Linear(below, skip)
        self.cross_attn = CrossBlock(skip)
        self.concat_linear = nn.Linear(2 * skip, skip)
        self.blocks = nn.Sequential(*(DualBlock(skip, EfficientAttention(skip), TransposedAttention(skip)) for _ in range(depth)))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.x1_linear(cropped(x, skip.shape[1:3]))
        return self.blocks(self.concat_linear(self.cross_attn(x, skip)))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Concatenate decoder and skip, add their cross attention, then an MLP: twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.reprojection = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.norm2 = nn.LayerNorm(2 * dim)
        self.mlp = MixMlp(2 * dim, 4 * dim)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:  # B H W C
        values, keys = (self.norm1(y).flatten(1, 2).unsqueeze(1) for y in (x, skip))  # B 1 N C
        attended = efficient_attention(keys, keys, values).squeeze(1).view(x.shape)
        both = torch.cat([x, skip], -1) + self.norm(self.reprojection(attended))
        return both + self.mlp(self.norm2(both))  # type: ignore[no-any-return]
