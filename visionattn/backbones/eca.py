"""ECA-Net: ResNet and MobileNetV2 whose blocks end in a gate per channel.

Paper: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv 1910.03151.
Upstream: github BangguWu/ECANet, commit b332f6b (MIT).

What differs from upstream, and why:

* The default kernel sizes are those of the released files (k3577 for ResNet-18, k3357 for 34, 101
  and 152, k3557 for 50), not the 3 everywhere of the code. A checkpoint's own sizes win: they are
  read from its shapes.
* Stochastic depth can be switched on; upstream has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import channel_gate
from visionattn.layers import drop_path_rates


class ECA(nn.Module):
    """Gate per channel; the convolution over channels has no bias."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.set_kernel_size(kernel_size)

    def set_kernel_size(self, kernel_size: int) -> None:
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channel_gate(x, self.conv.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a gate on a residual branch."""

    expansion = 1

    def __init__(self, in_chans: int, width: int, stride: int, kernel_size: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.eca = ECA(kernel_size)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = _shortcut(in_chans, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.eca(self.bn2(self.conv2(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a gate on a residual branch; the 3x3 has the stride."""

    expansion = 4

    def __init__(self, in_chans: int, width: int, stride: int, kernel_size: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.eca = ECA(kernel_size)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = _shortcut(in_chans, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.eca(self.bn3(self.conv3(y)))
        return self.relu(self.downsample(x) + self.drop_path(y))  # type: ignore[no-any-return]


def _shortcut(in_chans: int, out_chans: int, stride: int) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))


class _ECANet(Backbone):
    """What both trunks share: stem and stages in turn, initialisation, kernel sizes that follow the checkpoint."""

    cnn = True
    stem: nn.Sequential

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem(x), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """The gate's kernel sizes are those of the file."""
        sizes = []
        for name, module in self.named_modules():
            given = state.get(f"{name}.conv.weight")
            if not isinstance(module, ECA) or given is None or given.dim() != 3:
                continue
            old = module.conv.weight
            if given.shape[2] != old.shape[2]:
                sizes.append(given.shape[2])
                module.set_kernel_size(given.shape[2])
                module.to(old.device, old.dtype)
        return [f"kernel sizes of {len(sizes)} ECA gates set to {sorted(set(sizes))} as in the file"] if sizes else []


class ECAResNet(_ECANet):
    """ResNet with an ECA gate before each residual sum.

    Args:
        in_chans: input channels.
        block: "basic" (18, 34) or "bottleneck" (50, 101, 152).
        depths: blocks per stage.
        kernel_sizes: taps of the gate's convolution per stage, odd.
        width: channels of the stem; each further stage doubles them (times 4 in bottlenecks).
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    first_conv = "stem.0"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        kernel_sizes: Sequence[int] = (3, 5, 7, 7),
        width: int = 64,
        drop_path_rate: float = 0.0,
    ) -> None:
        cls: type[BasicBlock] | type[Bottleneck] = Bottleneck if block == "bottleneck" else BasicBlock
        widths = [width * 2**index for index in range(len(depths))]
        channels = [cls.expansion * stage_width for stage_width in widths]
        super().__init__(in_chans=in_chans, channels=channels, strides=[4 * 2**index for index in range(len(depths))])
        conv = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        inputs = [width, *channels[:-1]]
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            first_stride = 1 if index == 0 else 2
            blocks = [
                cls(channels[index] if depth else inputs[index], widths[index], 1 if depth else first_stride, kernel_sizes[index], rate)
                for depth, rate in enumerate(rates)
            ]
            self.stages.append(nn.ModuleList(blocks))
        self.init_weights()

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keys of the official classifier."""
        moved = [(rf"^layer{i + 1}\.", f"backbone.stages.{i}.") for i in range(4)]
        return rename_keys(state, [*moved, (r"^conv1\.", "backbone.stem.0."), (r"^bn1\.", "backbone.stem.1."), (r"^fc\.", "head.fc.")])


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection and a gate."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        hidden = expansion * in_chans
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu(in_chans, hidden, 1)]
        layers += [
            _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_chans, 1, bias=False),
            nn.BatchNorm2d(out_chans),
            ECA(1 if out_chans < 96 else 3),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_chans == out_chans
        self.drop_path = DropPath(drop_path) if drop_path and self.residual else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop_path(self.conv(x))
        return x + y if self.residual else y  # type: ignore[no-any-return]


def _conv_bn_relu(in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans), nn.ReLU6(inplace=True))


class ECAMobileNetV2(_ECANet):
    """MobileNetV2 with an ECA gate after each linear projection.

    The maps have strides 4, 8, 16 and 32; the last one is the 1280-channel map the classifier pools.

    Args:
        in_chans: input channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    first_conv = "stem.0.0"
    # expansion, channels, depth, stride; by stage. The first entry belongs to the stem (stride 2).
    SETTINGS = (
        ((1, 16, 1, 1),),
        ((6, 24, 2, 2),),
        ((6, 32, 3, 2),),
        ((6, 64, 4, 2), (6, 96, 3, 1)),
        ((6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self, *, in_chans: int = 3, drop_path_rate: float = 0.0) -> None:
        super().__init__(in_chans=in_chans, channels=(24, 32, 96, 1280), strides=(4, 8, 16, 32))
        depths = [sum(depth for _, _, depth, _ in groups) for groups in self.SETTINGS]
        chans, parts = 32, []
        for groups, rates in zip(self.SETTINGS, drop_path_rates(drop_path_rate, depths), strict=True):
            blocks: list[nn.Module] = []
            for expansion, out_chans, depth, stride in groups:
                for index in range(depth):
                    blocks.append(InvertedResidual(chans, out_chans, 1 if index else stride, expansion, rates[len(blocks)]))
                    chans = out_chans
            parts.append(blocks)
        parts[-1].append(_conv_bn_relu(chans, 1280, 1))
        self.stem = nn.Sequential(_conv_bn_relu(in_chans, 32, 3, 2), *parts[0])
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in parts[1:])
        self.init_weights()

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keys of the official classifier; `features.N` counts the stem, all blocks and the last convolution."""
        rules = [(r"^features\.([01])\.", r"backbone.stem.\1.")]
        number = 2
        for stage, depth in enumerate((2, 3, 7, 5)):
            rules += [(rf"^features\.{number + block}\.", f"backbone.stages.{stage}.{block}.") for block in range(depth)]
            number += depth
        return rename_keys(state, [*rules, (r"^classifier\.1\.", "head.fc.")])


_V1 = {"interpolation": "bilinear"}

register_backbone(
    ECAResNet,
    {
        "eca_resnet18": {"block": "basic", "depths": (2, 2, 2, 2), "kernel_sizes": (3, 5, 7, 7)},
        "eca_resnet34": {"block": "basic", "depths": (3, 4, 6, 3), "kernel_sizes": (3, 3, 5, 7)},
        "eca_resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "kernel_sizes": (3, 5, 5, 7)},
        "eca_resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3), "kernel_sizes": (3, 3, 5, 7)},
        "eca_resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3), "kernel_sizes": (3, 3, 5, 7)},
    },
    {"*": _V1},
)
register_backbone(ECAMobileNetV2, {"eca_mobilenetv2": {}}, {"*": _V1})
