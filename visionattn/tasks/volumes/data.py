"""Samples of volumes: random patches or slices for training, whole volumes for evaluation, files for prediction; and a preview."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.config.choices import Choice, Facts
from visionattn.data.check import CheckReport, contact_sheet
from visionattn.data.masks.palettes import default_palette, overlay
from visionattn.data.readers import UnreadableFile
from visionattn.data.sampling import derive_seed
from visionattn.data.volumes.augment import PatchAugment, neighbours
from visionattn.data.volumes.files import Source
from visionattn.data.volumes.labels import LabelRule
from visionattn.data.volumes.prepare import Plan, planned_spacing
from visionattn.data.volumes.sets import Prepared, PreparedVolumes, VolumeData, VolumeSet
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.tasks.base import Target
from visionattn.tasks.batch import SampleDataset
from visionattn.tasks.volumes.settings import VolumesConfig

_LARGEST, _VOXELS = 128, 96**3  # of a patch whose size follows from the data
_SEEN = 10_000  # patches that a run from scratch shows unless told otherwise
_TILE = 192  # least side of a picture in the preview


def make_target(config: VolumesConfig, data: VolumeData, plan: Plan) -> Target:
    """Meaning of the outputs, and what a volume has to go through before: plain values."""
    rule = data.labels.rule
    axis: int | str = config.model.slice_axis
    if axis == "auto":
        sizes = plan.spacing or (1.0, 1.0, 1.0)
        coarsest = max(sizes)
        axis = sizes.index(coarsest) if coarsest > 1.1 * sorted(sizes)[1] else 2  # up, if no axis is clearly coarser than both others
    return {
        "classes": data.labels.names,
        "regions": [list(places) for places in rule.regions],
        "values": list(rule.values),
        "ignored": rule.ignored,
        "outputs": list(data.labels.outputs),
        "channels": data.channels,
        "plan": plan.as_dict(),
        "slice_axis": axis,
    }


def rule_of(target: Target) -> LabelRule:
    """The rule of label values of a target."""
    return LabelRule(tuple(target["values"]), tuple(tuple(places) for places in target["regions"]), target["ignored"])


class VolumePatches(SampleDataset):
    """Training samples: `augment.patches` patches of a volume, `image` `[P, C, *patch]` and `label` `[P, *patch]`.

    Args:
        cfg: `pretrained_cfg` of the model, with the plan of volumes and the axis of slices.
    """

    def __init__(self, config: VolumesConfig, part: VolumeSet, cfg: dict[str, Any]) -> None:
        super().__init__(part.ids, config.seed)
        self.part, data = part, config.data
        self.volumes = PreparedVolumes(part, Plan.of(cfg["plan"]), data.cache, data.cache_bytes)
        self.settings, self.model, self.axis = config.augment, config.model, cfg["slice_axis"]
        self.augment = PatchAugment(config.augment, config.model.patch)

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        volume, generator = self.volumes.read(index), np.random.default_rng(seed)
        pairs = [self._patch(volume, generator) for _ in range(self.settings.patches)]
        image, label = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
        return {"image": image, "label": label}

    def _patch(self, volume: Prepared, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch, or a slice with its neighbours, around a voxel of a class or anywhere."""
        centre: list[int] | None = None
        if generator.random() < self.settings.foreground and len(volume.points):
            classes = np.unique(volume.points[:, 0])
            places = volume.points[volume.points[:, 0] == generator.choice(classes), 1:]
            centre = places[generator.integers(len(places))].tolist()
        image, label = volume.image, volume.label
        if not self.model.is_3d:
            axis = self.axis
            index = int(generator.integers(label.shape[axis])) if centre is None else centre.pop(axis)
            image, label = neighbours(image, axis, index, self.model.context), np.take(label, index, axis)
        return self.augment(image, label, centre, generator)


class WholeVolumes(SampleDataset):
    """Evaluation samples: the prepared volume `image` `[C, x, y, z]` with its labels, and `label` on the grid of the file, `grid`."""

    def __init__(self, part: VolumeSet, cfg: dict[str, Any]) -> None:
        super().__init__(part.ids)
        self.part, self.plan = part, Plan.of(cfg["plan"])

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        voxels, grid = self.part.image(index)
        label = self.part.label(index, grid)
        return {"image": self.plan.image(voxels, grid), "prepared": self.plan.label(label, grid), "label": label, "grid": grid}


class VolumeFiles(SampleDataset):
    """Samples of files without labels: `image` `[C, x, y, z]`, prepared; `source` `[x, y, z]`, its first channel as it is; `grid`."""

    def __init__(self, sources: Sequence[Source], cfg: dict[str, Any], max_bytes: int) -> None:
        super().__init__([source.name for source in sources])
        self.sources, self.plan, self.max_bytes = sources, Plan.of(cfg["plan"]), max_bytes

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        voxels, grid = self.sources[index].read(self.max_bytes)
        return {"image": self.plan.image(voxels, grid), "source": voxels[0], "grid": grid}


