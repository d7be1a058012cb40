"""Networks for volumes: attention-gated and dual-attention U-Net.

Paper: Bouget et al., "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms",
arXiv 2101.07715 (AGUNet and DAUNet). Written from the paper; the gates are those of Attention U-Net, arXiv 1804.03999, the
dual attention is that of arXiv 1809.02983.

Differences from the paper:

* Any size of the volume. An axis is halved, rounded up, while it has more than 4 voxels; the decoder restores the exact sizes.
* Raw logits, and those of coarser levels only in training. The paper's networks return probabilities.
* Instance norm by default, as volumes are trained in batches of one or two; the paper's is `norm="batch"`.
* Channel attention weights the least similar channels most, as in the code of its authors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.errors import UserError
from visionattn.heads.danet import ChannelAttention, PositionAttention
from visionattn.models.network3d import Network3d

# Voxels of the coarsest map above which position attention is refused: its weights are their number squared, 64 MiB here.
POSITIONS = 4096
_SMALL = 4  # longest axis that is not halved

Norm = Literal["instance", "batch"]


class AGUNet3d(Network3d):
    """Attention-gated U-Net with multi-scale input and deep supervision.

    Args:
        in_chans: channels of the volume.
        num_classes: logits per voxel.
        width: channels of the finest level; each coarser one has twice as many, up to 16 times `width`.
        depth: how often the volume is halved.
        gate: how the gate of a skip joins skip and decoder: "concat" (AGUNet) or "add" (Attention U-Net).
        dual_attention: position and channel attention at the coarsest level (DAUNet).
        deep_supervision: in training, also return the logits of each level except the coarsest.
        norm: "instance" or "batch".
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        *,
        width: int = 16,
        depth: int = 4,
        gate: Literal["concat", "add"] = "concat",
        dual_attention: bool = False,
        deep_supervision: bool = True,
        norm: Norm = "instance",
    ) -> None:
        super().__init__(num_classes)
        for argument, value, known in (("gate", gate, ("concat", "add")), ("norm", norm, ("instance", "batch"))):
            if value not in known:
                raise ValueError(f"{argument}: expected {' or '.join(known)}, got {value!r}")
        widths = [width * min(2**level, 16) for level in range(depth + 1)]
        steps = list(pairwise(widths))  # finer and coarser
        self.stem = _convs(in_chans, widths[0], norm)
        self.inputs = nn.ModuleList(nn.Conv3d(in_chans, finer, 3, padding=1) for finer, _ in steps)
        self.down = nn.ModuleList(_convs(2 * finer, coarser, norm) for finer, coarser in steps)
        self.dual = DualAttention(widths[-1]) if dual_attention else None
        self.levels = nn.ModuleList(Level(coarser, finer, gate, norm) for finer, coarser in steps)
        self.conv_seg = nn.Conv3d(widths[0], num_classes, 1)
        self.aux = nn.ModuleList(nn.Conv3d(channels, num_classes, 1) for channels in (widths[1:-1] if deep_supervision else ()))
        self.init_weights()

    def forward(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Compute logits of volumes `[B, in_chans, D, H, W]`: `[B, num_classes, D, H, W]`, in training followed by those of coarser levels.

        Raises:
            UserError: VA-M002, the coarsest level is too large for position attention.
        """
        x, skips = self.run(self.stem, volume), []
        for project, block in zip(self.inputs, self.down, strict=True):
            skips.append(x)
            x, volume = _halve(x, F.max_pool3d), _halve(volume, F.avg_pool3d)
            x = self.run(block, torch.cat([x, F.relu(project(volume))], 1))
        if self.dual is not None:
            x = self.dual(x)
        outputs = []
        for up, skip in zip(reversed(self.levels), reversed(skips), strict=True):
            x = self.run(up, x, skip)
            outputs.append(x)
        logits = [self.conv_seg(outputs[-1])]
        if self.training:
            logits += [conv(y) for conv, y in zip(self.aux, reversed(outputs[:-1]), strict=False)]  # none without deep supervision
        return logits

    def init_weights(self) -> None:
        """Initialise all parameters, including those of a model built on the meta device."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all have one


class Level(nn.Module):
    """Upsample by a transposed convolution to the size of the skip, gate the skip, concatenate, convolve twice."""

    def __init__(self, below: int, width: int, gate: str, norm: Norm) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, 3, padding=1)
        self.gate = Gate(width, below, gate)
        self.convs = _convs(2 * width, width, norm)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        skip = self.gate(skip, x)
        return self.convs(torch.cat([skip, self.upsample(x, skip.shape[2:])], 1))  # type: ignore[no-any-return]

    def upsample(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Transpose the step of the pooling along each axis, 1 or 2: a kernel of 3 meets both, and any size before rounding."""
        stride = [2 if full > _SMALL else 1 for full in size]
        beyond = [full - (small - 1) * step - 1 for full, small, step in zip(size, x.shape[2:], stride, strict=True)]
        return F.relu(F.conv_transpose3d(x, self.up.weight, self.up.bias, stride, padding=1, output_padding=beyond))


class Gate(nn.Module):
    """Scale the skip per voxel by a gate from skip and the coarser level, whose projection is enlarged."""

    def __init__(self, skip: int, below: int, combine: str) -> None:
        super().__init__()
        hidden = max(1, skip // 2)
        self.combine = combine
        self.skip_project = nn.Conv3d(skip, hidden, 1)
        self.project = nn.Conv3d(below, hidden, 1)
        self.psi = nn.Conv3d(2 * hidden if combine == "concat" else hidden, 1, 1)

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ours = self.skip_project(skip)
        theirs = F.interpolate(self.project(x), size=skip.shape[2:], mode="trilinear", align_corners=False)
        both = torch.cat([ours, theirs], 1) if self.combine == "concat" else ours + theirs
        return skip * self.psi(F.relu(both)).sigmoid()


class DualAttention(nn.Module):
    """Mean of position and channel attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positions = PositionAttention(channels, max(1, channels // 8))
        self.channels = ChannelAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_positions(x)
        flat = x.flatten(2, 3)  # both see positions, not their order
        return ((self.positions(flat) + self.channels(flat)) / 2).view_as(x)


def check_positions(x: torch.Tensor) -> None:
    """Check that a map `[B, C, D, H, W]` is small enough for position attention.

    Raises:
        UserError: VA-M002.
    """
    voxels = x[0, 0].numel()
    if voxels > POSITIONS:
        size = " x ".join(map(str, x.shape[2:]))
        what = f"position attention takes at most {POSITIONS} voxels at the coarsest level, got {size} = {voxels}"
        raise UserError("VA-M002", what, fix="a smaller patch, or a larger depth")


def _convs(before: int, after: int, norm: Norm) -> nn.Sequential:
    """Two 3x3x3 convolutions, each with norm and ReLU."""
    parts: list[nn.Module] = []
    for channels in (before, after):
        norms = nn.InstanceNorm3d(after, affine=True) if norm == "instance" else nn.BatchNorm3d(after)
        parts += [nn.Conv3d(channels, after, 3, padding=1), norms, nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


def _halve(x: torch.Tensor, pool: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Pool each axis with more than `_SMALL` voxels by 2."""
    step = [2 if size > _SMALL else 1 for size in x.shape[2:]]
    return pool(x, step, step, ceil_mode=True)


# Networks for volumes by name.
VOLUME_NETS: dict[str, Callable[..., AGUNet3d]] = {"agunet3d": AGUNet3d, "daunet3d": partial(AGUNet3d, dual_attention=True)}
