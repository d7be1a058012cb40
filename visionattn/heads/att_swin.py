"""Decoder of Att-SwinU-Net: patch expanding, Swin blocks, and skips that exchange summaries with the decoder.

Paper: Aghdam et al., "Attention Swin U-Net: Cross-Contextual Attention Mechanism for Skin Lesion Segmentation",
arXiv 2210.16898; the decoder without the exchange is that of Swin-Unet (Cao et al., arXiv 2105.05537). Written from the papers and
recorded outputs of the authors' code (NITR098/AttSwinUNet, commit 4b14f37, no licence); same results on the same maps.

Starting from the coarsest map, each level is expanded to twice the size, exchanges summaries with the map of that size from the backbone
(the skip), is concatenated with it, projected and passed through Swin blocks; the finest is expanded four times and classified.

Differences from the authors' code:

* Any size; maps that are not exactly twice as large are cropped. The skips are the backbone's maps, theirs are the inputs of its stages.
* A new summary is added to all positions of its side. Theirs takes the place of the first position, whose content is lost
  (`summary="replace"`).
* The attention of the encoder is not added to that of the decoder: in their code, the sum is not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import nn

from visionattn.attention.dual_efficient import heads_of
from visionattn.heads.base import Head, HeadOutput, resize_to
from visionattn.heads.unet import SummaryExchange
from visionattn.layers import SwinBlock, WindowAttention


class AttSwin(Head):
    """Compute logits at a quarter of the stride of the finest map: the size of the image for a stride of 4.

    Args:
        channels: channels of the image and the maps, finest first.
        strides: strides of the image and the maps.
        num_classes: logits per position.
        depth: Swin blocks per level.
        head_dim: channels per attention head; fewer heads where it does not divide.
        window_size: side of an attention window.
        summary: where a new summary goes: "add" or "replace", see above; "none" is the decoder of Swin-Unet.
    """

    uses_image = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        depth: int = 2,
        head_dim: int = 32,
        window_size: int = 7,
        summary: Literal["add", "replace", "none"] = "add",
    ) -> None:
        super().__init__()
        if summary not in ("add", "replace", "none"):
            raise ValueError(f'summary: expected "add", "replace" or "none", got {summary!r}')
        finest = channels[1]
        self.norm = nn.LayerNorm(channels[-1])
        self.levels = nn.ModuleList(
            Level(below, skip, depth, heads_of(skip, head_dim), window_size, summary) for skip, below in pairwise(channels[1:])
        )
        self.norm_up = nn.LayerNorm(finest)
        self.expand = PatchExpand(finest, finest, 4)
        self.conv_seg = nn.Conv2d(finest, num_classes, 1, bias=False)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        image, *maps = maps
        *skips, x = (y.permute(0, 2, 3, 1) for y in maps)  # B H W C
        x = self.norm(x)
        for level, skip in zip(reversed(self.levels), reversed(skips), strict=True):
            x = level(x, skip)
        x = cropped(self.expand(self.norm_up(x)), image.shape[2:])
        return HeadOutput(self.conv_seg(x.permute(0, 3, 1, 2)))

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                trunc_normal_(module.relative_position_bias_table, std=0.02)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        found = [re.fullmatch(r"levels\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table", key) for key in state]
        tables = [match for match in found if match]
        if not tables or "expand.expand.weight" not in state:
            return None
        # Channels and heads of each level.
        heads = {len(state[f"levels.{match[1]}.blocks.0.attn.proj.bias"]): state[match[0]].shape[1] for match in tables}
        return {
            "depth": sum(match[1] == "0" for match in tables),
            "head_dim": next(dim for dim in (32, *range(1, max(heads) + 1)) if all(heads_of(skip, dim) == n for skip, n in heads.items())),
            "window_size": (round(len(state[tables[0][0]]) ** 0.5) + 1) // 2,
            "summary": "add" if any(".exchange." in key for key in state) else "none",
        }


class Level(nn.Module):
    """Expand to the size of the skip, exchange summaries, concatenate, project, Swin blocks; channels last."""

    def __init__(self, below: int, skip: int, depth: int, num_heads: int, window_size: int, summary: str) -> None:
        super().__init__()
        self.replace = summary == "replace"
        self.expand = PatchExpand(below, skip, 2)
        self.exchange = None if summary == "none" else SummaryExchange(skip)
        self.project = nn.Linear(2 * skip, skip)
        self.blocks = nn.Sequential(
            *(SwinBlock(skip, num_heads, window_size, window_size // 2 if index % 2 else 0, 4.0, 0.0, dense=True) for index in range(depth))
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:  # B h w C', B H W C -> B H W C
        x = cropped(self.expand(x), skip.shape[1:3])
        if self.exchange is not None:
            x, skip = with_summaries(self.exchange, x, skip, self.replace)
        return self.blocks(self.project(torch.cat([x, skip], -1)))  # type: ignore[no-any-return]


def with_summaries(module: SummaryExchange, x: torch.Tensor, skip: torch.Tensor, replace: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Let the mean of each map `[B, H, W, C]` attend to the other, and put it in the place of the first position or add it to all."""
    ours, theirs = x.flatten(1, 2), skip.flatten(1, 2)  # B N C
    first = 1 if replace else 0
    a, b = module.exchange(ours.mean(1, keepdim=True), ours[:, first:], theirs.mean(1, keepdim=True), theirs[:, first:])
    if replace:
        return torch.cat([a, ours[:, 1:]], 1).view(x.shape), torch.cat([b, theirs[:, 1:]], 1).view(x.shape)
    return (ours + a).view(x.shape), (theirs + b).view(x.shape)


class PatchExpand(nn.Module):
    """Project each position to `factor` x `factor` positions, and normalise them: B H W C -> B fH fW C'."""

    def __init__(self, dim: int, out_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor**2 * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.expand(x).unflatten(3, (self.factor, self.factor, -1))  # B H W f f C'
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))  # type: ignore[no-any-return]


def cropped(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Crop a map `[B, h, w, C]` that is at most 3 too large for a size; resize any other."""
    height, width = size
    if all(full <= have < full + 4 for full, have in zip(size, x.shape[1:3], strict=True)):
        return x[:, :height, :width]
    return resize_to(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