def require_channels(config: VolumesConfig, channels: Sequence[str]) -> None:
    """Stop if the network takes another number of channels than the volumes have.

    Raises:
        UserError: VA-C002.
    """
    if len(channels) != config.model.in_chans:
        why = f"dataset.json names {', '.join(channels)}" if len(channels) > 1 else "more than one have to be named in dataset.json"
        what = f"model.in_chans: expected {len(channels)}, the channels of the volumes, got {config.model.in_chans}"
        raise UserError("VA-C002", what, why=why, fix=f"model.in_chans={len(channels)}")


# ---------------------------------------------------------------- choices


def volume_choices(config: VolumesConfig, facts: Facts, report: CheckReport | None) -> list[Choice]:
    """The size of a patch by the median volume, and epochs by the number of patches."""
    sides = 3 if config.model.is_3d else 2
    known = list(getattr(report, "facts", {}).values())
    size, reason = (config.model.default_size,) * sides, "the default"
    if known:
        plain = (config.data.spacing,) * 3 if not isinstance(config.data.spacing, tuple) else config.data.spacing
        spacing: Sequence[Any] = planned_spacing([(item.shape, item.spacing) for item in known]) if plain[0] == "auto" else plain
        shapes = [
            item.shape if spacing[0] is None else [n * s / t for n, s, t in zip(item.shape, item.spacing, spacing, strict=True)]
            for item in known
        ]
        median = np.median(shapes, axis=0)
        chosen = patch_size(median.tolist(), sides)
        size, reason = chosen, f"median volume of {' x '.join(f'{side:.0f}' for side in median)} voxels"
    shown = max(1, facts.samples * config.augment.patches)
    epochs = min(max(round(_SEEN / shown), 20), 1000)
    return [
        *([Choice("model.drop_path_rate", 0.0, "3D networks have no stochastic depth")] if config.model.is_3d else []),
        Choice("model.img_size", size, reason),
        Choice("train.epochs", epochs, f"{epochs * shown:,} patches are seen, of {facts.samples:,} volumes"),
    ]


def patch_size(median: Sequence[float], sides: int) -> tuple[int, ...]:
    """Sides that cover a volume in steps of 8, at most 128 and 96^3 voxels in all; of slices the two longest, at least 32."""
    size = [min(_LARGEST, max(8, 8 * math.ceil(side / 8))) for side in median]
    if sides == 2:
        return tuple(max(32, side) for side in sorted(size)[1:][::-1])
    longest = sorted(range(3), key=lambda axis: size[axis])[1:]
    size = [max(32, side) if axis in longest else side for axis, side in enumerate(size)]
    while math.prod(size) > _VOXELS:
        size[size.index(max(size))] -= 8
    return tuple(size)


# ---------------------------------------------------------------- preview


def preview(dataset: VolumePatches | WholeVolumes, count: int, path: Path) -> None:
    """Write a PNG of the middle slices of samples with the colours of their classes.

    Raises:
        UserError: VA-D010, no volume could be loaded.
    """
    tiles: list[tuple[np.ndarray, str]] = []
    for index in range(len(dataset)):
        if len(tiles) == count:
            break
        try:
            sample = dataset.load(index, None if dataset.seed is None else derive_seed(0, index))
        except UnreadableFile:
            continue
        image, label = sample["image"], sample.get("prepared", sample["label"])
        if dataset.seed is not None:
            image, label = image[0], label[0]
        tiles.append((slice_picture(image, label, len(dataset.part.rule.values)), dataset.ids[index].rpartition("/")[2]))
    if not tiles:
        raise UserError("VA-D010", "no volume could be loaded for the preview")
    height, width = (max(tile.shape[axis] for tile, _ in tiles) for axis in (0, 1))
    same = []
    for tile, name in tiles:
        canvas = np.full((height, width, 3), 255, np.uint8)
        canvas[: tile.shape[0], : tile.shape[1]] = tile
        same.append((canvas, name))
    atomic_write(path, contact_sheet(same))


def slice_picture(image: torch.Tensor, label: torch.Tensor, num_values: int) -> np.ndarray:
    """The middle slice of a patch `[C, ...]` with the colours of its label positions, uint8 `[H, W, 3]`, up upwards."""
    if label.ndim == 3:
        middle = label.shape[2] // 2
        plane, truth = image[0, :, :, middle], label[:, :, middle]
    else:
        plane, truth = image[len(image) // 2], label
    grey = as_grey(plane.numpy(), grey_range(image.numpy()))
    factor = max(1, _TILE // max(grey.shape))
    grey, colours = (np.rot90(array).repeat(factor, 0).repeat(factor, 1) for array in (grey, truth.numpy()))
    return overlay(np.ascontiguousarray(np.repeat(grey[..., None], 3, 2)), np.ascontiguousarray(colours), default_palette(num_values))


def grey_range(voxels: np.ndarray, most: int = 100_000) -> tuple[float, float]:
    """The 1st and the 99th percentile of voxels, of many of those at equal steps."""
    low, high = np.percentile(voxels.reshape(-1)[:: max(1, voxels.size // most)], (1, 99))
    return float(low), float(high)


def as_grey(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """A plane of voxels in uint8, black and white at these limits."""
    low, high = limits
    grey: np.ndarray = (255 * ((plane - low) / max(high - low, 1e-8)).clip(0, 1)).astype(np.uint8)
    return grey
