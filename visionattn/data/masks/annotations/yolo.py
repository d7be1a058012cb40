"""YOLO's text files of polygons: `class x y x y ...`, coordinates as shares of the image.

https://docs.ultralytics.com/datasets/segment
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visionattn.data.masks.annotations.find import Found, annotation_walker
from visionattn.data.masks.annotations.records import AnnotatedImage, Annotations, Shape, class_name, refuse, require_some, ring, split_of
from visionattn.data.masks.areas import Size
from visionattn.data.tables import read_lines
from visionattn.data.walk import IMAGE_SUFFIXES
from visionattn.names import from_path

_RULE = "the smaller object is on top, as in the masks that Ultralytics trains on"
_BOX = "a box without a polygon"
_MOST_BYTES = 2**26  # of a text file


def read_yolo(found: Found) -> Annotations:
    """Read the text file of each image that lies in a folder `images`; an image without one has no objects."""
    left_out: Counter[str] = Counter()
    images = map(Path, annotation_walker(IMAGE_SUFFIXES).files(found.root))
    pairs = [(path, label) for path in images if (label := _label_file(path, found.root)) is not None]
    lines = {label: _polygons(label, left_out) for _, label in pairs if label.is_file()}
    require_some(sum(map(len, lines.values())), left_out, found.root)
    highest = max((number for objects in lines.values() for number, _ in objects), default=-1)
    classes = _classes(found, highest)
    return Annotations(classes, list(_images(found.root, pairs, lines, classes)), "smaller", _RULE, left_out)


def _label_file(image: Path, root: Path) -> Path | None:
    """The text file of an image: the last folder `images` on its path within root becomes `labels`."""
    parts = list(image.relative_to(root).parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if not places:
        return None
    parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _polygons(path: Path, left_out: Counter[str]) -> list[tuple[int, np.ndarray]]:
    objects = []
    if path.stat().st_size > _MOST_BYTES:
        refuse(path, f"a file of {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
    for number, line in enumerate(read_lines(path), 1):
        first, *rest = line.split()
        where = f"{path}: line {number}"
        if not (first.isascii() and first.isdigit()) or len(first) > 6:
            refuse(where, "a line does not begin with the number of a class")
        if len(rest) == 4:
            left_out[_BOX] += 1
        elif len(rest) < 6:
            refuse(where, f"{len(rest)} coordinates: expected x and y of 3 points or more")
        else:
            objects.append((int(first), ring(rest, where)))
    return objects


def _classes(found: Found, highest: int) -> list[str]:
    """Names by number: of data.yaml, or of classes.txt beside the folders."""
    path = found.files[0]
    listed = found.root / "classes.txt"
    if path.suffix == ".txt":
        names: Any = read_lines(listed) if listed.is_file() else [f"class{number}" for number in range(highest + 1)]
        path = listed
    else:
        names = _yaml(path).get("names")
    if isinstance(names, dict):
        if not all(isinstance(key, int) and 0 <= key < 1000 for key in names):
            refuse(path, '"names" with keys that are not numbers of classes')
        names = [names.get(number, f"class{number}") for number in range(max(names, default=-1) + 1)]
    if not isinstance(names, list):
        refuse(path, '"names" is neither a list nor a table of class names')
    if len(names) <= highest:
        refuse(path, f"{len(names):,} names of classes, and labels of class {highest}")
    return [class_name(name, path) for name in names]


def _yaml(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_BYTES:
        refuse(path, f"a file of {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        refuse(path, "not YAML", why=str(error).partition("\n")[0])
    return value if isinstance(value, dict) else {}


def _images(
    root: Path, pairs: list[tuple[Path, Path]], lines: dict[Path, list[tuple[int, np.ndarray]]], classes: list[str]
) -> Iterator[AnnotatedImage]:
    for image, label in pairs:
        inside = Path(os.path.relpath(image, root))
        split = split_of(*inside.parts[:-1])
        draw = partial(_shapes, lines.get(label, []), classes)
        yield AnnotatedImage(from_path(inside.as_posix()), split, None, draw, from_path(os.path.relpath(label, root)))


def _shapes(objects: list[tuple[int, np.ndarray]], classes: list[str], size: Size) -> list[Shape]:
    return [Shape(classes[number], (points * (size[1], size[0]),)) for number, points in objects]
