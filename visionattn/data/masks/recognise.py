"""Detect a folder of images with masks by its names, with the standard library alone, so that wrong settings are reported fast."""

from __future__ import annotations

from pathlib import Path

# Sibling folders of images and masks.
_PAIRS = (
    {"images", "masks"},
    {"images", "annotations"},
    {"leftImg8bit", "gtFine"},
    {"JPEGImages", "SegmentationClass"},
    {"train", "trainannot"},
)


def holds_masks(root: Path) -> bool:
    """Whether folders of images and masks or a CSV file of pairs exist, in root or in its only folder."""
    lists = [root] if root.is_file() else [root / "train.csv"]
    if any(path.suffix == ".csv" and path.is_file() and _pairs_masks(path) for path in lists):
        return True
    inside = _folders(root)
    if len(inside) == 1 and inside != {"train"}:  # archives often unpack into a folder inside root
        root = root / inside.pop()
        inside = _folders(root)
    split = _folders(root / "train")
    # A class may be called masks: it is only a mask folder if `images` is its only sibling.
    return split == {"images", "masks"} or any(pair <= inside for pair in _PAIRS)


def _folders(path: Path) -> set[str]:
    if not path.is_dir():
        return set()
    return {item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith((".", "__"))}


def _pairs_masks(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        columns = {name.strip().strip('"') for name in file.readline().split(",")}
    return {"image", "mask"} <= columns
