"""What training needs to know of its images before it reads them: how many channels they have, and their mean and deviation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from visionattn.config.schema import RunConfig
from visionattn.data.check import check_threads
from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.images.transforms import shown_channels
from visionattn.data.readers import ImageFacts, UnreadableFile
from visionattn.data.sources import Images
from visionattn.data.splits import Split
from visionattn.errors import UserError

_HEADERS = 16  # images that are looked at to tell pictures from others
_MEASURED = 1000  # most images whose values are measured
_DIGITS = 6  # of a mean and a deviation, as many as float32 has


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, over all pixels of so many images."""

    mean: list[float]
    std: list[float]
    images: int


def channels_of(images: Images) -> int:
    """Channels to train with: 3, or those of the first readable image, if it is no grey or colour picture."""
    facts = next(iter(_headers(images, 1)), None)
    if facts is None or facts.alpha or facts.channels in (1, 3):
        return 3
    return 3 if facts.channels == 4 and not (facts.array or facts.spare_band) else facts.channels


def are_pictures(images: Images) -> bool:
    """Whether images are grey or in colour, and any of them has 8 bits: then the mean and deviation of the weights fit them."""
    facts = _headers(images, _HEADERS)
    return images.in_chans in (1, 3) and (not facts or any(item.depth <= 8 for item in facts))


def with_statistics(config: RunConfig, train: Split) -> tuple[RunConfig, Statistics | None]:
    """The config with what training needs to know of images that are no pictures: mean, deviation, and the channels that are shown.

    Raises:
        UserError: VA-D010, no image could be read.
    """
    settings = config.data
    if not isinstance(settings, ImageDataConfig) or train.images is None:
        return config, None
    pictures, found = are_pictures(train.images), None
    if settings.mean == "auto" and not pictures:
        found = measure(train.images)
        if found is None:
            raise UserError("VA-D010", "no training image could be read to measure the mean of its channels")
    values: dict[str, Any] = {} if found is None else {"mean": found.mean, "std": found.std}
    if pictures or settings.preview == "auto":
        values["preview"] = None if pictures else [number + 1 for number in shown_channels("auto", train.images.in_chans)]
    return _with_data(config, {**_without_auto(settings), **values}), found


def without_statistics(config: RunConfig) -> RunConfig:
    """The config of a run that resumes: where it has auto, it began before there was a choice, with the values of the weights."""
    settings = config.data
    return _with_data(config, _without_auto(settings)) if isinstance(settings, ImageDataConfig) else config


def _without_auto(settings: ImageDataConfig) -> dict[str, Any]:
    return {name: None if getattr(settings, name) == "auto" else getattr(settings, name) for name in ("mean", "std", "preview")}


def _with_data(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def measure(images: Images) -> Statistics | None:
    """Mean and deviation of at most 1,000 images, spread evenly over the training set; None if none is readable.

    Values are those that `images.read` gives, of uint8 in 0..1. A channel that is constant has deviation 1.
    """
    chosen = _spread(len(images), _MEASURED)
    count, pixels = 0, 0
    mean, squares = np.zeros(images.in_chans), np.zeros(images.in_chans)  # squares of differences to the mean
    with ThreadPoolExecutor(check_threads(images.settings)) as pool:
        for found in pool.map(lambda index: _moments(images, index), chosen):
            if found is None:
                continue
            size, own_mean, own_squares = found  # combined as in Chan et al. 1983, in the order of the images
            difference, total = own_mean - mean, pixels + size
            squares += own_squares + difference**2 * (pixels * size / total)
            mean += difference * (size / total)
            count, pixels = count + 1, total
    if not count:
        return None
    std = np.sqrt(squares / pixels)
    std[std < 1e-12] = 1.0
    return Statistics(_rounded(mean), _rounded(std), count)


def _moments(images: Images, index: int) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Pixels of an image, the mean of each channel, and its sum of squared differences to that."""
    try:
        image = images.read(index)
    except UnreadableFile:
        return None
    scale = 255.0 if image.dtype == np.uint8 else 1.0
    means, squares = np.zeros(image.shape[2]), np.zeros(image.shape[2])
    for channel in range(image.shape[2]):  # one at a time, because float64 takes much memory
        values = image[:, :, channel].astype(np.float64) / scale
        means[channel] = values.mean()
        squares[channel] = np.square(values - means[channel]).sum()
    return image.shape[0] * image.shape[1], means, squares


def _headers(images: Images, count: int) -> list[ImageFacts]:
    """The headers of some readable images, spread over all."""
    found: list[ImageFacts] = []
    for index in _spread(len(images), max(count, _HEADERS)):
        if len(found) == count:
            break
        try:
            found.append(images.header(index))
        except UnreadableFile:
            continue
    return found


def _spread(total: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int)).tolist() if total else []


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
