"""A residual 3D U-Net, the plain network of the volumes task.

The form is that of nnU-Net's residual encoder (Isensee et al., arXiv 2404.09556): blocks of two 3 x 3 x 3 convolutions with instance
norm and leaky ReLU, strided convolutions on the way down, twice the channels at each level, logits at each level on the way up for deep
supervision. Own code; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.models.network3d import Network3d

Stride = tuple[int, int, int]


class ResidualBlock3d(nn.Module):
    """Two convolutions beside a shortcut; the first may stride."""

    def __init__(self, in_chans: int, out_chans: int, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.norm1 = nn.InstanceNorm3d(out_chans, affine=True)
        self.conv2 = nn.Conv3d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.norm2 = nn.InstanceNorm3d(out_chans, affine=True)
        self.shortcut: nn.Module = nn.Identity()
        if in_chans != out_chans or stride != (1, 1, 1):
            self.shortcut = nn.Conv3d(in_chans, out_chans, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.shortcut(x), 0.01)


class UNet3d(Network3d):
    """Logits of each voxel, in training those of every level, finest first.

    Args:
        in_chans: channels of a volume.
        num_classes: logits per voxel.
        width: channels at the finest level.
        depth: levels, each with half of the resolution of the one before.
        deep_supervision: logits at every level but the coarsest, in training.
        strides: of each level but the first, where axes differ; see `pool_strides`.
        max_channels: most channels of a level.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        *,
        width: int = 16,
        depth: int = 4,
        deep_supervision: bool = True,
        strides: Sequence[Stride] | None = None,
        max_channels: int = 320,
    ) -> None:
        super().__init__(num_classes)
        if depth < 2 or width < 1:
            raise ValueError(f"expected depth >= 2 and width >= 1, got depth {depth} and width {width}")
        channels = [min(width * 2**level, max_channels) for level in range(depth)]
        steps = list(strides) if strides is not None else [(2, 2, 2)] * (depth - 1)
        if len(steps) != depth - 1:
            raise ValueError(f"strides: expected {depth - 1}, one for each level but the first, got {len(steps)}")
        pairs = list(pairwise(channels))
        self.stem = ResidualBlock3d(in_chans, channels[0])
        self.down = nn.ModuleList(ResidualBlock3d(fine, coarse, step) for (fine, coarse), step in zip(pairs, steps, strict=True))
        self.reduce = nn.ModuleList(nn.Conv3d(coarse, fine, 1, bias=False) for fine, coarse in pairs)
        self.up = nn.ModuleList(ResidualBlock3d(2 * fine, fine) for fine, _ in pairs)
        levels = depth - 1 if deep_supervision else 1
        self.logits = nn.ModuleList(nn.Conv3d(channels[level], num_classes, 1) for level in range(levels))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute logits of volumes `[B, in_chans, x, y, z]`; in evaluation only those of the finest level."""
        maps = [self.run(self.stem, x)]
        for block in self.down:
            maps.append(self.run(block, maps[-1]))
        x, outputs = maps.pop(), []
        for level in reversed(range(len(self.up))):
            skip = maps[level]
            x = F.interpolate(self.reduce[level](x), skip.shape[2:], mode="trilinear", align_corners=False)
            x = self.run(self.up[level], torch.cat([skip, x], 1))
            if level == 0 or (self.training and level < len(self.logits)):
                outputs.append(self.logits[level](x))
        return outputs[::-1]

    def init_weights(self) -> None:
        """Initialise all parameters (He et al., arXiv 1502.01852)."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.InstanceNorm3d):
                module.reset_parameters()


def pool_strides(patch: Sequence[int], spacing: Sequence[float], depth: int) -> list[Stride]:
    """Strides of each level but the first: an axis is halved while it keeps 4 voxels and is not more than twice as coarse as the finest."""
    sides, sizes, strides = list(patch), list(spacing), []
    for _ in range(depth - 1):
        finest = min(sizes)
        step = [2 if side >= 8 and size <= 2 * finest else 1 for side, size in zip(sides, sizes, strict=True)]
        if step == [1, 1, 1]:  # the coarse axes are all that is left
            step = [2 if side >= 8 else 1 for side in sides]
        sides = [-(-side // factor) for side, factor in zip(sides, step, strict=True)]
        sizes = [size * factor for size, factor in zip(sizes, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
    return strides
