"""MEDUSA: one encoder-decoder reads the image and scales the maps of every stage of a ResNet.

Paper: Aboutalebi et al., "MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical Image
Analysis", arXiv 2110.06063. No code of it was found, so this is our reading of the paper's idea, a single body with a head for each scale:
widths, kernels and how a head scales its map are ours, and no published figure belongs to it.

It is registered by no name of its own; a plug-in of two lines does that, see docs/training.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.backbones.cnn import GatedCNN, attention_gate, resnet, resnet_keys


class Medusa(GatedCNN):
    """ResNet whose maps are scaled, after each stage and before the next, by what one encoder-decoder sees in the image.

    Args:
        in_chans: input channels.
        block: "basic" (18, 34) or "bottleneck" (50, 101, 152).
        depths: blocks per stage.
        width: channels of the stem; each further stage doubles them (times 4 in bottlenecks).
        body_width: channels of the finest level of the encoder-decoder; each coarser one has twice as many.
        body_depth: levels of the encoder-decoder, each with half of the size of the one before.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    first_conv = "stem.0"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        body_width: int = 16,
        body_depth: int = 4,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, resnet(in_chans, block, depths, width, [attention_gate("none")] * len(depths), drop_path_rate))
        self.body = Body(in_chans, body_width, body_depth)
        self.heads = nn.ModuleList(ScaleHead(body_width, channels) for channels in self.stage_channels)
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        seen, maps = self.run_block(self.body, x), []
        x = self.stem(x)
        for index, (blocks, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            for block in blocks:
                x = self.run_block(block, x)
            x = x * head(seen, x.shape[2:])
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def select_stages(self, out_indices: Iterable[int]) -> None:
        super().select_stages(out_indices)
        del self.heads[len(self.stages) :]

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of torchvision's classifier."""
        return resnet_keys(state)


class Body(nn.Module):
    """Encoder-decoder from an image to a map of half its size that has seen most of it."""

    def __init__(self, in_chans: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(_conv(before, after, 2) for before, after in pairwise([in_chans, *widths]))
        self.up = nn.ModuleList(_conv(fine + coarse, fine) for fine, coarse in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = []
        for down in self.down:
            x = down(x)
            maps.append(x)
        x = maps.pop()
        for up, skip in zip(reversed(self.up), reversed(maps), strict=True):
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([skip, x], 1))
        return x


class ScaleHead(nn.Module):
    """Factors in (0, 1) of the channels and positions of a stage from the map of the body, about 0.95 at first."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.gate = nn.Conv2d(width, channels, 1)

    def forward(self, seen: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(seen, (size[0], size[1]))
        return self.gate(F.relu(self.norm(self.conv(x)))).sigmoid()  # type: ignore[no-any-return]

    def reset_parameters(self) -> None:
        """Initialise so that the ResNet starts as it would without."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm.reset_parameters()
        nn.init.normal_(self.gate.weight, std=0.01)
        nn.init.constant_(self.gate.bias, 3.0)  # type: ignore[arg-type]  # it has one


def _conv(in_chans: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_chans, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
