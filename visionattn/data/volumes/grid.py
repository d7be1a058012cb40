"""The voxel grid of a volume: where its voxels lie in the patient, and how it is turned to the canonical axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from visionattn.data.volumes.extra import library

_SAME = 1e-3  # mm, or cosines, between affines of one grid


@dataclass(frozen=True)
class Grid:
    """A voxel grid in the scanner's or atlas' space, in NIfTI's convention: x to the right, y to the front, z upwards.

    Attributes:
        shape: voxels along each axis of the array.
        affine: 4 x 4, from indices of the array to mm.
        header: NIfTI header of the file, whose units and codes a label map of it keeps; None for DICOM.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: Any = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel in mm along each axis of the array."""
        return _three(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def canonical_spacing(self) -> tuple[float, float, float]:
        """The same along the canonical axes."""
        return _three(np.array(self.spacing)[self._turn[0]])

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels along the canonical axes."""
        first, second, third = (self.shape[axis] for axis in self._turn[0])
        return first, second, third

    @property
    def canonical_affine(self) -> np.ndarray:
        """4 x 4, from indices along the canonical axes to mm."""
        axes, flips = self._turn
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for place, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
            turn[axis, place], turn[axis, 3] = (-1, self.shape[axis] - 1) if flip else (1, 0)
        return self.affine @ turn

    @property
    def _turn(self) -> tuple[list[int], list[bool]]:
        """For each canonical axis (right, front, up), the axis of the array closest to it, and whether that runs the other way."""
        found = library("nibabel").orientations.io_orientation(self.affine)  # for each axis of the array
        axes = np.argsort(found[:, 0]).tolist()
        return axes, [bool(found[axis, 1] < 0) for axis in axes]

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Turn an array `[..., x, y, z]` on this grid so that its axes run right, front and up; nothing is resampled."""
        axes, flips = self._turn
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in axes))
        return np.flip(turned, tuple(lead + axis for axis, flip in enumerate(flips) if flip))

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Turn an array `[x, y, z]` along the canonical axes back to this grid."""
        axes, flips = self._turn
        return np.flip(array, tuple(axis for axis, flip in enumerate(flips) if flip)).transpose(np.argsort(axes))

    def difference(self, other: Grid) -> str:
        """How the voxels of another grid differ from those of this one, whatever the order of the arrays; empty if they do not."""
        if self.canonical_shape != other.canonical_shape:
            return f"{_size(other.shape)} voxels, the image has {_size(self.shape)}"
        most = float(np.abs(self.canonical_affine - other.canonical_affine).max())
        return f"its affine differs from that of the image, by up to {most:.3g}" if most > _SAME else ""


def _three(values: np.ndarray) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
