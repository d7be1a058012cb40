"""Transform decoded images into normalised input tensors."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionattn.data.images.settings import AugmentConfig, CropConfig
from visionattn.errors import UserError

RAND_AUGMENT_INCLUDES = ("rotate", "shift", "zoom", "color_jitter")  # settings that a policy takes the place of

_PIL_INTERPOLATION = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Normalize:
    """Convert height x width x channels, uint8 or float32, to a normalised float32 tensor C x H x W.

    Args:
        mean: per channel, for values in 0..1 of uint8.
        std: likewise.
        shown: positions of the channels that `undo` shows, of images that are no pictures: their floats are in units of their own.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], shown: Sequence[int] | None = None) -> None:
        self.shown = shown
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        # One table look-up per value gives exactly the results of the three operations in a third of the time.
        levels = torch.arange(256, dtype=torch.float32).div(255)
        self.table = levels.sub(self.mean.flatten(1)).div(self.std.flatten(1)).numpy()

    def __call__(self, image: np.ndarray) -> Tensor:
        planes = cv2.split(image)
        if image.dtype != np.uint8:
            return torch.from_numpy(np.stack(planes)).sub_(self.mean).div_(self.std)
        result = np.empty((len(planes), *image.shape[:2]), np.float32)
        for levels, plane, out in zip(self.table, planes, result, strict=True):
            cv2.LUT(plane, levels, out)
        return torch.from_numpy(result)

    def undo(self, tensor: Tensor) -> np.ndarray:
        """Convert C x H x W back to uint8 H x W x C, for display; of images that are no pictures, to RGB with stretched contrast."""
        if self.shown is not None:
            return as_rgb((tensor * self.std + self.mean).permute(1, 2, 0).numpy(), self.shown)
        pixels = (tensor * self.std + self.mean).clamp(0, 1).mul(255).round()
        return pixels.to(torch.uint8).permute(1, 2, 0).numpy()


class TrainTransform:
    """Bilinear crop, then augmentation by albumentations; the tensor depends only on the image and the seed.

    Images that are no pictures are normalised before the augmentation, whose random values are those of 0..1.
    """

    def __init__(self, augment: AugmentConfig, size: tuple[int, int], normalize: Normalize) -> None:
        self.crop, self.size = augment.random_resized_crop, size
        self.compose = _albumentations(augment, size)
        self.normalize = normalize

    def __call__(self, image: np.ndarray, seed: int) -> Tensor:
        if self.crop is not None:
            image = _random_crop(image, self.crop, random.Random(seed))
        image = _resize_fast(image, self.size)
        self.compose.set_random_seed(seed)
        if self.normalize.shown is None:
            return self.normalize(self.compose(image=image)["image"])
        return channels_first(self.compose(image=channels_last(self.normalize(image)))["image"])


class RandAugmentTransform:
    """timm's training augmentation on PIL: bicubic crop, flips, RandAugment, erasing after normalisation.

    RGB only; float images are converted to uint8 first. These transforms use the global generators of `random`, numpy and
    torch, which are seeded for the call and restored afterwards.
    """

    def __init__(self, augment: AugmentConfig, size: tuple[int, int], normalize: Normalize) -> None:
        self.transform, self.erase = _rand_augment(augment, size, normalize)
        self.normalize = normalize

    def __call__(self, image: np.ndarray, seed: int) -> Tensor:
        if image.dtype != np.uint8:
            image = np.rint(image * 255).astype(np.uint8)
        with _global_seed(seed):
            tensor: Tensor = self.erase(self.normalize(np.asarray(self.transform(Image.fromarray(image)))))
        return tensor


