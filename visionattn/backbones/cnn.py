"""ResNet and MobileNetV2 trunks with gates in their blocks; the families (eca.py, ela.py) define which gate and where.

Papers: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, with the stride in
the 3x3 convolution; Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import nn

from visionattn.attention import ATTENTION, build_attention, unknown_attention
from visionattn.backbones.base import Backbone, rename_keys
from visionattn.layers import drop_path_rates, init_convolutions


@dataclass(frozen=True)
class Gate:
    """Gate of the blocks of a stage.

    Attributes:
        name: name of the module in a residual block.
        build: builds the gate for a number of channels.
        inner: gate the output of the 3x3 convolution of bottlenecks and expanding inverted residuals
            (others have no gate) instead of the output of the branch.
    """

    name: str
    build: Callable[[int], nn.Module]
    inner: bool = False


def attention_gate(attn: str, *, name: str = "attn", inner: bool = False) -> Gate:
    """Create the gate for an argument `attn`: a name in `visionattn.attention.ATTENTION`, or "none".

    Raises:
        UserError: VA-M002 with close names.
    """
    if attn == "none":
        return Gate(name, lambda channels: nn.Identity(), inner)
    if attn not in ATTENTION:
        raise unknown_attention("attn", attn, ["none"])
    return Gate(name, partial(build_attention, attn), inner)


@dataclass(frozen=True)
class Trunk:
    """A network without its classifier: the stem, the blocks of each stage, and channels and strides of their maps."""

    stem: nn.Sequential
    stages: nn.ModuleList
    channels: Sequence[int]
    strides: Sequence[int]


class GatedCNN(Backbone):
    """CNN that runs stem and stages in sequence."""

    cnn = True
    size_step = 1

    def __init__(self, in_chans: int, trunk: Trunk) -> None:
        super().__init__(in_chans=in_chans, channels=trunk.channels, strides=trunk.strides)
        self.stem = trunk.stem
        self.stages = trunk.stages
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem(x), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def dilate_stage(self, stage: Any, before: int, after: int) -> None:
        """As torchvision: the convolution with the stride keeps the dilation from before."""
        dilation = before
        for conv in (conv for block in stage for conv in _convolutions(block)):
            strided, conv.stride = conv.stride != (1, 1), (1, 1)
            if conv.kernel_size != (1, 1):
                conv.dilation, conv.padding = (dilation, dilation), tuple(dilation * (side // 2) for side in conv.kernel_size)
                dilation = after if strided else dilation

    def init_weights(self) -> None:
        init_convolutions(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


def _convolutions(block: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions of a block in their order, without those of its gate."""
    for child in block.children():
        if isinstance(child, nn.Conv2d):
            yield child
        elif isinstance(child, nn.Sequential):
            yield from _convolutions(child)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a gate on a residual branch."""

    expansion = 1

    def __init__(self, in_chans: int, width: int, stride: int, gate: Gate, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.gate_name = gate.name
        self.add_module(gate.name, gate.build(width))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = _shortcut(in_chans, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = getattr(self, self.gate_name)(self.bn2(self.conv2(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a gate on a residual branch."""

    expansion = 4

    def __init__(self, in_chans: int, width: int, stride: int, gate: Gate, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.gate_name, self.gate_inner = gate.name, gate.inner
        self.add_module(gate.name, gate.build(width if gate.inner else 4 * width))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = _shortcut(in_chans, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = getattr(self, self.gate_name)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(gate(y))) if self.gate_inner else gate(self.bn3(self.conv3(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))  # type: ignore[no-any-return]


def _shortcut(in_chans: int, out_chans: int, stride: int) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))


def resnet(
    in_chans: int,
    block: Literal["basic", "bottleneck"],
    depths: Sequence[int],
    width: int,
    gates: Sequence[Gate],
    drop_path_rate: float,
) -> Trunk:
    """Build a ResNet with one kind of gate per stage; `width` is the width of the stem, doubled by each further stage."""
    cls: type[BasicBlock] | type[Bottleneck] = Bottleneck if block == "bottleneck" else BasicBlock
    widths = [width * 2**index for index in range(len(depths))]
    channels = [cls.expansion * stage_width for stage_width in widths]
    conv = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
    stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    stages = nn.ModuleList()
    inputs = [width, *channels[:-1]]
    for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
        first_stride = 1 if index == 0 else 2
        blocks = [
            cls(channels[index] if depth else inputs[index], widths[index], 1 if depth else first_stride, gates[index], rate)
            for depth, rate in enumerate(rates)
        ]
        stages.append(nn.ModuleList(blocks))
    return Trunk(stem, stages, channels, [4 * 2**index for index in range(len(depths))])


def resnet_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's keys, which the authors of the gates keep, to ours."""
    moved = [(rf"^layer{index + 1}\.", f"backbone.stages.{index}.") for index in range(4)]
    return rename_keys(state, [*moved, (r"^conv1\.", "backbone.stem.0."), (r"^bn1\.", "backbone.stem.1."), (r"^fc\.", "head.fc.")])


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection and a gate."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, expansion: int, gate: Gate, drop_path: float) -> None:
        super().__init__()
        hidden = expansion * in_chans
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu(in_chans, hidden, 1)]
        layers.append(_conv_bn_relu(hidden, hidden, 3, stride, groups=hidden))
        if gate.inner and expansion > 1:
            layers.append(gate.build(hidden))
        layers += [nn.Conv2d(hidden, out_chans, 1, bias=False), nn.BatchNorm2d(out_chans)]
        if not gate.inner:
            layers.append(gate.build(out_chans))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_chans == out_chans
        self.drop_path = DropPath(drop_path) if drop_path and self.residual else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop_path(self.conv(x))
        return x + y if self.residual else y  # type: ignore[no-any-return]


def _conv_bn_relu(in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans), nn.ReLU6(inplace=True))


# MobileNetV2: expansion, channels, depth, stride; by stage. The first entry belongs to the stem (stride 2).
_SETTINGS = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenetv2(in_chans: int, gate: Gate, drop_path_rate: float) -> Trunk:
    """Build a MobileNetV2; the last map is the 1280-channel map that the classifier pools."""
    depths = [sum(depth for _, _, depth, _ in groups) for groups in _SETTINGS]
    chans, parts = 32, []
    for groups, rates in zip(_SETTINGS, drop_path_rates(drop_path_rate, depths), strict=True):
        blocks: list[nn.Module] = []
        for expansion, out_chans, depth, stride in groups:
            for index in range(depth):
                blocks.append(InvertedResidual(chans, out_chans, 1 if index else stride, expansion, gate, rates[len(blocks)]))
                chans = out_chans
        parts.append(blocks)
    parts[-1].append(_conv_bn_relu(chans, 1280, 1))
    stem = nn.Sequential(_conv_bn_relu(in_chans, 32, 3, 2), *parts[0])
    return Trunk(stem, nn.ModuleList(nn.ModuleList(blocks) for blocks in parts[1:]), (24, 32, 96, 1280), (4, 8, 16, 32))


def mobilenetv2_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's keys to ours; its `features.N` numbers the stem, all blocks and the last convolution."""
    rules = [(r"^features\.([01])\.", r"backbone.stem.\1.")]
    number = 2
    for stage, depth in enumerate((2, 3, 7, 5)):
        rules += [(rf"^features\.{number + block}\.", f"backbone.stages.{stage}.{block}.") for block in range(depth)]
        number += depth
    return rename_keys(state, [*rules, (r"^classifier\.1\.", "head.fc.")])
