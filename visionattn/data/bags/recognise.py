"""Whether a path holds bags, told by names alone; needs neither numpy nor torch."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from visionattn.data.split_names import KNOWN_NAMES
from visionattn.data.walk import is_image_name

SUFFIXES = frozenset({".h5", ".hdf5", ".npz", ".pt"})
# Names of the arrays in a file, in the order in which they are looked for.
FEATURES = ("features", "feats", "feat", "X")
COORDINATES = ("coords", "coordinates", "xy")
LABELS = ("label", "labels", "y")
BAGS = ("bag", "offsets", "sizes")
# A patch is named by its place on the slide: 1024_2048.png, x1024_y2048.png, tumour-3_1024_2048.png.
PLACE = re.compile(r"(?:^|[_-])x?(\d+)[_-]y?(\d+)$")

_LEAST_STEP = 16  # pixels
_LOOKED_AT = 50  # entries of a folder: a folder of a million images is not listed
_DEEPEST = 4  # folders below each other


def holds_bags(root: Path) -> bool:
    """Whether a file or a folder holds bags: feature files, or folders of patches that are named by their places."""
    if root.is_file():
        return is_bag_file(root)
    found = _first_files(root, _DEEPEST) if root.is_dir() else []
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    if files:
        return all(map(is_bag_file, files))
    images = [path.relative_to(root) for path in found if is_image_name(path.name)]
    return bool(images) and all(map(_of_a_slide, images)) and _on_a_grid(images)


def _of_a_slide(path: Path) -> bool:
    """Whether a path is class/slide/patch, also below a split; train/class/image is an image with a class of its own."""
    return len(path.parts) - (path.parts[0].lower() in KNOWN_NAMES) > 2


def _on_a_grid(paths: Sequence[Path]) -> bool:
    """Whether names end in places at steps of pixels; those of cameras end in numbers too (IMG_20260101_123000.jpg)."""
    step, all_of = 0, 0
    first: dict[Path, tuple[int, int]] = {}
    for path in paths:
        found = PLACE.search(path.stem)
        if found is None:
            return False
        x, y = int(found[1]), int(found[2])
        origin = first.setdefault(path.parent, (x, y))
        step, all_of = math.gcd(step, x - origin[0], y - origin[1]), math.gcd(all_of, x, y)
    return (step or all_of or _LEAST_STEP) >= _LEAST_STEP


def is_bag_file(path: Path) -> bool:
    """Whether a file can be one of bags: an .npz, if it has features."""
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() in SUFFIXES
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names & set(FEATURES))


def _first_files(folder: Path, depth: int) -> list[Path]:
    """Some files of a folder, and of a few folders in it."""
    with os.scandir(folder) as entries:
        some = sorted(
            (entry for entry in islice(entries, _LOOKED_AT) if not entry.name.startswith((".", "__"))), key=lambda entry: entry.name
        )
    files = [Path(entry.path) for entry in some if entry.is_file()]
    inside = [entry.path for entry in some if entry.is_dir()][:3] if depth else []
    return files + [path for name in inside for path in _first_files(Path(name), depth - 1)]
