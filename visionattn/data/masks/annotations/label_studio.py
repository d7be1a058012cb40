"""Label Studio's export "JSON": a list of tasks, with polygons, brush strokes, rectangles and ellipses in percent of the image.

https://labelstud.io/guide/export
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from visionattn.data.masks.annotations.find import Found
from visionattn.data.masks.annotations.records import (
    AnnotatedImage,
    Annotations,
    Shape,
    class_name,
    load_json,
    numbers,
    records,
    refuse,
    require_some,
    ring,
    size_of,
)
from visionattn.data.masks.areas import Patch, Size, brush_area, ellipse, rectangle, turned
from visionattn.data.walk import is_image_name

_RULE = "the later region in the list is on top, as Label Studio draws them"
_AREAS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # before the name of a file that was uploaded


def read_label_studio(found: Found) -> Annotations:
    """Read the first annotation of each task that was not cancelled; a task without one is not annotated."""
    left_out: Counter[str] = Counter()
    names: dict[str, None] = {}
    images = []
    count = 0
    for path in found.files:
        for number, task in enumerate(records({"tasks": load_json(path)}, "tasks", path), 1):
            where = f"{path.relative_to(found.root).as_posix()}: task {task.get('id', number)}"
            given = records(task, "annotations" if "annotations" in task else "completions", where)
            valid = [annotation for annotation in given if not annotation.get("was_cancelled")]
            if not valid:
                left_out["a task without an annotation"] += 1
                continue
            if len(valid) > 1:
                left_out["an annotation of a task that has an earlier one"] += len(valid) - 1
            kept = []
            for region in records(valid[0], "result", where):
                if region.get("type") not in _AREAS:
                    left_out[f"a region of type {str(region.get('type'))[:40]}, which has no area"] += 1
                elif not _labels(region):
                    left_out["a region without a label"] += 1
                else:
                    kept.append(region)
                    names[class_name(_labels(region)[0], where)] = None
            count += len(kept)
            images.append((_image_name(task, where), kept, where))
    require_some(count, Counter({what: number for what, number in left_out.items() if what.startswith("a region")}), found.root)
    return Annotations(sorted(names), list(_images(images)), "later", _RULE, left_out)


def _labels(region: dict[str, Any]) -> list[Any]:
    value = region.get("value")
    labels = value.get(region["type"]) if isinstance(value, dict) else None
    return labels if isinstance(labels, list) else []


def _image_name(task: dict[str, Any], where: str) -> str:
    """The name of the image: of several values of a task, the first that ends like one."""
    data = task.get("data")
    for value in data.values() if isinstance(data, dict) else ():
        if isinstance(value, str):
            address = urlsplit(value)
            path = parse_qs(address.query).get("d", [unquote(address.path)])[0]  # files on the server's own disk have it in ?d=
            if is_image_name(path):
                return path.replace("\\", "/").rpartition("/")[2]
    refuse(where, '"data" names no image')


def _images(images: list[tuple[str, list[dict[str, Any]], str]]) -> Iterator[AnnotatedImage]:
    for name, regions, where in images:
        sizes = {size_of(region, "original_height", "original_width", where) for region in regions} - {None}
        if len(sizes) > 1:
            refuse(where, "regions of images of several sizes")
        draw = partial(_shapes, regions, where)
        yield AnnotatedImage(name, "all", next(iter(sizes), None), draw, where, other_name=_UPLOADED.sub("", name))


def _shapes(regions: list[dict[str, Any]], where: str, size: Size) -> list[Shape]:
    return [_shape(region, f"{where}: region {region.get('id', number)}", size) for number, region in enumerate(regions, 1)]


def _shape(region: dict[str, Any], where: str, size: Size) -> Shape:
    value, label = region["value"], class_name(_labels(region)[0], where)
    pixels = (size[1] / 100, size[0] / 100)
    if region.get("image_rotation"):
        refuse(where, "an image that was rotated in Label Studio", why="rotate the image file, and annotate it upright")
    if region["type"] == "brushlabels":
        if value.get("format") != "rle":
            refuse(where, f"a brush stroke in the format {str(value.get('format'))[:40]}, expected rle")
        return Shape(label, draw=partial(_draw_brush, value.get("rle")))
    if region["type"] == "polygonlabels":
        points = ring(value.get("points"), where)
        return Shape(label, (points * pixels,) if len(points) > 2 else ())
    angle = numbers({"rotation": value.get("rotation") or 0}, ["rotation"], where)[0]
    if region["type"] == "rectanglelabels":
        left, top, width, height = numbers(value, ["x", "y", "width", "height"], where)
        outline, centre = rectangle(left, top, left + width, top + height) * pixels, (left * pixels[0], top * pixels[1])
    else:
        x, y, radius_x, radius_y = numbers(value, ["x", "y", "radiusX", "radiusY"], where)
        outline, centre = ellipse(x, y, radius_x, radius_y) * pixels, (x * pixels[0], y * pixels[1])
    return Shape(label, (turned(outline, centre, angle) if angle else outline,))


def _draw_brush(packed: Any, size: Size) -> Patch:
    return Patch(0, 0, brush_area(packed, size))
