"""MPU-Net: a network for volumes with position attention at the bottom and logits at each level.

Paper: Yu, Han and Song, "3D Medical Image Segmentation based on multi-scale MPU-Net", arXiv 2307.05799.
Upstream: Stefan-Yu404/MP-UNet, commit 936a4af (no licence). Written from the paper, the order of its layers and recorded outputs; same
results.

Convolutions beside a shortcut are halved, at the bottom widened twice without halving, and attended to; on the way up each level is
scaled by a gate between its convolutions and their input.

Differences from the authors' code:

* Any size of the volume, number of channels and depth. An odd axis is padded for the strided convolution, the decoder restores the sizes.
* Raw logits of each level at its own size, in training. In evaluation their mean at the finest size, where the authors' code takes that of
  probabilities: it holds for regions too, each of which has a probability of its own.
* Layers that their code builds and never calls are left out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.heads.danet import PositionAttention
from visionattn.heads.unet import AdditiveGate
from visionattn.models.network3d import Network3d
from visionattn.models.volumes import check_positions


class MPUNet3d(Network3d):
    """U-Net with position attention, gates and deep supervision.

    Args:
        in_chans: channels of the volume.
        num_classes: logits per voxel.
        width: channels of the finest level; each coarser one has twice as many, the bottom four times as many as the last.
        depth: how often the volume is halved.
        dropout: rate on the maps of all levels but the finest.
    """

    def __init__(self, in_chans: int, num_classes: int, *, width: int = 16, depth: int = 3, dropout: float = 0.2) -> None:
        super().__init__(num_classes)
        if depth < 1 or width < 1:
            raise ValueError(f"expected depth >= 1 and width >= 1, got depth {depth} and width {width}")
        widths = [width * 2**level for level in range(depth + 1)]
        bottom = 2 * widths[-1]
        self.stem = Shortcut(in_chans, width)
        self.down = nn.ModuleList(
            nn.Sequential(Down(finer, coarser, 2), Shortcut(coarser, coarser), nn.Dropout(dropout)) for finer, coarser in pairwise(widths)
        )
        self.wide = nn.Sequential(Down(widths[-1], bottom, 1), Shortcut(bottom, bottom), nn.Dropout(dropout))
        self.attend = nn.Sequential(Down(bottom, 2 * bottom, 1), Positions(2 * bottom, bottom))
        self.coarsest = Gated(widths[-1], bottom, dropout)
        self.up = nn.ModuleList(Level(coarser, finer, dropout if level else 0.0) for level, (finer, coarser) in enumerate(pairwise(widths)))
        self.logits = nn.ModuleList(nn.Conv3d(2 * channels, num_classes, 1) for channels in widths)
        self.init_weights()

    def forward(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Compute logits of volumes `[B, in_chans, x, y, z]`, in training of each level, finest first; in evaluation their mean.

        Raises:
            UserError: VA-M002, the coarsest level is too large for position attention.
        """
        maps = [self.run(self.stem, volume)]
        for block in self.down:
            maps.append(self.run(block, maps[-1]))
        check_positions(maps[-1])
        seen = self.run(self.attend, self.run(self.wide, maps[-1]))
        outputs = [self.run(self.coarsest, maps.pop(), seen)]
        for level, skip in zip(reversed(self.up), reversed(maps), strict=True):
            outputs.append(self.run(level, outputs[-1], skip))
        logits = [conv(x) for conv, x in zip(self.logits, reversed(outputs), strict=True)]
        if self.training:
            return logits
        fine = logits[0].shape[2:]
        return [torch.stack([F.interpolate(x, fine, mode="trilinear", align_corners=False) for x in logits]).mean(0)]

    def init_weights(self) -> None:
        """Initialise all parameters (He et al., arXiv 1502.01852)."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, a=0.25, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all have one


class Shortcut(nn.Module):
    """Add two convolutions; a map of fewer channels is added to each as its mean."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.same = in_chans == channels
        self.convs = _convs(in_chans, channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x) + (x if self.same else x.mean(1, keepdim=True))  # type: ignore[no-any-return]


class Down(nn.Module):
    """Largest of 3 x 3 x 3 voxels, strided convolution, batch norm, ELU."""

    def __init__(self, in_chans: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv3d(in_chans, channels, 2 if stride == 2 else 3, stride, padding=2 - stride)
        self.norm = nn.BatchNorm3d(channels)
        self.act = nn.ELU(channels)  # the authors' code passes the channels where ELU takes its negative limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool3d(x, 3, 1, padding=1)
        ends = [-side % self.stride for side in reversed(x.shape[2:])]
        if any(ends):
            x = F.pad(x, [side for end in ends for side in (0, end)])
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Position attention between two convolutions with batch norm and PReLU."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv3d(in_chans, channels, 3, padding=1), nn.BatchNorm3d(channels), nn.PReLU())
        self.positions = PositionAttention(channels, max(1, channels // 8))
        self.after = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1), nn.BatchNorm3d(channels), nn.PReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(self.positions(x.flatten(2, 3)).view_as(x))  # type: ignore[no-any-return]  # sees positions, not their order


class Gated(nn.Module):
    """Add three convolutions of one map to another, and scale the sum per voxel by a gate from both."""

    def __init__(self, in_chans: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.convs = _convs(in_chans, channels, 3)
        self.gate = AdditiveGate(channels, channels, max(1, channels // 2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        both = self.convs(x) + other
        gated, _ = self.gate(both.flatten(2, 3), other.flatten(2, 3))  # 1 x 1 x 1 convolutions
        return self.dropout(gated.view_as(both))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Upsample by a transposed convolution to the size of the skip, and let both add to it; twice as many channels as the skip."""

    def __init__(self, coarser: int, finer: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(2 * coarser, coarser, 2, 2)
        self.act = nn.PReLU(coarser)
        self.join = Gated(coarser + finer, coarser, dropout)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        height, width, length = skip.shape[2:]
        x = self.act(self.up(x))[..., :height, :width, :length]
        return self.join(torch.cat([x, skip], 1), x)  # type: ignore[no-any-return]


def _convs(before: int, channels: int, count: int) -> nn.Sequential:
    """3x3x3 convolutions, each with PReLU."""
    parts: list[nn.Module] = []
    for chans in [before, *[channels] * (count - 1)]:
        parts += [nn.Conv3d(chans, channels, 3, padding=1), nn.PReLU(channels)]
    return nn.Sequential(*parts)
