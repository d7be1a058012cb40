"""Attention U-Net: a decoder over the pyramid of any backbone, up to the size of the image.

Starting from the coarsest map, each level is upsampled, concatenated with the map of that size from the backbone (the skip,
with optional attention) and convolved twice. Backbones have no maps at strides 1 and 2; the head computes them from the
image with a small stem.

Attention of the skips:

* "none": U-Net (Ronneberger et al., arXiv 1505.04597).
* "gate": the additive gate of Attention U-Net (Oktay et al., arXiv 1804.03999, eq. 1 and 2), with batch norm in
  each projection as in later variants.
* "dual": position attention, then channel attention (arXiv 1809.02983), as in DAU-Net and
  multi-scale dual guided attention. The cost of position attention grows with the square of the number of positions, so levels
  finer than stride 8 use only channel attention.
* "cross_contextual": a summary of each side attends to the positions of the other (Att-SwinU-Net, arXiv 2210.16898).
  The published code replaces the first position with the summary and loses its content; here the summary is
  added to all positions.

Skips and the bottleneck also accept any attention module of `visionattn.attention.ATTENTION` by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.attention import ATTENTION, build_attention, unknown_attention
from visionattn.attention.registry import ANY_SIZE
from visionattn.heads.base import Aux, ConvModule, Head, HeadOutput, resize_to
from visionattn.heads.danet import ChannelAttention, PositionAttention
from visionattn.heads.deeplab import ASPP, usual_rates
from visionattn.kernels import dense_attention

# Choices of skips and bottlenecks besides the attention modules of the table.
SKIPS = ("none", "gate", "dual", "cross_contextual")
BOTTLENECKS = ("none", "aspp", "dual")
_COARSE = 8  # smallest stride with position attention


class UNet(Head):
    """Compute logits at the size of the image.

    Args:
        channels: channels of the image and the maps, finest first.
        strides: strides of the image and the maps.
        num_classes: logits per position.
        stem_channels: channels of the stem's maps at strides 1 and 2.
        max_channels: upper limit of the decoder's channels; below it, a level has as many as its skip.
        skip: attention of the skips, one of `SKIPS` or a name in `visionattn.attention.ATTENTION`. The skips at strides
            1 and 2, which come from the stem, have none.
        bottleneck: first layers on the coarsest map: a convolution ("none"), a convolution followed by dual attention or an
            attention module of the table, or atrous pyramid pooling ("aspp").
        deep_supervision: in training, also return logits of each level except the coarsest, weights halved from level to level.
        dropout: dropout rate on the features of the classifier.

    Raises:
        UserError: VA-M002, an unknown skip or bottleneck.
    """

    uses_image = True
    any_size = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        stem_channels: tuple[int, int] = (32, 48),
        max_channels: int = 256,
        skip: str = "gate",
        bottleneck: str = "none",
        deep_supervision: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.any_size = not {skip, bottleneck} & set(ATTENTION) - ANY_SIZE
        self.stem = nn.ModuleList([ConvModule(channels[0], stem_channels[0], 3), ConvModule(stem_channels[0], stem_channels[1], 3)])
        skips, own = [*stem_channels, *channels[1:-1]], len(stem_channels)
        widths = [min(count, max_channels) for count in skips]
        self.bottleneck = _bottleneck(bottleneck, channels[-1], min(channels[-1], max_channels), strides[-1])
        below = [*widths[1:], min(channels[-1], max_channels)]
        self.levels = nn.ModuleList(
            Level(low, count, width, skip if index >= own else "none", stride)
            for index, (low, count, width, stride) in enumerate(zip(below, skips, widths, [1, 2, *strides[1:-1]], strict=True))
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
        coarser = zip(self.aux, reversed(outputs[:-1]), strict=False)  # empty without aux
        return HeadOutput(logits, tuple(Aux(f"level{index}", conv(part), 0.5**index) for index, (conv, part) in enumerate(coarser, 1)))

    def init_weights(self) -> None:
        super().init_weights()
        # The usual deviation of 0.01 is for hundreds of channels: on 16, Adam's steps take hundreds of batches to make logits of it.
        nn.init.normal_(self.conv_seg.weight, std=self.conv_seg.in_channels**-0.5)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "stem.1.conv.weight" not in state or "levels.0.up.conv.weight" not in state:
            return None
        widths = [value.shape[0] for key, value in state.items() if re.fullmatch(r"levels\.\d+\.up\.conv\.weight", key)]
        coarsest = state[f"levels.{len(widths) - 1}.up.conv.weight"].shape[1]
        return {
            "stem_channels": (state["stem.0.conv.weight"].shape[0], state["stem.1.conv.weight"].shape[0]),
            "max_channels": max(*widths, coarsest),
            "skip": _infer_skip(state, len(widths) - 1),
            "bottleneck": _infer_bottleneck(state, coarsest),
            "deep_supervision": "aux.0.weight" in state,
        }


class Level(nn.Module):
    """Upsample, concatenate with the skip, convolve twice.

    Args:
        below: channels of the coarser level.
        skip: channels of the skip.
        width: channels of the output.
        attention: attention of the skip, see `UNet`.
        stride: stride of the skip.
    """

    def __init__(self, below: int, skip: int, width: int, attention: str, stride: int) -> None:
        super().__init__()
        self.up = ConvModule(below, width)
        self.attention = _skip_attention(attention, skip, width, stride)
        self.convs = nn.Sequential(ConvModule(skip + width, width, 3), ConvModule(width, width, 3))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = resize_to(self.up(x), skip.shape[2:])  # projected first, while the map is smaller
        if self.attention is not None:
            skip, x = self.attention(skip, x)
        return self.convs(torch.cat([skip, x], 1))  # type: ignore[no-any-return]


class AdditiveGate(nn.Module):
    """Scale the skip per position by a gate from skip and decoder: `skip * sigmoid(psi(relu(Wx skip + Wg x)))`.

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


