"""Small data sets of labelled images, and the reading of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from visionattn.data.images.labels import load_data
from visionattn.data.images.sets import LabelledData
from visionattn.data.images.settings import LabelDataConfig


def save(path: Path, value: int = 0, size: tuple[int, int] = (10, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folders(root: Path, splits: dict[str, dict[str, int]]) -> Path:
    """root/<split>/<class>/<n>.png; the empty split name puts the classes into root itself."""
    value = 0
    for split, classes in splits.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                save(root / split / name / f"{index}.png", value := value + 1)
    return root


def flowers(root: Path) -> Path:
    return folders(root, {"train": {"rose": 6, "tulip": 4}, "val": {"rose": 2, "tulip": 3}, "test": {"rose": 1, "tulip": 1}})


def load(root: Path | str, *, seed: int = 0, in_chans: int = 3, **settings: object) -> LabelledData:
    return load_data(LabelDataConfig(root=str(root), **settings), seed=seed, in_chans=in_chans)  # type: ignore[arg-type]


def save_npz(path: Path, **changed: np.ndarray) -> Path:
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 12), ("val", 6), ("test", 3)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 9, 7), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None]
    np.savez(path, **{name: value for name, value in {**arrays, **changed}.items() if value is not None})
    return path
