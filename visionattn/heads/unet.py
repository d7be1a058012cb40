"""Attention U-Net: a decoder over the pyramid of any backbone, up to the size of the image.

From the coarsest map up, each level is enlarged, joined with the map of that size from the backbone (the skip, treated by
an attention of choice) and convolved twice. No backbone has maps at strides 1 and 2: a small stem of the
head's own makes them from the image.

The skips and where they come from:

* "none": U-Net (Ronneberger et al., arXiv 1505.04597).
* "gate": the additive gate of Attention U-Net (Oktay et al., arXiv 1804.03999, eq. 1 and 2), with batch norm in
  each projection as in its later descendants.
* "eca", "ela": gates per channel (arXiv 1910.03151), and per channel, row and column (arXiv 2403.01123).
* "dual": position and channel attention, one after the other (arXiv 1809.02983), as in DAU-Net and
  multi-scale dual guided attention. The cost of the former grows with the square of the positions, so that levels
  finer than stride 8 have the latter alone.
* "cross_contextual": a summary of each side attends to the positions of the other (Att-SwinU-Net, arXiv 2210.16898).
  In the published code the summary replaces the first position, whose content is lost; here it is
  added to all positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.heads.base import Aux, ConvModule, Head, HeadOutput, resize_to
from visionattn.heads.danet import ChannelAttention, PositionAttention
from visionattn.heads.deeplab import ASPP, usual_rates
from visionattn.kernels import dense_attention
from visionattn.layers import ECA, ELA

SkipAttention = Literal["none", "gate", "eca", "ela", "dual", "cross_contextual"]
Bottleneck = Literal["none", "aspp", "dual"]
_COARSE = 8  # least stride of position attention


class UNet(Head):
    """Logits at the size of the image.

    Args:
        channels, strides: of the image and the maps, finest first.
        num_classes: of the logits.
        stem_channels: of the head's own maps at strides 1 and 2.
        max_channels: of the decoder; a level has as many as its skip, but no more than these.
        skip_attention: see the module; without a gate for any skip finer than the backbone's first map.
        bottleneck: what the coarsest map goes through first: nothing, atrous pyramid pooling, or dual attention.
        deep_supervision: in training also logits of each level but the coarsest, weight halved from level to level.
        dropout: of the features of the classifier.

    Raises:
        ValueError: an unknown skip or bottleneck.
    """

    uses_image = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        stem_channels: tuple[int, int] = (32, 48),
        max_channels: int = 256,
        skip_attention: SkipAttention = "gate",
        bottleneck: Bottleneck = "none",
        deep_supervision: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.ModuleList([ConvModule(channels[0], stem_channels[0], 3), ConvModule(stem_channels[0], stem_channels[1], 3)])
        skips, own = [*stem_channels, *channels[1:-1]], len(stem_channels)
        widths = [min(skip, max_channels) for skip in skips]
        self.bottleneck = _bottleneck(bottleneck, channels[-1], min(channels[-1], max_channels), strides[-1])
        below = [*widths[1:], min(channels[-1], max_channels)]
        self.levels = nn.ModuleList(
            Level(low, skip, width, skip_attention if index >= own else "none", stride)
            for index, (low, skip, width, stride) in enumerate(zip(below, skips, widths, [1, 2, *strides[1:-1]], strict=True))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(widths[0], num_classes, 1)
        self.aux = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in (widths[1:] if deep_supervision else ()))
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        fine = self.stem[0](maps[0])
        half = self.stem[1](F.max_pool2d(fine, 2, ceil_mode=True))
        x, outputs = self.bottleneck(maps[-1]), []
        for level, skip in zip(reversed(self.levels), reversed([fine, half, *maps[1:-1]]), strict=True):
            x = level(x, skip)
            outputs.append(x)
        logits = self.conv_seg(self.dropout(x))
        if not self.training:
            return HeadOutput(logits)
        coarser = zip(self.aux, reversed(outputs[:-1]), strict=False)  # without aux none
        return HeadOutput(logits, tuple(Aux(f"level{index}", conv(part), 0.5**index) for index, (conv, part) in enumerate(coarser, 1)))

    @staticmethod
    def told_by(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "stem.1.conv.weight" not in state or "levels.0.up.conv.weight" not in state:
            return None
        marks = {"psi": "gate", "module.gn": "ela", "module.conv": "eca", "layers": "cross_contextual", "module": "dual"}
        attentions = [key for key in state if re.match(r"levels\.\d+\.attention\.", key)]
        skip = next((name for mark, name in marks.items() if any(f"attention.{mark}." in key for key in attentions)), "none")
        pyramid, dual = "bottleneck.image_pool.1.conv.weight" in state, "bottleneck.1.0.query_project.weight" in state
        widths = [value.shape[0] for key, value in state.items() if re.fullmatch(r"levels\.\d+\.up\.conv\.weight", key)]
        coarsest = state[f"levels.{len(widths) - 1}.up.conv.weight"].shape[1]
        return {
            "stem_channels": (state["stem.0.conv.weight"].shape[0], state["stem.1.conv.weight"].shape[0]),
            "max_channels": max(*widths, coarsest),
            "skip_attention": skip,
            "bottleneck": "aspp" if pyramid else "dual" if dual else "none",
            "deep_supervision": "aux.0.weight" in state,
        }


class Level(nn.Module):
    """Enlarge, join with the skip, convolve twice.

    Args:
        below: channels of the coarser level.
        skip: channels of the skip.
        width: channels of the result.
        attention: how the skip is treated.
        stride: of the skip.
    """

    def __init__(self, below: int, skip: int, width: int, attention: SkipAttention, stride: int) -> None:
        super().__init__()
        self.up = ConvModule(below, width)
        self.attention = _skip_attention(attention, skip, width, stride)
        self.convs = nn.Sequential(ConvModule(skip + width, width, 3), ConvModule(width, width, 3))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = resize_to(self.up(x), skip.shape[2:])  # projected first: the smaller map
        if self.attention is not None:
            skip, x = self.attention(skip, x)
        return self.convs(torch.cat([skip, x], 1))  # type: ignore[no-any-return]


class AdditiveGate(nn.Module):
    """The skip scaled, per position, by what skip and decoder say together: `skip * sigmoid(psi(relu(Wx skip + Wg x)))`.

    The decoder's map may be smaller; its projection is resized.
    """

    def __init__(self, skip: int, width: int, hidden: int) -> None:
        super().__init__()
        self.skip_project = nn.Sequential(nn.Conv2d(skip, hidden, 1), nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden))
        self.psi = nn.Sequential(nn.Conv2d(hidden, 1, 1), nn.BatchNorm2d(1))

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.skip_project(skip) + resize_to(self.project(x), skip.shape[2:])
        return skip * self.psi(F.relu(both)).sigmoid(), x


class CrossContextual(nn.Module):
    """The mean of each side attends to the positions of the other, twice, and is added to its own side.

    Args:
        skip: channels of the skip, which both sides have here; the decoder's map is projected to them and back.
        width: channels of the decoder's map.
    """

    def __init__(self, skip: int, width: int, *, num_heads: int = 8, head_dim: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.project = nn.Linear(width, skip)
        self.project_back = nn.Linear(skip, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([SummaryAttention(skip, num_heads, head_dim), SummaryAttention(skip, num_heads, head_dim)]) for _ in range(depth)
        )

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs = (y.flatten(2).transpose(1, 2) for y in (skip, x))  # B N C
        theirs = self.project(theirs)
        a, b = self.exchange(ours.mean(1, keepdim=True), ours, theirs.mean(1, keepdim=True), theirs)
        return skip + a.transpose(1, 2).unsqueeze(-1), x + self.project_back(b).transpose(1, 2).unsqueeze(-1)

    def exchange(self, a: torch.Tensor, ours: torch.Tensor, b: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New summaries `[B, 1, C]` from the old ones and the positions `[B, N, C]` of both sides."""
        for layer in self.layers:
            first, second = layer.children()
            a = a + first(a, theirs)
            b = b + second(b, ours)
        return a, b


