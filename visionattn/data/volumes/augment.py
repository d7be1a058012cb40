"""Random patches of prepared volumes, or slices with their neighbours, and their augmentation by MONAI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionattn.data.volumes.extra import library
from visionattn.data.volumes.settings import VolumeAugmentConfig

_ROOM = 1.25  # times the patch that a rotated patch is cut from, beside the change of scale


class PatchAugment:
    """Cut and augment patches; everything random follows from the seed of the sample.

    Args:
        settings: of augmentation.
        size: sides of a patch, two or three.
    """

    def __init__(self, settings: VolumeAugmentConfig, size: Sequence[int]) -> None:
        self.settings, self.size = settings, tuple(size)
        self._spatial: Any = None
        self._intensity: Any = None

    def __call__(
        self, image: np.ndarray, label: np.ndarray, centre: Sequence[int] | None, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut a patch and change it: float32 `[C, *size]`, and uint8 labels `[*size]`.

        Args:
            image: `[C, ...]`.
            label: `[...]`.
            centre: a voxel that the patch surrounds; None for any place.
        """
        settings, random = self.settings, generator.random
        start = [self._start(count, side, None if centre is None else centre[axis], generator) for axis, (count, side) in self._axes(label)]
        turned = random() < settings.spatial and (settings.rotate > 0 or settings.scale > 0)
        if turned:
            room = [math.ceil(side * _ROOM * (1 + settings.scale)) for side in self.size]
            start = [first - (wide - side) // 2 for first, wide, side in zip(start, room, self.size, strict=True)]
            patch, truth = self._turned(crop(image, start, room), crop(label[None], start, room), _seed(generator))
        else:
            patch, truth = (torch.from_numpy(crop(array, start, self.size)) for array in (image, label[None]))
        if flipped := [axis for axis in range(-len(self.size), 0) if random() < settings.flip]:
            patch, truth = patch.flip(flipped), truth.flip(flipped)
        return self._recoloured(patch, _seed(generator)), truth[0].to(torch.uint8)

    def _axes(self, label: np.ndarray) -> Any:
        return enumerate(zip(label.shape, self.size, strict=True))

    @staticmethod
    def _start(count: int, side: int, centre: int | None, generator: np.random.Generator) -> int:
        """First voxel of a patch along an axis: around a voxel, or anywhere; a smaller volume lies anywhere within the patch."""
        low, high = min(0, count - side), max(0, count - side)
        if centre is None:
            return int(generator.integers(low, high + 1))
        return int(np.clip(centre - side // 2, low, high))

    def _turned(self, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate and scale a larger patch, and cut its middle."""
        if self._spatial is None:
            angle, axes = math.radians(self.settings.rotate), len(self.size)
            self._spatial = library("monai.transforms").RandAffined(
                keys=("image", "label"),
                prob=1.0,
                spatial_size=self.size,
                rotate_range=[angle] * (3 if axes == 3 else 1),
                scale_range=[self.settings.scale] * axes,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            )
        self._spatial.set_random_state(seed=seed)
        found = self._spatial({"image": torch.from_numpy(image), "label": torch.from_numpy(label.astype(np.float32))})
        return found["image"].as_tensor(), found["label"].as_tensor()

    def _recoloured(self, patch: torch.Tensor, seed: int) -> torch.Tensor:
        if self._intensity is None:
            settings, monai = self.settings, library("monai.transforms")
            change = settings.intensity
            self._intensity = monai.Compose(
                [
                    *([monai.RandGaussianSmooth(*[(0.3, settings.blur)] * 3, prob=0.15)] if settings.blur > 0.3 else []),
                    *([monai.RandScaleIntensity(change, prob=0.3), monai.RandShiftIntensity(change, prob=0.3)] if change else []),
                    *([monai.RandAdjustContrast(prob=0.3, gamma=(1 - change, 1 + 2 * change), retain_stats=True)] if change else []),
                    *([monai.RandGaussianNoise(prob=0.15, std=settings.noise)] if settings.noise else []),
                ]
            )
        self._intensity.set_random_state(seed=seed)
        changed = self._intensity(patch.contiguous())
        return changed.as_tensor() if hasattr(changed, "as_tensor") else changed


def crop(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Cut `[C, *size]` out of `[C, ...]`, with zeros where it is outside of the array."""
    result = np.zeros((len(array), *size), array.dtype)
    source, place = [slice(None)], [slice(None)]
    for first, side, count in zip(start, size, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + side, count)
        if low >= high:
            return result
        source.append(slice(low, high))
        place.append(slice(low - first, high - first))
    result[tuple(place)] = array[tuple(source)]
    return result


def neighbours(image: np.ndarray, axis: int, index: int, context: int) -> np.ndarray:
    """A slice of `[C, x, y, z]` and those beside it as channels, `[C * (2 * context + 1), ...]`; the outermost repeat at the ends."""
    places = np.clip(np.arange(index - context, index + context + 1), 0, image.shape[1 + axis] - 1)
    slices = np.moveaxis(np.take(image, places, 1 + axis), 1 + axis, 1)  # C, 2k + 1, ...
    return slices.reshape(-1, *slices.shape[2:])


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))
