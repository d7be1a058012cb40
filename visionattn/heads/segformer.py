"""SegFormer head (arXiv:2105.15203): project all maps to one width and size, concatenate, and fuse.

There are two versions. mmsegmentation 1.2.2 applies batch norm and ReLU to every map and starts
with the finest one; the authors (NVlabs/SegFormer) use only a linear layer and start with the coarsest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to


class Linear(nn.Module):
    """The authors' linear layer, applied per position."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return self.proj(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


class SegFormer(Head):
    """Compute logits at the resolution of the first map from all maps.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head; 256 for small, 768 for large models.
        style: "mmseg" or "original".
        dropout: dropout rate of whole channels before the classifier.

    Raises:
        ValueError: unknown style.
    """

    any_size = True

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
        self.convs = nn.ModuleList(ConvModule(given, width) if style == "mmseg" else Linear(given, width) for given in channels)
        self.fusion_conv = ConvModule(len(channels) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        levels = [resize_to(conv(x), maps[0].shape[2:]) for conv, x in zip(self.convs, maps, strict=True)]
        if self.style == "original":
            levels.reverse()
        return HeadOutput(self.conv_seg(self.dropout(self.fusion_conv(torch.cat(levels, 1)))))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the authors' `linear_c1` to `linear_c4`, `linear_fuse` and `linear_pred` to mmsegmentation's names."""

        def ours(key: str) -> str:
            key = re.sub(r"^linear_c(\d+)\.", lambda found: f"convs.{int(found[1]) - 1}.", key)
            return re.sub(r"^linear_pred\.", "conv_seg.", re.sub(r"^linear_fuse\.", "fusion_conv.", key))

        return {ours(key): value for key, value in state.items()}

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "fusion_conv.conv.weight" not in state:
            return None
        style = "original" if "convs.0.proj.weight" in state else "mmseg"
        return {"width": state["conv_seg.weight"].shape[1], "style": style}