class SummaryAttention(nn.Module):
    """Attention of one token to others and to itself; only the token is normed."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, token: torch.Tensor, others: torch.Tensor) -> torch.Tensor:  # B 1 C, B N C -> B 1 C
        token = self.norm(token)
        keys, values = self.kv(torch.cat([token, others], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).unsqueeze(1) for x in (self.q(token), keys, values))  # B 1 N heads d
        return self.proj(dense_attention(q, k, v).squeeze(1).flatten(2))  # type: ignore[no-any-return]


class SkipOnly(nn.Module):
    """A module for the skip alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.module(skip), x


def _skip_attention(name: SkipAttention, skip: int, width: int, stride: int) -> nn.Module | None:
    if name == "none":
        return None
    if name == "gate":
        return AdditiveGate(skip, width, max(1, min(skip, width) // 2))
    if name == "eca":  # taps by the paper's rule, eq. 12: the odd number next above (log2(C) + 1) / 2
        return SkipOnly(ECA(int((math.log2(skip) + 1) / 2) | 1))
    if name == "ela":
        return SkipOnly(ELA(skip, "b"))
    if name == "dual":
        return SkipOnly(_dual(skip) if stride >= _COARSE else ChannelAttention())
    if name == "cross_contextual":
        return CrossContextual(skip, width)
    raise ValueError(f"skip_attention: expected none, gate, eca, ela, dual or cross_contextual, got {name!r}")


def _bottleneck(name: Bottleneck, channels: int, width: int, stride: int) -> nn.Module:
    if name == "none":
        return ConvModule(channels, width, 3)
    if name == "aspp":
        return ASPP(channels, width, usual_rates(stride), separable=False)
    if name == "dual":
        return nn.Sequential(ConvModule(channels, width, 3), _dual(width))
    raise ValueError(f"bottleneck: expected none, aspp or dual, got {name!r}")


def _dual(channels: int) -> nn.Sequential:
    return nn.Sequential(PositionAttention(channels, max(1, channels // 8)), ChannelAttention())
