"""LabelMe's JSON file per image: polygons, rectangles, circles and masks.

https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.masks.annotations.find import Found
from visionattn.data.masks.annotations.records import (
    AnnotatedImage,
    Annotations,
    Shape,
    class_name,
    is_ignored,
    load_json,
    records,
    refuse,
    require_some,
    ring,
    size_of,
    split_of,
)
from visionattn.data.masks.areas import BadArea, Patch, Size, ellipse, rectangle
from visionattn.data.readers import UnreadableFile, read_mask
from visionattn.names import from_path

_RULE = "the later object in the file is on top, as in LabelMe's own conversion"
_AREAS = ("polygon", "rectangle", "circle", "mask")


def read_labelme(found: Found) -> Annotations:
    """Read a file per image; classes are sorted by name, because no file lists them in order."""
    left_out: Counter[str] = Counter()
    names: set[str] = set()
    count = 0
    images = []
    for path in found.files:
        where = from_path(path.relative_to(found.root).as_posix())
        content = load_json(path)
        kept = []
        for shape in records(content, "shapes", where):
            kind = shape.get("shape_type") or "polygon"  # files of old versions have polygons only
            if kind in _AREAS:
                kept.append({**shape, "shape_type": kind})
                names.add(class_name(shape.get("label"), where))
            else:
                left_out[f"a {kind if isinstance(kind, str) else 'shape of no kind'}, which has no area"] += 1
        count += len(kept)
        size = size_of(content, "imageHeight", "imageWidth", where)
        images.append((path, _image_name(path, content, found.root), size, kept, where))
    require_some(count, left_out, found.root)
    classes = sorted(name for name in names if not is_ignored(name))
    return Annotations(classes, list(_images(images, found.root)), "later", _RULE, left_out)


def _image_name(path: Path, content: dict[str, Any], root: Path) -> str:
    """The image as a path within root: imagePath is relative to the file, or only a name that was true elsewhere."""
    given = content.get("imagePath")
    name = given.replace("\\", "/").rpartition("/")[2] if isinstance(given, str) else path.stem
    return from_path((path.parent.relative_to(root) / name).as_posix())


def _images(images: list[tuple[Path, str, Size | None, list[dict[str, Any]], str]], root: Path) -> Iterator[AnnotatedImage]:
    for path, name, size, shapes, where in images:
        split = split_of(*Path(os.path.relpath(path, root)).parts[:-1])
        yield AnnotatedImage(name, split, size, partial(_shapes, shapes, where), where)


def _shapes(shapes: list[dict[str, Any]], where: str, size: Size) -> list[Shape]:
    return [_shape(shape, f"{where}: shape {number}") for number, shape in enumerate(shapes, 1)]


def _shape(shape: dict[str, Any], where: str) -> Shape:
    label, points = class_name(shape.get("label"), where), ring(shape.get("points"), where)
    kind = shape["shape_type"]
    if kind == "polygon":
        return Shape(label, (points,) if len(points) > 2 else ())
    if len(points) != 2:
        refuse(where, f"a {kind} of {len(points)} points, expected 2")
    (left, top), (right, bottom) = points.tolist()
    if kind == "rectangle":
        return Shape(label, (rectangle(left, top, right, bottom),))
    if kind == "circle":  # centre and a point of the line
        radius = float(np.hypot(right - left, bottom - top))
        return Shape(label, (ellipse(left, top, radius, radius),))
    return Shape(label, draw=partial(_draw_mask, shape.get("mask"), (round(top), round(left))))


def _draw_mask(encoded: Any, corner: tuple[int, int], size: Size) -> Patch:
    """A PNG in base64, whose upper left pixel lies at a corner."""
    try:
        pixels = read_mask(base64.b64decode(encoded), max_bytes=64 * size[0] * size[1] + 2**16).values > 0
    except (TypeError, ValueError, UnreadableFile) as error:
        raise BadArea(f"a mask that is not a PNG of at most the size of the image: {error}") from error
    row, column = corner
    inside = pixels[max(0, -row) : max(0, size[0] - row), max(0, -column) : max(0, size[1] - column)]
    return Patch(max(0, row), max(0, column), inside)
