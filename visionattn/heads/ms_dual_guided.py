"""Multi-scale self-guided attention: position and channel attention at each scale, twice, guided by a semantic code.

Paper: Sinha and Dolz, "Multi-scale self-guided attention for medical image segmentation", arXiv 1906.02849. Written from
the paper and recorded outputs of the authors' code (sinAshish/Multi-Scale-Attention, commit 96d76f2, no licence); same results.

All maps are projected to one width at the size of the finest and fused. At each scale, position and channel attention look at the map
beside the fused one, and their sum is multiplied by the output of an encoder-decoder that reads the same; a second step looks at the map
beside the fused one times the result of the first. All scales share the encoder-decoder of a step.

Differences from the authors' code:

* Any size and number of maps; the encoder-decoder's output is resized to its input, which changes nothing if that has even sides.
* In training, the logits are those of the finest scale and the others are auxiliary outputs; in evaluation, the mean of the second step,
  as theirs.
* Modules that the authors' class never calls are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.heads.base import Aux, Head, HeadOutput, Regularizer, resize_to
from visionattn.heads.danet import ChannelAttention, PositionAttention


class MSDualGuided(Head):
    """Compute logits at the stride of the finest map.

    The cost of position attention grows with the square of the number of positions of the finest map.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head.
        semantic_weight: weight of the difference between the semantic codes of both steps.
        reconstruction_weight: weight of the difference between input and output of the encoder-decoders.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 64,
        semantic_weight: float = 0.25,
        reconstruction_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.semantic_weight, self.reconstruction_weight = semantic_weight, reconstruction_weight
        self.projects = nn.ModuleList(ConvPReLU(count, width) for count in channels)
        self.fuse = nn.Sequential(ConvPReLU(len(channels) * width, width, 3), ConvPReLU(width, width, 3), ConvPReLU(width, width))
        self.first_semantic, self.second_semantic = SemanticModule(2 * width), SemanticModule(2 * width)
        self.first = nn.ModuleList(GuidedAttention(width) for _ in channels)
        self.second = nn.ModuleList(GuidedAttention(width) for _ in channels)
        self.first_conv_seg = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in channels)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)  # of the finest scale, second step
        self.coarser_conv_seg = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in channels[1:])
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        scales = [resize_to(project(x), maps[0].shape[2:]) for project, x in zip(self.projects, maps, strict=True)]
        fused = self.fuse(torch.cat(scales[::-1], 1))
        guided, refined, semantic, reconstruction = [], [], [], []
        for scale, first, second in zip(scales, self.first, self.second, strict=True):
            before = torch.cat([scale, fused], 1)
            code, decoded = self.first_semantic(before)
            guided.append(first(before, decoded))
            after = torch.cat([scale, guided[-1] * fused], 1)
            new_code, new_decoded = self.second_semantic(after)
            refined.append(second(after, new_decoded))
            semantic.append(_difference(code, new_code))
            reconstruction += [_difference(before, decoded), _difference(after, new_decoded)]
        logits = [conv(x) for conv, x in zip([self.conv_seg, *self.coarser_conv_seg], refined, strict=True)]
        if not self.training:
            return HeadOutput(torch.stack(logits).mean(0))
        aux = [Aux(f"second{index}", x, 1.0) for index, x in enumerate(logits[1:], 1)]
        aux += [Aux(f"first{index}", conv(x), 1.0) for index, (conv, x) in enumerate(zip(self.first_conv_seg, guided, strict=True))]
        regularizers = (
            Regularizer("semantic", torch.stack(semantic).sum(), self.semantic_weight),
            Regularizer("reconstruction", torch.stack(reconstruction).sum(), self.reconstruction_weight),
        )
        return HeadOutput(logits[0], tuple(aux), regularizers)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if not any(key.startswith("first_semantic.") for key in state):
            return None
        return {"width": state["conv_seg.weight"].shape[1]}


class GuidedAttention(nn.Module):
    """Sum of position and channel attention, times the decoded semantics of the same input, projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Sequential(
            ConvPReLU(2 * width, width, 3), PositionAttention(width, max(1, width // 8)), ConvPReLU(width, width, 3)
        )
        self.channels = nn.Sequential(ConvPReLU(2 * width, width, 3), ChannelAttention(), ConvPReLU(width, width, 3))
        self.semantic = nn.Conv2d(2 * width, width, 3, padding=1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        return self.project((self.positions(x) + self.channels(x)) * self.semantic(decoded))  # type: ignore[no-any-return]


class SemanticModule(nn.Module):
    """Encoder-decoder: the code, at a quarter of the size with four times the channels, and the decoded input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([_convs(channels, 2 * channels), _convs(2 * channels, 4 * channels)])
        self.decoders = nn.ModuleList([_decoder(2 * channels), _decoder(channels)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = _halve(self.encoders[0](x))
        code = _halve(self.encoders[1](half))
        return code, resize_to(self.decoders[1](resize_to(self.decoders[0](code), half.shape[2:])), x.shape[2:])


class ConvPReLU(nn.Module):
    """Size-preserving convolution, batch norm, PReLU with one slope."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


def _convs(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    parts: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        parts += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*parts)


def _decoder(channels: int) -> nn.Sequential:
    return nn.Sequential(*_convs(2 * channels, channels), nn.ConvTranspose2d(channels, channels, 2, 2))


def _halve(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 2, ceil_mode=min(x.shape[2:]) == 1)  # nothing would be left of a single row


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return F.mse_loss(a.to(wide), b.to(wide))
