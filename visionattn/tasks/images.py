"""Shared by tasks on images: labelled images and files as samples, pictures of tensors and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionattn.data.images.sets import ImageSet
from visionattn.data.images.transforms import as_rgb, shown_channels
from visionattn.data.readers import UnreadableFile, read_image
from visionattn.data.sources import ChannelFiles, FileImages, Images, further_channels
from visionattn.errors import UserError, did_you_mean
from visionattn.names import shown
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


def image_files(
    config: Any, files: Sequence[Path], transform: Callable[[np.ndarray], torch.Tensor], *, channel_files: bool = False
) -> ImageFiles:
    """Image files as samples, read by the config's `data` section.

    Args:
        channel_files: the files are those of the first channel of each image, with the others beside them.
    """
    paths, settings, channels = tuple(map(str, files)), config.data.read_once(), config.model.channels
    if channel_files:
        return ImageFiles(ChannelFiles(paths, settings, channels, further=tuple(map(further_channels, paths))), transform)
    return ImageFiles(FileImages(paths, settings, channels), transform)


class Upload(SampleDataset):
    """One sample `image`, as the transform makes it, of the content of a file."""

    def __init__(self, config: Any, content: bytes, transform: Callable[[np.ndarray], torch.Tensor]) -> None:
        super().__init__(["upload"])
        self.config, self.content, self.transform = config, content, transform

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        pixels = read_image(self.content, settings=self.config.data, in_chans=self.config.model.channels)
        return {"image": self.transform(pixels)}


def with_normalisation(model: Any, config: Any) -> Any:
    """A model that is told the mean and deviation of its data, where the config has them, and which channels of it pictures show.

    Raises:
        UserError: VA-C002, numbers for other channels than the model has.
    """
    settings, channels = config.data, config.model.channels
    if isinstance(settings.mean, list):
        if len(settings.mean) != channels:
            what = f"data.mean has {len(settings.mean)} numbers, model.in_chans is {channels}"
            raise UserError("VA-C002", what, fix="data.mean=auto data.std=auto")
        model.pretrained_cfg |= {"mean": tuple(settings.mean), "std": tuple(settings.std)}
    if isinstance(settings.preview, list) or channels not in (1, 3):
        model.pretrained_cfg |= {"shown": shown_channels(settings.preview, channels)}
    return model


def normalisation(model: Any) -> dict[str, Any]:
    """The arguments of transforms that normalise for a model."""
    cfg = model.pretrained_cfg
    return {"mean": cfg["mean"], "std": cfg["std"], "shown": cfg.get("shown")}


def unnormalise(image: torch.Tensor, cfg: dict[str, Any]) -> np.ndarray:
    """A normalised CHW tensor as H x W x 3 in 0..1."""
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    values = (image.float().cpu() * std + mean).permute(1, 2, 0).numpy()
    if "shown" in cfg:
        return as_rgb(values, cfg["shown"]) / np.float32(255)
    pixels = values.clip(0, 1)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def as_picture(image: np.ndarray, preview: Sequence[int] | str | None) -> np.ndarray:
    """A loaded image as uint8 H x W x 3; the contrast is stretched unless it is a picture of 8 bits.

    Args:
        preview: data.preview of its settings.
    """
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return np.broadcast_to(image, (*image.shape[:2], 3))
    return as_rgb(image, shown_channels(preview, image.shape[2]))


def readable_picture(images: Images, index: int) -> np.ndarray | None:
    """An image to show, H x W x 3 uint8, at most 256 px per side; None if it cannot be read."""
    pixels = loaded_image(images, index)
    if pixels is None:
        return None
    picture = Image.fromarray(as_picture(pixels, images.settings.preview))
    picture.thumbnail((256, 256))
    return np.asarray(picture)


def loaded_image(images: Images, index: int) -> np.ndarray | None:
    """An image of a split, H x W x C; None if it cannot be read."""
    try:
        return images.read(index)
    except UnreadableFile:
        return None


def image_of(config: Any, source: Path | bytes | np.ndarray, *, channel_files: bool = False) -> np.ndarray:
    """Load the image that `explain` is asked about, H x W x C, unless it is loaded.

    Raises:
        UserError: VA-D010.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        if isinstance(source, bytes):
            return read_image(source, settings=config.data, in_chans=config.model.channels)
        images = image_files(config, [source], torch.tensor, channel_files=channel_files).images
        return images.read(0)
    except UnreadableFile as error:
        raise UserError("VA-D010", "the image could not be read", where=shown(error.path), why=shown(error.reason)) from error


def class_number(name: str, classes: Sequence[str]) -> int:
    """Find a class by its name.

    Raises:
        UserError: VA-C002.
    """
    if name not in classes:
        what = f'--class: no class "{name}"'
        raise UserError("VA-C002", shown(what), fix=shown(did_you_mean(name, classes) or f"one of {', '.join(list(classes)[:12])}"))
    return list(classes).index(name)


def require_point(point: tuple[float, float], size: tuple[int, int]) -> None:
    """Check that a point, column and row, is in an image of this height and width.

    Raises:
        UserError: VA-C002.
    """
    if not (0 <= point[0] < size[1] and 0 <= point[1] < size[0]):
        what = f"--query: the point {point[0]:g},{point[1]:g} is outside of the image, which has {size[1]} x {size[0]} pixels"
        raise UserError("VA-C002", what, fix=f"--query {size[1] // 2},{size[0] // 2}")
