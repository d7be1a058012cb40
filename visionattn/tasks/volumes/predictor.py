"""Inference on volumes: windows of a 3D network, or slices of a 2D one, stitched on the CPU; back on the grid of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from visionattn.data.volumes.augment import neighbours
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.prepare import native_slabs
from visionattn.tasks.batch import Batch
from visionattn.tasks.volumes.settings import VolumesConfig
from visionattn.tasks.windows import Predict, sliding_logits, with_flips

_SLICES = 4  # slices in the place of one 3D window


@dataclass(frozen=True)
class VolumePrediction:
    """Probabilities of one volume by one model or several, and the grid that label maps are made on.

    Attributes:
        parts: of each model `[K, x, y, z]` on its own prepared grid, float32, on the CPU.
        grid: of the file.
        regions: whether the outputs are regions, each with a probability of its own.
    """

    parts: list[torch.Tensor]
    grid: Grid
    regions: bool

    def native(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The mean probabilities, resampled linearly to the voxels of the file, slab by slab along the first canonical axis."""
        slabs = [native_slabs(part, self.grid.canonical_shape) for part in self.parts]
        for found in zip(*slabs, strict=True):
            yield found[0][0], torch.stack([slab for _, slab in found]).mean(0) if len(found) > 1 else found[0][1]

    def labels(self) -> np.ndarray:
        """The most likely class of each voxel of the file, uint8 `[x, y, z]`; of regions which hold it, `[K, x, y, z]`."""
        shape = self.grid.canonical_shape
        if self.regions:
            inside = np.empty((len(self.parts[0]), *shape), np.uint8)
            for place, slab in self.native():
                inside[:, place] = (slab > 0.5).numpy()
            return np.stack([self.grid.from_canonical(region) for region in inside])
        classes = np.empty(shape, np.uint8)
        for place, slab in self.native():
            classes[place] = slab.argmax(0).numpy()
        return self.grid.from_canonical(classes)


def painted(labels: np.ndarray, outputs: Sequence[int], *, regions: bool) -> np.ndarray:
    """The values that a file gets: of each class its own, of regions those of the last one that holds a voxel; uint8 if they fit.

    Args:
        labels: see `VolumePrediction.labels`.
        outputs: value of each class or region.
    """
    kind = np.uint8 if max(outputs) < 256 else np.int16
    if not regions:
        return np.array(outputs, kind)[labels]
    values = np.zeros(labels.shape[1:], kind)
    for inside, value in zip(labels, outputs, strict=True):
        values[inside > 0] = value
    return values


class VolumePredictor:
    """Predict one prepared volume per batch.

    Args:
        model: in evaluation mode, on `device`.
        config: its `model` and `eval`.
        slice_axis: axis across the slices of a 2D network.
        regions: whether each output has a probability of its own.
    """

    def __init__(self, model: nn.Module, config: VolumesConfig, device: torch.device, *, slice_axis: int, regions: bool) -> None:
        self.config, self.device, self.axis, self.regions = config, device, slice_axis, regions
        axes = tuple(range(-len(config.model.patch), 0))
        self.model: Predict = with_flips(model, axes) if config.eval.flips else model

    def __call__(self, batch: Batch) -> VolumePrediction:
        volume: torch.Tensor = batch["image"]
        probabilities = (self._volume(volume) if self.config.model.is_3d else self._slices(volume))[0]
        for start in range(0, probabilities.shape[1], 16):  # in place, because there may be no room for another one
            slab = probabilities[:, start : start + 16]
            slab.copy_(slab.sigmoid() if self.regions else slab.softmax(0))
        return VolumePrediction([probabilities], batch["grid"][0], self.regions)

    def _windows(self, image: torch.Tensor, count: int) -> torch.Tensor:
        settings = self.config.eval
        return sliding_logits(
            self.model,
            image.cpu(),  # only windows go to the device
            self.config.model.patch,
            overlap=settings.overlap,
            blend=settings.blend,
            batch=count,
            prepare=lambda window: window.to(self.device),
        )

    def _volume(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits `[1, K, x, y, z]`."""
        return self._windows(volume, self.config.eval.window_batch)

    def _slices(self, volume: torch.Tensor) -> torch.Tensor:
        """The same of a network on slices."""
        axis, context, step = self.axis, self.config.model.context, _SLICES * self.config.eval.window_batch
        array, count = volume[0].cpu().numpy(), volume.shape[2 + axis]
        found: list[torch.Tensor] = []
        for start in range(0, count, step):
            slices = np.stack([neighbours(array, axis, index, context) for index in range(start, min(start + step, count))])
            found.append(self._windows(torch.from_numpy(slices), 1))
        return torch.cat(found).movedim(0, 1 + axis)[None]
