"""Prepare volumes for a network: canonical axes, one spacing, normalised intensity; the plan follows from the training set.

Volumes are turned so that their axes run right, front and up, without resampling, and then resampled to the spacing of the plan:
images linearly, labels by the class that is linearly the most likely. Both grids fill the same box, so that the way back is exact.

The plan is that of nnU-Net's fingerprint (Isensee et al., 10.1038/s41592-020-01008-z) in its rules, in our own code: the median spacing,
along an axis that is much coarser the 10th percentile; CT is clipped to the 0.5th to 99.5th percentile of the foreground of the
training set and scaled by its mean and deviation, other modalities by those of each volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from visionattn.data.volumes.grid import Grid

QUANTILES = 256  # of the foreground of a volume, from which those of a training set are taken
_ZEROS = 0.25  # share of voxels that are exactly 0 from which they are taken for an empty background
_COARSE = 3.0  # times the other spacings, from which an axis is anisotropic


@dataclass(frozen=True)
class Scaling:
    """Clipping and scaling of a channel: (x clipped to low..high - mean) / std."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Plan:
    """How volumes are prepared.

    Attributes:
        spacing: of the canonical axes in mm; None keeps that of each volume.
        scalings: of each channel; None where each volume is normalised by its own mean and deviation.
    """

    spacing: tuple[float, float, float] | None
    scalings: tuple[Scaling | None, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the target of a model."""
        scalings = [None if item is None else [item.low, item.high, item.mean, item.std] for item in self.scalings]
        return {"spacing": None if self.spacing is None else list(self.spacing), "scalings": scalings}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """The plan of plain values."""
        spacing = values["spacing"]
        scalings = tuple(None if item is None else Scaling(*map(float, item)) for item in values["scalings"])
        return cls(None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])), scalings)

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """Voxels of a prepared volume."""
        if self.spacing is None:
            return grid.canonical_shape
        old = zip(grid.canonical_shape, grid.canonical_spacing, self.spacing, strict=True)
        first, second, third = (max(1, round(count * size / wanted)) for count, size, wanted in old)
        return first, second, third

    def image(self, voxels: np.ndarray, grid: Grid) -> torch.Tensor:
        """Prepare voxels `[C, x, y, z]` of a grid, float32."""
        pairs = zip(voxels, self.scalings, strict=True)
        scaled = np.stack([_normalised(channel, scaling) for channel, scaling in pairs])
        turned = torch.from_numpy(np.ascontiguousarray(grid.to_canonical(scaled)))
        size = self.shape(grid)
        if tuple(turned.shape[1:]) == size:
            return turned
        return F.interpolate(turned[None], size, mode="trilinear", align_corners=False)[0]

    def label(self, labels: np.ndarray, grid: Grid) -> torch.Tensor:
        """Prepare labels `[x, y, z]` of a grid, uint8."""
        turned = torch.from_numpy(np.ascontiguousarray(grid.to_canonical(labels)))
        size = self.shape(grid)
        if tuple(turned.shape) == size:
            return turned
        best = torch.full(size, -1.0)
        result = torch.zeros(size, dtype=torch.uint8)
        for value in turned.unique().tolist():  # one at a time: a map of all would be as many volumes
            share = F.interpolate((turned == value).float()[None, None], size, mode="trilinear", align_corners=False)[0, 0]
            better = share > best
            result[better] = value
            best = torch.maximum(best, share)
        return result


def native_slabs(probabilities: torch.Tensor, shape: Sequence[int], held_bytes: int = 2**27) -> Iterator[tuple[slice, torch.Tensor]]:
    """Resample probabilities `[K, x, y, z]` linearly to another shape, slab by slab along the first axis: places, and `[K, slab, Y, Z]`.

    The slabs together are `F.interpolate(..., mode="trilinear", align_corners=False)`.
    """
    size = tuple(shape)
    step = max(1, held_bytes // (4 * len(probabilities) * size[1] * size[2]))
    scale = probabilities.shape[1] / size[0]
    for start in range(0, size[0], step):
        stop = min(start + step, size[0])
        at = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * scale - 0.5).clamp(min=0)
        below = at.long()
        share = (at - below).float()[None, :, None, None]
        slab = torch.lerp(
            probabilities[:, below].float(), probabilities[:, (below + 1).clamp(max=probabilities.shape[1] - 1)].float(), share
        )
        if tuple(slab.shape[2:]) != size[1:]:
            slab = F.interpolate(slab.transpose(0, 1), size[1:], mode="bilinear", align_corners=False).transpose(0, 1)
        yield slice(start, stop), slab


def planned_spacing(grids: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[float, float, float]:
    """Spacing of the canonical axes for a training set: the median, or the 10th percentile along an axis that is much coarser.

    An axis is much coarser if its spacing is more than three times that of the others, and its voxels fewer than a third of theirs.

    Args:
        grids: canonical shape and spacing of each volume.
    """
    sizes = np.array([spacing for _, spacing in grids], float)
    median = np.median(sizes, axis=0)
    shape = np.median([np.array(shape) * spacing / median for shape, spacing in grids], axis=0)
    worst = int(median.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if median[worst] > _COARSE * median[others].max() and shape[worst] * _COARSE < shape[others].min():
        median[worst] = max(float(np.percentile(sizes[:, worst], 10)), float(median[others].max()))
    first, second, third = (float(f"{value:.6g}") for value in median)
    return first, second, third


def foreground_quantiles(voxels: np.ndarray, labels: np.ndarray) -> list[list[float]]:
    """Evenly spaced quantiles of the voxels of each channel in the foreground, labels from 1 on; empty lists without any."""
    inside = (labels > 0) & (labels < 255)
    if not inside.any():
        return [[] for _ in voxels]
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return [[float(f"{value:.7g}") for value in np.quantile(channel[inside], shares)] for channel in voxels]


def foreground_scaling(quantiles: Sequence[Sequence[float]]) -> Scaling:
    """Clipping and scaling of CT from the foreground quantiles of all training volumes; of a set without foreground by none."""
    pooled = np.concatenate([np.asarray(values, float) for values in quantiles]) if any(map(len, quantiles)) else np.array([0.0, 1.0])
    low, high = np.percentile(pooled, (0.5, 99.5))
    return Scaling(float(low), float(high), float(pooled.mean()), max(float(pooled.std()), 1e-8))


def _normalised(channel: np.ndarray, scaling: Scaling | None) -> np.ndarray:
    if scaling is not None:
        scaled = (channel.clip(scaling.low, scaling.high) - scaling.mean) / scaling.std
        return scaled.astype(np.float32)
    filled = channel != 0
    if filled.mean() > 1 - _ZEROS:
        filled = np.ones_like(filled)
    inside = channel[filled].astype(np.float64)
    if not inside.size:
        return np.zeros_like(channel)
    scaled = (channel - inside.mean()) / max(float(inside.std()), 1e-8)
    return np.where(filled, scaled, 0).astype(np.float32)
