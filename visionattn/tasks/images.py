"""Shared by tasks on images: labelled images and files as samples, pictures of tensors and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionattn.data.images.sets import ImageSet
from visionattn.data.readers import UnreadableFile
from visionattn.data.sources import FileImages, Images
from visionattn.tasks.batch import SampleDataset


class LabelledImages(SampleDataset):
    """Samples `image` `[C, H, W]` and `label`, that of the image set: a class index, a vector of zeros and ones, a number.

    Args:
        transform: `transform(image, seed)` for training, `transform(image)` without a seed.
    """

    def __init__(self, image_set: ImageSet, transform: Callable[..., torch.Tensor], seed: int | None = None) -> None:
        super().__init__(image_set.ids, seed)
        self.image_set, self.transform = image_set, transform

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        image = self.image_set.images.read(index)
        return {"image": self.transform(image) if seed is None else self.transform(image, seed), "label": self.image_set.labels[index]}


class ImageFiles(SampleDataset):
    """Samples `image`, as the transform makes it, of files without labels."""

    def __init__(self, images: FileImages, transform: Callable[[np.ndarray], torch.Tensor]) -> None:
        super().__init__(list(images.paths))
        self.images, self.transform = images, transform

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        return {"image": self.transform(self.images.read(index))}


def image_files(config: Any, files: Sequence[Path], transform: Callable[[np.ndarray], torch.Tensor]) -> ImageFiles:
    """Image files as samples, read by the config's `data` section."""
    return ImageFiles(FileImages(tuple(map(str, files)), config.data.read_once(), config.model.in_chans), transform)


def unnormalise(image: torch.Tensor, cfg: dict[str, Any]) -> np.ndarray:
    """A normalised CHW tensor as H x W x 3 in 0..1."""
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = (image.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def readable_picture(images: Images, index: int) -> np.ndarray | None:
    """An image to show, H x W x 3 uint8, at most 256 px per side; None if it cannot be read."""
    try:
        pixels = images.read(index)
    except UnreadableFile:
        return None
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((256, 256))
    return np.asarray(picture)
