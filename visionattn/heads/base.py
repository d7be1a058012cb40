"""Base of all segmentation heads: maps in, raw logits out.

Modules are named as in mmsegmentation (open-mmlab/mmsegmentation 1.2.2, Apache-2.0), so that state
dicts of published files load; initial values follow mmcv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.layers import init_convolutions, same_size


class Aux(NamedTuple):
    """Auxiliary output in training: logits at their own size, and the weight of their loss."""

    name: str
    logits: torch.Tensor
    weight: float


class Regularizer(NamedTuple):
    """Loss that a head computes in training without the labels, unweighted, and its weight."""

    name: str
    value: torch.Tensor
    weight: float


class HeadOutput(NamedTuple):
    """Raw logits `[B, K, h, w]` at the resolution of the head; `aux` and `regularizers` only in training."""

    logits: torch.Tensor
    aux: tuple[Aux, ...] = ()
    regularizers: tuple[Regularizer, ...] = ()


class Head(nn.Module):
    """Compute logits from the maps of a backbone.

    A head is built from `channels` and `strides` of the maps (finest first), `num_classes` and its own keyword
    arguments. It resizes maps to each other's sizes, never by a factor.

    Attributes:
        uses_image: whether the image is passed before the maps (then `channels` and `strides` start with those of the image).
        auxiliary: whether published recipes train it with an auxiliary head.
        any_size: whether an exported graph of open size is right at any size of the maps.
    """

    uses_image: bool = False
    auxiliary: bool = False
    any_size: bool = False

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialise all parameters; also completes a head that was built on the meta device."""
        init_convolutions(self)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of published files to ours; both without the prefix `decode_head.`."""
        return state

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        """Infer arguments of the class from the tensors of a head, under our keys; None if they belong to another head."""
        return None


class ConvModule(nn.Module):
    """Size-preserving convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Scale(nn.Module):
    """Learned factor, initially 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)


def resize_to(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize `x` [B, C, h, w] to another height and width: bilinear, corners not aligned."""
    if same_size(x.shape[2:], size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