class SummaryExchange(nn.Module):
    """Let a summary of each of two sets of tokens attend to the tokens of the other, `depth` times.

    Args:
        dim: channels of both.
    """

    def __init__(self, dim: int, *, num_heads: int = 8, head_dim: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([SummaryAttention(dim, num_heads, head_dim), SummaryAttention(dim, num_heads, head_dim)]) for _ in range(depth)
        )

    def exchange(self, a: torch.Tensor, ours: torch.Tensor, b: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the summaries `[B, 1, C]` from the positions `[B, N, C]` of both sides."""
        for layer in self.layers:
            first, second = layer.children()
            a = a + first(a, theirs)
            b = b + second(b, ours)
        return a, b


class CrossContextual(SummaryExchange):
    """Let the mean of each side attend to the positions of the other, twice, and add it to its own side.

    Args:
        skip: channels of the skip; the decoder's map is projected to them and back.
        width: channels of the decoder's map.
    """

    def __init__(self, skip: int, width: int, *, num_heads: int = 8, head_dim: int = 64, depth: int = 2) -> None:
        super().__init__(skip, num_heads=num_heads, head_dim=head_dim, depth=depth)
        self.project = nn.Linear(width, skip)
        self.project_back = nn.Linear(skip, width)

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs = (y.flatten(2).transpose(1, 2) for y in (skip, x))  # B N C
        theirs = self.project(theirs)
        a, b = self.exchange(ours.mean(1, keepdim=True), ours, theirs.mean(1, keepdim=True), theirs)
        return skip + a.transpose(1, 2).unsqueeze(-1), x + self.project_back(b).transpose(1, 2).unsqueeze(-1)


class SummaryAttention(nn.Module):
    """Attention of one token to others and to itself; only the token is normalised."""

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
    """Apply a module to the skip only."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.module(skip), x


def _skip_attention(name: str, skip: int, width: int, stride: int) -> nn.Module | None:
    if name == "none":
        return None
    if name == "gate":
        return AdditiveGate(skip, width, max(1, min(skip, width) // 2))
    if name == "dual":
        return SkipOnly(_dual(skip) if stride >= _COARSE else ChannelAttention())
    if name == "cross_contextual":
        return CrossContextual(skip, width)
    if name in ATTENTION:
        return SkipOnly(build_attention(name, skip))
    raise unknown_attention("skip", name, SKIPS)


def _bottleneck(name: str, channels: int, width: int, stride: int) -> nn.Module:
    if name == "none":
        return ConvModule(channels, width, 3)
    if name == "aspp":
        return ASPP(channels, width, usual_rates(stride), separable=False)
    if name == "dual":
        return nn.Sequential(ConvModule(channels, width, 3), _dual(width))
    if name in ATTENTION:
        return nn.Sequential(ConvModule(channels, width, 3), build_attention(name, width))
    raise unknown_attention("bottleneck", name, BOTTLENECKS)


def _dual(channels: int) -> nn.Sequential:
    return nn.Sequential(PositionAttention(channels, max(1, channels // 8)), ChannelAttention())


def _infer_skip(state: dict[str, torch.Tensor], level: int) -> str:
    """Find the skip by the tensors of the coarsest level; "none" if there are none or no name matches."""
    attention = _shapes(state, f"levels.{level}.attention.")
    width, joined = state[f"levels.{level}.convs.0.conv.weight"].shape[:2]
    candidates = [name for name in (*SKIPS, *ATTENTION) if name != "none"]
    for name, stride in product(candidates if attention else (), (_COARSE, 1)):
        with torch.device("meta"):
            built = _skip_attention(name, joined - width, width, stride)
        if built is not None and _shapes(built.state_dict()) == attention:
            return name
    return "none"


def _infer_bottleneck(state: dict[str, torch.Tensor], width: int) -> str:
    """Find the bottleneck by its tensors; "none" if there are none or no name matches."""
    if "bottleneck.image_pool.1.conv.weight" in state:
        return "aspp"
    attention = _shapes(state, "bottleneck.1.")
    for name in ("dual", *ATTENTION) if attention else ():
        with torch.device("meta"):
            built = _dual(width) if name == "dual" else build_attention(name, width)
        if _shapes(built.state_dict()) == attention:
            return name
    return "none"


def _shapes(state: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Size]:
    """Map the names under a prefix, without it, to shapes, ignoring the counters of batch norms."""
    own = {key.removeprefix(prefix): value.shape for key, value in state.items() if key.startswith(prefix)}
    return {key: shape for key, shape in own.items() if not key.endswith("num_batches_tracked")}
