"""Segmentation samples: images with masks, their augmentation, and a preview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionattn.config.choices import Choice
from visionattn.data.check import CheckReport, contact_sheet
from visionattn.data.masks.palettes import Colour, overlay
from visionattn.data.masks.sets import MaskSet, count_pixels, resize_labels
from visionattn.data.masks.transforms import MaskEvalTransform, MaskTrainTransform, mask_eval_transform, mask_train_transform
from visionattn.data.readers import UnreadableFile
from visionattn.data.sampling import derive_seed
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.tasks.batch import SampleDataset
from visionattn.tasks.images import normalisation
from visionattn.tasks.segmentation.settings import SegmentConfig

_TILE = 384  # largest side of a picture in the preview


class MaskedImages(SampleDataset):
    """Samples with `image` `[C, H, W]` and `label` `[H, W]`, int64; in evaluation the label keeps the size of the original image.

    Args:
        transform: with a seed, `transform(image, label, seed)` returns both; without, `transform(image)`.
        counts: pixels of each class, if known.
    """

    def __init__(self, mask_set: MaskSet, transform: Callable[..., Any], seed: int | None = None, counts: np.ndarray | None = None) -> None:
        super().__init__(mask_set.ids, seed)
        self.mask_set, self.transform, self.counts = mask_set, transform, counts

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        image = self.mask_set.images.read(index)
        label = self.mask_set.label(index, (image.shape[0], image.shape[1]))
        if seed is None:
            return {"image": self.transform(image), "label": label.astype(np.int64)}
        tensor, label = self.transform(image, label, seed)
        return {"image": tensor, "label": label.astype(np.int64)}

    def pixel_counts(self, num_classes: int) -> np.ndarray:
        """Count the pixels of each class, `[num_classes]`; loads all masks unless the counts are known."""
        return count_pixels(self.mask_set, num_classes) if self.counts is None else self.counts


def crop_choice(report: CheckReport | None) -> Choice:
    """The side of a square training crop: 512 px, or for smaller images their shorter side in steps of 32."""
    if report is None or report.size is None:
        return Choice("model.img_size", 512, "the default")
    height, width = report.size
    return Choice("model.img_size", min(512, max(32, min(height, width) // 32 * 32)), f"at most 512, images of {height} x {width} px")


def photometric_choice(config: SegmentConfig) -> Choice:
    """Whether colours are changed: only of pictures."""
    pictures = not isinstance(config.data.preview, list) and config.model.channels in (1, 3)
    return Choice("augment.photometric", pictures, "pictures of 8 bits" if pictures else "channels that are no colours of 8 bits")


def augmentation(config: SegmentConfig, model: Any) -> MaskTrainTransform:
    """Build the augmentation of images with masks, normalised for a model."""
    return mask_train_transform(config.augment, config.model.size, **normalisation(model))


def preprocessing(config: SegmentConfig, model: Any) -> MaskEvalTransform:
    """Build the transform to evaluation size, normalised for a model."""
    return mask_eval_transform(config.augment, config.model.size, **normalisation(model))


def preview(
    part: MaskSet,
    classes: Sequence[str],
    palette: Sequence[Colour],
    transform: MaskTrainTransform | MaskEvalTransform,
    count: int,
    path: Path,
) -> None:
    """Write a PNG of transformed images overlaid with the colours of their classes, captioned by class, the largest first.

    Raises:
        UserError: VA-D010, no pair could be loaded.
    """
    tiles: list[tuple[np.ndarray, str]] = []
    for index in range(len(part)):
        if len(tiles) == count:
            break
        try:
            image = part.images.read(index)
            label = part.label(index, (image.shape[0], image.shape[1]))
        except UnreadableFile:
            continue
        if isinstance(transform, MaskEvalTransform):
            tensor = transform(image)
            label = resize_labels(label, (tensor.shape[1], tensor.shape[2]))
        else:
            tensor, label = transform(image, label, derive_seed(0, index))
        present = np.bincount(label.ravel(), minlength=256)[: len(classes)]
        names = [classes[number] for number in np.argsort(-present, kind="stable") if present[number]]
        tiles.append((overlay(transform.normalize.undo(tensor), label, palette), ", ".join(names)))
    if not tiles:
        raise UserError("VA-D010", f"no pair of {part.name} could be loaded for the preview")
    atomic_write(path, contact_sheet(_same_size(tiles)))


def _same_size(tiles: list[tuple[np.ndarray, str]]) -> list[tuple[np.ndarray, str]]:
    """Shrink large tiles, then pad with white at the bottom and right."""
    small = []
    for tile, name in tiles:
        picture = Image.fromarray(tile)
        picture.thumbnail((_TILE, _TILE))
        small.append((np.asarray(picture), name))
    height, width = (max(tile.shape[axis] for tile, _ in small) for axis in (0, 1))
    same = []
    for tile, name in small:
        canvas = np.full((height, width, 3), 255, np.uint8)
        canvas[: tile.shape[0], : tile.shape[1]] = tile
        same.append((canvas, name))
    return same
