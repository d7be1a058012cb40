"""Transform images and labels for training and evaluation of segmentation models.

Order and parameters of photometric distortion, scaling and crop follow the published recipes (MMSegmentation 1.2.2,
Apache-2.0), with one difference: distortion comes before the flip, which does not change the result, and before padding,
so that the padding keeps the mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from torch import Tensor

from visionattn.data.images.transforms import Normalize, channels_first, channels_last, import_albumentations, resized_channels
from visionattn.data.masks.sets import resize_labels
from visionattn.data.masks.settings import IGNORE, MaskAugmentConfig
from visionattn.errors import UserError

Resize = Literal["none", "fixed"] | int | tuple[int, int]


class MaskTrainTransform:
    """Scaling, crop, distortion, padding, then flips and deformation by albumentations; depends only on the sample and the seed.

    Images that are no pictures are not distorted, and normalised before the padding.
    """

    def __init__(self, augment: MaskAugmentConfig, size: tuple[int, int], normalize: Normalize) -> None:
        self.augment, self.size, self.normalize = augment, size, normalize
        self.fill = [float(value) for value in normalize.mean.flatten()]
        # albumentations expects the border colour in the units of the image
        self.compose = _deformation(augment, [255 * value for value in self.fill])
        self.compose_float = _deformation(augment, self.fill)
        self.compose_normal = _deformation(augment, 0.0)

    def __call__(self, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[Tensor, np.ndarray]:
        """Return float32 C x H x W and uint8 H x W, padded with the mean and IGNORE."""
        generator = random.Random(seed)
        height, width = resized_shape(label.shape, self.augment.resize, self.size)
        factor = generator.uniform(*self.augment.factors)
        image, label = _resize(image, label, (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))))
        top, left = _crop_corner(label, self.size, self.augment.cat_max_ratio, generator)
        window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        image, label = image[window], label[window]
        if self.normalize.shown is not None:
            image, label = _pad(channels_last(self.normalize(image)), label, self.size, [0.0] * image.shape[2])
            self.compose_normal.set_random_seed(seed)
            done = self.compose_normal(image=image, mask=label)
            return channels_first(done["image"]), np.ascontiguousarray(done["mask"])
        if self.augment.photometric:  # auto too, of pictures
            image = distort(image, generator)
        image, label = _pad(image, label, self.size, self.fill)
        compose = self.compose if image.dtype == np.uint8 else self.compose_float
        compose.set_random_seed(seed)
        done = compose(image=image, mask=label)
        return self.normalize(done["image"]), np.ascontiguousarray(done["mask"])


class MaskEvalTransform:
    """Resize to evaluation size; returns float32 C x H x W."""

    def __init__(self, resize: Resize, size: tuple[int, int], normalize: Normalize) -> None:
        self.resize, self.size, self.normalize = resize, size, normalize

    def __call__(self, image: np.ndarray) -> Tensor:
        shape = resized_shape(image.shape, self.resize, self.size)
        return self.normalize(_resize_image(image, shape))


def mask_train_transform(
    augment: MaskAugmentConfig, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], shown: Sequence[int] | None = None
) -> MaskTrainTransform:
    """Create the training augmentation: `transform(image, label, seed)` returns float32 C x H x W and uint8 H x W.

    Args:
        size: height and width of the crop in pixels.
        mean: per channel, for values in 0..1.
        std: per channel, for values in 0..1.
        shown: as in `Normalize`, of images that are no pictures.

    Raises:
        UserError: VA-C002, settings that exclude each other, or colours changed of images that have none.
    """
    if shown is not None and augment.photometric is True:
        what = f"augment.photometric changes colours of 8 bits, which {len(mean)} channels of other data are not"
        raise UserError("VA-C002", what, fix="augment.photometric=false")
    if augment.rotate90 and size[0] != size[1]:
        raise UserError("VA-C002", f"augment.rotate90 needs a square model.img_size, got {list(size)}", fix="augment.rotate90=0")
    if not 0 < augment.factors[0] <= augment.factors[1]:
        raise UserError("VA-C002", f"augment.scale: expected [low, high] with 0 < low <= high, got {list(augment.factors)}")
    return MaskTrainTransform(augment, size, Normalize(mean, std, shown))


def mask_eval_transform(
    augment: MaskAugmentConfig, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], shown: Sequence[int] | None = None
) -> MaskEvalTransform:
    """Create the evaluation transform: `transform(image)` returns float32 C x H x W; the label is unchanged."""
    return MaskEvalTransform(augment.resize, size, Normalize(mean, std, shown))


def resized_shape(shape: Sequence[int], resize: Resize, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after augment.resize; `size` is used by "fixed"."""
    height, width = shape[0], shape[1]
    if resize == "none":
        return height, width
    if resize == "fixed":
        return size
    if isinstance(resize, int):
        factor = resize / min(height, width)
    else:
        long, short = max(resize), min(resize)
        factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def distort(image: np.ndarray, generator: random.Random) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 0.5; contrast before or after the colours.

    Args:
        image: uint8, or float32 in 0..1, with one or three channels; saturation and hue need three.
    """

    def chance() -> bool:
        return generator.random() < 0.5

    if chance():
        shift = generator.uniform(-32, 32) / 255
        image = _levels(image, lambda value: value + shift)
    early = chance()
    contrast = generator.uniform(0.5, 1.5) if chance() else 1.0
    if early:
        image = _levels(image, lambda value: value * contrast)
    if image.shape[2] == 3:
        saturation = generator.uniform(0.5, 1.5) if chance() else 1.0
        hue = generator.uniform(-36, 36) if chance() else 0.0  # degrees
        if saturation != 1 or hue:
            image = _shift_colours(image, saturation, hue)
    return image if early else _levels(image, lambda value: value * contrast)


def _levels(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if image.dtype != np.uint8:
        changed: np.ndarray = function(image).clip(0, 1).astype(np.float32)
        return changed
    table = np.rint(function(np.arange(256) / 255).clip(0, 1) * 255).astype(np.uint8)
    return table[image]


def _shift_colours(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    unit = image.astype(np.float32) / 255 if image.dtype == np.uint8 else np.ascontiguousarray(image)
    colours = cv2.cvtColor(unit, cv2.COLOR_RGB2HSV)  # hue in degrees, saturation and value in 0..1
    colours[:, :, 0] = (colours[:, :, 0] + hue) % 360
    colours[:, :, 1] = (colours[:, :, 1] * saturation).clip(0, 1)
    result: np.ndarray = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)
    return np.rint(result * 255).astype(np.uint8) if image.dtype == np.uint8 else result.clip(0, 1)


def _resize_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly without antialiasing, as published."""
    if image.shape[:2] == shape:
        return image
    return resized_channels(image, shape, cv2.INTER_LINEAR)


