"""Tiny bags in every format: a positive bag has one instance with a large first feature, its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from visionattn.data.bags.patches import PatchFeatures
from visionattn.data.bags.sets import BagData, load_bags
from visionattn.data.bags.settings import BagDataConfig, PatchConfig

WIDTH = 6


def bag(number: int, label: int, *, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Features, coordinates on a grid of patches of 256, and instance labels."""
    rng = np.random.default_rng(number)
    count = 4 + number % 5
    features = rng.standard_normal((count, width)).astype(np.float32)
    key = np.zeros(count, np.int64)
    if label:
        features[number % count, 0] = 6.0
        key[number % count] = 1
    coords = np.stack([np.arange(count) % 3, np.arange(count) // 3], 1) * 256 + 512
    return {"features": features, "coords": coords, "inst": key}


def save_h5(path: Path, arrays: dict[str, Any], label: Any = None, group: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        place = file.create_group(group) if group else file
        for name, values in arrays.items():
            place[name] = values
        if label is not None:
            place.attrs["label"] = label
    return path


def save_pt(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def save_npz(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def slides(root: Path, count: int = 12) -> Path:
    """A folder of `slide_<n>.h5` with a table of labels, patients of two slides each, and a test split."""
    lines = ["slide_id,label,patient,split"]
    for number in range(count):
        label = number % 2
        save_h5(root / f"slide_{number}.h5", bag(number, label))
        split = "test" if number >= count - 2 else ""
        lines.append(f"slide_{number},{'tumour' if label else 'normal'},p{number // 2},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def packed(path: Path, count: int = 20, **more: Any) -> Path:
    """One archive of many bags, with folds of its own."""
    found = [bag(number, number % 2) for number in range(count)]
    numbers = np.repeat(np.arange(count), [len(item["features"]) for item in found])
    arrays = {"X": np.concatenate([item["features"] for item in found]), "bag": numbers.astype(np.int32), "y": np.arange(count) % 2}
    arrays |= {"inst": np.concatenate([item["inst"] for item in found]), "xy": np.concatenate([item["coords"] for item in found])}
    return save_npz(path, **{**arrays, "fold": np.arange(count) // 2 % 5, **more})


def load(root: Path, seed: int = 0, **settings: Any) -> BagData:
    config = BagDataConfig(root=str(root), **settings)
    return load_bags(config, PatchFeatures(PatchConfig(), "cpu"), seed=seed)