class EvalTransform:
    """Antialiased resize, then centre crop, as in the published evaluations."""

    def __init__(self, size: tuple[int, int], normalize: Normalize, interpolation: str, crop_pct: float) -> None:
        self.size, self.normalize = size, normalize
        self.cover = tuple(math.floor(side / crop_pct) for side in size)
        self.interpolation = _PIL_INTERPOLATION[interpolation]

    def __call__(self, image: np.ndarray) -> Tensor:
        return self.normalize(self._crop(self._resize(image)))

    def position(self, x: float, y: float, shape: tuple[int, int]) -> tuple[float, float]:
        """Where a point of an image of this height and width is in the result, from its left and top; may be beyond its borders."""
        wide, tall = self._shape(shape)
        top, left = self._corner((tall, wide))
        return x * wide / shape[1] - left, y * tall / shape[0] - top

    def _shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Width and height of an image that covers `self.cover`, one side exactly."""
        (height, width), (tall, wide) = shape, self.cover
        return (int(tall * width / height), tall) if tall * width >= wide * height else (wide, int(wide * height / width))

    def _resize(self, image: np.ndarray) -> np.ndarray:
        new = self._shape((image.shape[0], image.shape[1]))
        if image.dtype == np.uint8 and image.shape[2] == 3:
            return np.asarray(Image.fromarray(image).resize(new, self.interpolation))
        # Pillow resizes grey and float images one channel at a time
        channels = (Image.fromarray(np.ascontiguousarray(image[:, :, index])) for index in range(image.shape[2]))
        return np.stack([np.asarray(channel.resize(new, self.interpolation)) for channel in channels], axis=2)

    def _corner(self, shape: tuple[int, int]) -> tuple[int, int]:
        return round((shape[0] - self.size[0]) / 2), round((shape[1] - self.size[1]) / 2)

    def _crop(self, image: np.ndarray) -> np.ndarray:
        (height, width), (top, left) = self.size, self._corner((image.shape[0], image.shape[1]))
        return image[top : top + height, left : left + width]


def channels_last(tensor: Tensor) -> np.ndarray:
    """C x H x W as an array of H x W x C."""
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def channels_first(array: np.ndarray) -> Tensor:
    """H x W x C as a tensor of C x H x W."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def as_rgb(values: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """Show channels of H x W x C as uint8 RGB: the 2nd to 98th percentile of each is stretched over the range.

    Args:
        shown: positions of one channel, or of those for red, green and blue.
    """
    picked = values[:, :, list(shown)].astype(np.float32)
    low, high = np.percentile(picked, (2, 98), axis=(0, 1)).astype(np.float32)
    picked -= low
    picked *= np.float32(255) / np.maximum(high - low, np.float32(1e-12))
    pixels = np.rint(picked.clip(0, 255)).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def shown_channels(preview: Sequence[int] | str | None, channels: int) -> list[int]:
    """Positions of the channels that pictures show.

    Args:
        preview: data.preview, counted from 1; the first three, or the first, unless it names some.

    Raises:
        UserError: VA-C002, there are not so many.
    """
    if preview is None or isinstance(preview, str):
        return [0] if channels < 3 else [0, 1, 2]
    if max(preview) > channels:
        raise UserError("VA-C002", f"data.preview: channel {max(preview)} of {channels}, counted from 1", fix="data.preview=auto")
    return [number - 1 for number in preview]


def train_transform(
    augment: AugmentConfig, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], shown: Sequence[int] | None = None
) -> TrainTransform | RandAugmentTransform:
    """Create the training augmentation: `transform(image, seed)` returns float32 C x H x W.

    Args:
        size: height and width of the result in pixels.
        mean: per channel, for values in 0..1.
        std: per channel, for values in 0..1.
        shown: as in `Normalize`, of images that are no pictures.

    Raises:
        UserError: VA-C002, settings that exclude each other, or colours changed of images that have none.
    """
    if shown is not None:
        for name, value, off in (("color_jitter", augment.color_jitter, "0"), ("rand_augment", augment.policy, '""')):
            if value:
                raise UserError(
                    "VA-C002",
                    f"augment.{name} changes colours of 8 bits, which {len(mean)} channels of other data are not",
                    fix=f"augment.{name}={off}",
                )
    if augment.random_resized_crop is not None and augment.pad_crop:
        raise UserError(
            "VA-C002",
            "augment.pad_crop and augment.random_resized_crop exclude each other",
            fix="augment.random_resized_crop=null, or augment.pad_crop=0",
        )
    normalize = Normalize(mean, std, shown)
    if not augment.policy:
        return TrainTransform(augment, size, normalize)
    others = [name for name in RAND_AUGMENT_INCLUDES if getattr(augment, name)]
    if others:
        raise UserError(
            "VA-C002",
            f"augment.rand_augment already includes {', '.join(others)}",
            fix=" ".join(f"augment.{name}=0" for name in others),
        )
    if len(mean) != 3:
        raise UserError("VA-C002", "augment.rand_augment needs colour images", fix='augment.rand_augment="" or model.in_chans=3')
    return RandAugmentTransform(augment, size, normalize)


def eval_transform(
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    interpolation: Literal["bicubic", "bilinear"],
    crop_pct: float,
    shown: Sequence[int] | None = None,
) -> EvalTransform:
    """Create the published evaluation transform: `transform(image)` returns float32 C x H x W.

    Args:
        size: height and width of the result in pixels.
        crop_pct: share of the resized image that the centre crop keeps; the resized side is floor(size / crop_pct).
        shown: as in `Normalize`.
    """
    return EvalTransform(size, Normalize(mean, std, shown), interpolation, crop_pct)


def _random_crop(image: np.ndarray, crop: CropConfig, generator: random.Random) -> np.ndarray:
    """Crop a random area and aspect ratio (Szegedy et al. 2015), or the largest central crop if ten draws do not fit."""
    height, width = image.shape[:2]
    low, high = crop.ratio
    for _ in range(10):
        area = height * width * generator.uniform(*crop.area)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = generator.randint(0, height - tall), generator.randint(0, width - wide)
            return image[top : top + tall, left : left + wide]
    tall, wide = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[top : top + tall, left : left + wide]


def _resize_fast(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly, or by averaging if a side shrinks to half or less, where bilinear would skip pixels."""
    height, width = size
    shrinks = image.shape[0] >= 2 * height or image.shape[1] >= 2 * width
    return resized_channels(image, size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resized_channels(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resize H x W x C to a height and width by OpenCV, which averages at most four channels at a time."""
    parts = [cv2.resize(image[:, :, start : start + 4], size[::-1], interpolation=interpolation) for start in range(0, image.shape[2], 4)]
    resized = [part if part.ndim == 3 else part[:, :, None] for part in parts]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2)


def import_albumentations() -> Any:
    """Import albumentations without letting it ask the package index for a newer version."""
    before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        return import_module("albumentations")
    finally:
        if before is None:
            del os.environ["NO_ALBUMENTATIONS_UPDATE"]
        else:
            os.environ["NO_ALBUMENTATIONS_UPDATE"] = before


def _albumentations(augment: AugmentConfig, size: tuple[int, int]) -> Any:
    """Build the steps after the crop."""
    A = import_albumentations()
    linear, reflect = cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101
    steps: list[Any] = []
    if augment.pad_crop:
        steps += [A.Pad(augment.pad_crop, border_mode=reflect), A.RandomCrop(*size)]
    if augment.hflip:
        steps.append(A.HorizontalFlip(p=augment.hflip))
    if augment.vflip:
        steps.append(A.VerticalFlip(p=augment.vflip))
    if augment.rotate or augment.shift or augment.zoom:
        steps.append(
            A.Affine(
                scale=(1 - augment.zoom, 1 + augment.zoom),
                translate_percent=(-augment.shift, augment.shift),
                rotate=(-augment.rotate, augment.rotate),
                shear=0,
                interpolation=linear,
                border_mode=reflect,
                p=1,
            )
        )
    if augment.color_jitter:
        strength = augment.color_jitter
        around = (max(0.0, 1 - strength), 1 + strength)
        hue = min(strength / 4, 0.5)  # half the colour circle in either direction covers it
        steps.append(A.ColorJitter(around, around, around, (-hue, hue), p=1))
    if augment.random_erasing:
        steps.append(A.Erasing(fill="random", p=augment.random_erasing))
    return A.Compose(steps)


def _rand_augment(augment: AugmentConfig, size: tuple[int, int], normalize: Normalize) -> tuple[Any, Any]:
    from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms

    fill = tuple(min(255, round(255 * float(value))) for value in normalize.mean.flatten())
    hparams = {"translate_const": int(min(size) * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    create = augment_and_mix_transform if augment.policy.startswith("augmix") else rand_augment_transform
    try:
        augmentation = create(augment.policy, hparams)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            "VA-C002", f'augment.rand_augment: "{augment.policy}" is not in timm\'s notation', fix="Example: rand-m9-mstd0.5-inc1"
        ) from error
    crop = augment.random_resized_crop
    steps: list[Any]
    if crop is not None:
        steps = [RandomResizedCropAndInterpolation(size, crop.area, crop.ratio, interpolation="bicubic")]
    else:
        steps = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC)]
    if augment.pad_crop:
        steps.append(transforms.RandomCrop(size, padding=augment.pad_crop, padding_mode="reflect"))
    steps += [transforms.RandomHorizontalFlip(augment.hflip), transforms.RandomVerticalFlip(augment.vflip), augmentation]
    return transforms.Compose(steps), RandomErasing(augment.random_erasing, mode="pixel", device="cpu")


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the GPU's generator too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
