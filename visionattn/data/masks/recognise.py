"""Recognise images with masks by names of folders and files, without numpy or torch, so that wrong settings are reported fast."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from visionattn.data.tables import csv_columns
from visionattn.data.walk import is_image_name
from visionattn.errors import UserError

PAIR_COLUMNS = ("image", "mask")

# Names of folders of images, and of their masks, in any case.
_IMAGES = frozenset({"images", "image", "imgs", "img", "img_dir"})
_MASKS = frozenset({"masks", "mask", "annotations", "annotation", "labels", "label", "gts", "gt", "groundtruth", "ground_truth", "ann_dir"})
# Ends of the names of masks that lie beside their images.
_ENDS = ("_mask", "_segmentation", "_seg", "_label", "_gt")
# Folders of published datasets.
_PUBLISHED = ({"leftImg8bit", "gtFine"}, {"JPEGImages", "SegmentationClass"}, {"train", "trainannot"}, {"imagesTr", "labelsTr"})
_ISIC = re.compile(r"_Training_(Part1_)?GroundTruth$")
_FEW = 3  # folders in which masks are looked for beside images


class FolderPair(NamedTuple):
    """Names of a folder of images and a folder of masks."""

    images: str
    masks: str


def holds_masks(root: Path) -> bool:
    """Whether folders of images and masks, masks beside images, or a CSV file of pairs exist, in root or in its only folder."""
    lists = [root] if root.is_file() else [root / "train.csv"]
    if any(path.suffix == ".csv" and path.is_file() and _pairs_masks(path) for path in lists):
        return True
    inside = _folders(root)
    if len(inside) == 1 and inside != ["train"]:  # archives often unpack into a folder inside root
        root = root / inside[0]
        inside = _folders(root)
    if any(pair <= set(inside) for pair in _PUBLISHED) or any(map(_ISIC.search, inside)):
        return True
    pair = folder_pair(root / "train")
    # Classes may be called images and masks: they are only a pair if there are no others.
    if folder_pair(root) is not None or (pair is not None and set(_folders(root / "train")) == set(pair)):
        return True
    return bool(mask_suffix_beside(root / "train") or suffix_below(root))


def folder_pair(folder: Path) -> FolderPair | None:
    """The folder of images and the folder of masks in a folder, if their names leave no doubt."""
    names = _folders(folder)
    images, masks = ([name for name in names if name.lower() in known] for known in (_IMAGES, _MASKS))
    if len(masks) > 1:  # one of them may hold labels of another kind
        masks = [name for name in masks if _holds_image(folder / name)]
    return FolderPair(images[0], masks[0]) if len(images) == len(masks) == 1 else None


def suffix_below(root: Path) -> str:
    """The suffix of masks that lie beside their images in root, or in its folders."""
    folders = [root, *(root / name for name in _folders(root)[:_FEW])]
    return next((suffix for suffix in map(mask_suffix_beside, folders) if suffix), "")


def mask_suffix_beside(folder: Path) -> str:
    """The suffix, for example `_mask.png`, that turns names of images into those of masks in the same folder; empty if there is none."""
    if not folder.is_dir():
        return ""
    with os.scandir(folder) as entries:
        return mask_suffix_among([entry.name for entry in entries if not entry.name.startswith(".")])


def mask_suffix_among(names: Iterable[str]) -> str:
    """The same of file names."""
    parts = [os.path.splitext(name) for name in names if is_image_name(name)]
    stems = {stem for stem, _ in parts}
    suffixes: Counter[str] = Counter()
    for stem, ending in parts:
        for end in _ENDS:
            if stem.lower().endswith(end) and stem[: -len(end)] in stems:
                suffixes[stem[-len(end) :] + ending] += 1
    if len(suffixes) != 1:
        return ""
    suffix, count = next(iter(suffixes.items()))
    return suffix if 2 * count >= len(parts) - count else ""  # a stray name makes no dataset


def _holds_image(folder: Path) -> bool:
    found = (name for _, _, names in os.walk(folder) for name in names)
    return any(is_image_name(name) for name in islice(found, 1000))


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith((".", "__")))


def _pairs_masks(path: Path) -> bool:
    try:
        return set(PAIR_COLUMNS) <= set(csv_columns(path, PAIR_COLUMNS))
    except UserError:  # reported where it is read
        return False
