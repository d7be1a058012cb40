"""Decoder of TransDAE: inter-scale skips of decomposed large kernels, and dual attention blocks.

Paper: Azad et al., "TransDAE: Dual Attention Mechanism in a Hierarchical Transformer for Efficient Medical Image Segmentation",
arXiv 2409.02018; large kernels are decomposed as in VAN, arXiv 2202.09741. No code is published; this is our reading of the paper, and
no outputs are recorded.

The coarser map is expanded to the size of the skip; both are projected together and weighted per position and channel by a
large-kernel convolution of themselves, so that each scale decides what it takes of the other; blocks of the encoder's kind follow.
The finest level is expanded four times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from visionattn.attention.dual_efficient import DualBlock, EfficientAttention, ReducedAttention, heads_of, init_dual
from visionattn.heads.att_swin import PatchExpand, cropped
from visionattn.heads.base import Head, HeadOutput
from visionattn.layers import LargeKernelAttention


class TransDAEDecoder(Head):
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
        reductions = [max(1, 32 // stride) for stride in strides[1:-1]]  # as in the encoder
        self.levels = nn.ModuleList(
            Level(below, skip, depth, reduction) for (skip, below), reduction in zip(pairwise(channels[1:]), reductions, strict=True)
        )
        self.expand = PatchExpand(channels[1], channels[1], 4)
        self.conv_seg = nn.Conv2d(channels[1], num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        image, *maps = maps
        *skips, x = (y.permute(0, 2, 3, 1) for y in maps)  # B H W C
        for level, skip in zip(reversed(self.levels), reversed(skips), strict=True):
            x = level(x, skip)
        x = cropped(self.expand(x), image.shape[2:])
        return HeadOutput(self.conv_seg(x.permute(0, 3, 1, 2)))

    def init_weights(self) -> None:
        super().init_weights()
        init_dual(self.levels)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        blocks = [key for key in state if key.startswith("levels.0.blocks.") and key.endswith(".channel_attn.queries.weight")]
        return {"depth": len(blocks)} if blocks else None


class Level(nn.Module):
    """Expand to the size of the skip, let both scales interact, dual blocks; channels last."""

    def __init__(self, below: int, skip: int, depth: int, reduction: int) -> None:
        super().__init__()
        self.expand = PatchExpand(below, skip, 2)
        self.interaction = InterScale(skip)
        self.blocks = nn.Sequential(
            *(DualBlock(skip, ReducedAttention(skip, reduction), EfficientAttention(skip, heads_of(skip))) for _ in range(depth))
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.interaction(cropped(self.expand(x), skip.shape[1:3]), skip))  # type: ignore[no-any-return]


class InterScale(nn.Module):
    """Project both scales together, weight them by a large-kernel convolution of themselves, and add the decoder's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.lka = LargeKernelAttention(dim)
        self.project_back = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:  # B H W C
        both = self.norm(self.project(torch.cat([x, skip], -1))).permute(0, 3, 1, 2)
        return x + self.project_back(self.lka(both).permute(0, 2, 3, 1))  # type: ignore[no-any-return]