def _resize(image: np.ndarray, label: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return _resize_image(image, shape), label if label.shape == shape else resize_labels(label, shape)


def _crop_corner(label: np.ndarray, size: tuple[int, int], cat_max_ratio: float, generator: random.Random) -> tuple[int, int]:
    """Draw top and left of a crop in which no class exceeds `cat_max_ratio`, or use the last of ten draws."""
    top = left = 0
    for _ in range(10):
        top = generator.randint(0, max(0, label.shape[0] - size[0]))
        left = generator.randint(0, max(0, label.shape[1] - size[1]))
        if cat_max_ratio == 1:
            break
        counts = np.bincount(label[top : top + size[0], left : left + size[1]].ravel(), minlength=256)[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum():
            break
    return top, left


def _pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int], fill: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Pad at the bottom and right."""
    height, width = label.shape
    if (height, width) == size:
        return image, label
    colour = np.asarray(fill, np.float32) if image.dtype != np.uint8 else np.rint(np.asarray(fill) * 255).astype(np.uint8)
    padded = np.full((*size, image.shape[2]), colour, image.dtype)
    labels = np.full(size, IGNORE, np.uint8)
    padded[:height, :width], labels[:height, :width] = image, label
    return padded, labels


def _deformation(augment: MaskAugmentConfig, fill: Sequence[float] | float) -> Any:
    """Build the transforms that keep the size: flips, rotation, elastic deformation; uncovered pixels are ignored."""
    A = import_albumentations()
    steps: list[Any] = []
    if augment.hflip:
        steps.append(A.HorizontalFlip(p=augment.hflip))
    if augment.vflip:
        steps.append(A.VerticalFlip(p=augment.vflip))
    if augment.rotate90:
        steps.append(A.RandomRotate90(p=augment.rotate90))
    border = {"border_mode": cv2.BORDER_CONSTANT, "fill": fill, "fill_mask": IGNORE}
    nearest = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
    if augment.rotate:
        steps.append(A.Rotate(limit=(-augment.rotate, augment.rotate), p=1, **border, **nearest))
    if augment.elastic:
        steps.append(A.ElasticTransform(alpha=60, sigma=8, p=augment.elastic, **border, **nearest))
    return A.Compose(steps)
