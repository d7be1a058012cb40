"""DeepLabV3+ (arXiv:1802.02611) and DeepLabV3 (arXiv:1706.05587), as in mmsegmentation 1.2.2.

They were designed for convolutional networks dilated to stride 8 or 16. The last map of our backbones usually has
stride 32, for which no rates are published; the rates then shrink to span as many pixels
of the image as (6, 12, 18) do at stride 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, resize_to


class Separable(nn.Module):
    """Depthwise separable 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
        self.pointwise_conv = ConvModule(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))  # type: ignore[no-any-return]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: concatenated dilated convolutions of the map and its average.

    Args:
        in_channels: channels of the map.
        width: channels of each branch and of the output.
        rates: dilation of each branch; rate 1 is a 1x1 convolution.
        separable: depthwise separable convolutions at the other rates.
    """

    def __init__(self, in_channels: int, width: int, rates: Sequence[int], *, separable: bool) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, width))
        self.aspp_modules = nn.ModuleList(_branch(in_channels, width, rate, separable) for rate in rates)
        self.bottleneck = ConvModule((1 + len(rates)) * width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        average = resize_to(self.image_pool(x), x.shape[2:])
        return self.bottleneck(torch.cat([average, *(branch(x) for branch in self.aspp_modules)], 1))  # type: ignore[no-any-return]


class DeepLabV3Plus(Head):
    """Atrous spatial pyramid pooling on the last map, refined with the first.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head.
        dilations: rate of each branch; rate 1 is a 1x1 convolution. None uses 1 and (6, 12, 18) * 16 / stride.
        low_width: channels of the projected first map; 0 omits it (DeepLabV3) and ends at the last map's resolution.
        separable: depthwise separable convolutions at the other rates (V3+), or full ones (V3).
        dropout: dropout rate of whole channels before the classifier.
    """

    auxiliary = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        dilations: Sequence[int] | None = None,
        low_width: int = 48,
        separable: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        rates = usual_rates(strides[-1]) if dilations is None else tuple(dilations)
        self.aspp = ASPP(channels[-1], width, rates, separable=separable)
        self.c1_bottleneck = ConvModule(channels[0], low_width) if low_width else None
        self.sep_bottleneck = nn.Sequential(Separable(width + low_width, width), Separable(width, width)) if low_width else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        x = self.aspp(maps[-1])
        if self.c1_bottleneck is not None:
            low = self.c1_bottleneck(maps[0])
            x = torch.cat([resize_to(x, low.shape[2:]), low], 1)
        return HeadOutput(self.conv_seg(self.dropout(self.sep_bottleneck(x))))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move the parts of the pyramid from the head to `aspp`."""
        pyramid = ("image_pool.", "aspp_modules.", "bottleneck.")
        return {f"aspp.{key}" if key.startswith(pyramid) else key: value for key, value in state.items()}

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "aspp.image_pool.1.conv.weight" not in state:
            return None
        low = state.get("c1_bottleneck.conv.weight")
        return {
            "width": state["conv_seg.weight"].shape[1],
            "low_width": low.shape[0] if low is not None else 0,
            "separable": any(key.startswith("aspp.aspp_modules.") and ".depthwise_conv." in key for key in state),
        }


def usual_rates(stride: int) -> tuple[int, ...]:
    """Rates (1, 6, 12, 18) at stride 16, scaled to the same span in pixels at other strides."""
    return (1, *(max(1, rate * 16 // stride) for rate in (6, 12, 18)))


def _branch(channels: int, width: int, rate: int, separable: bool) -> nn.Module:
    if rate == 1:
        return ConvModule(channels, width)
    return Separable(channels, width, dilation=rate) if separable else ConvModule(channels, width, 3, dilation=rate)
