"""Small data sets of images with masks, and the reading of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from visionattn.data.masks.sets import MaskData, load_mask_data
from visionattn.data.masks.settings import MaskDataConfig

NAMES = ["background", "crack", "spall"]


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def mask(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16), values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).choice(np.array(values, np.uint8), (size[1], size[0]))
    Image.fromarray(array).save(path)
    return array


def pairs(root: Path, images: str = "images/{}", masks: str = "masks/{}", splits: tuple[str, ...] = ("train", "val")) -> Path:
    seed = 0
    for split, count in zip(splits, (4, 2, 1), strict=False):
        for number in range(count):
            seed += 1
            picture(root / images.format(split) / f"{split}{number}.png", seed)
            mask(root / masks.format(split) / f"{split}{number}.png", seed)
    return root


def settings(root: Path, **values: object) -> MaskDataConfig:
    return MaskDataConfig(**{"root": str(root), "classes": NAMES, "workers": 1, **values})


def load(root: Path, **values: object) -> MaskData:
    return load_mask_data(settings(root, **values), seed=0, in_chans=3)
