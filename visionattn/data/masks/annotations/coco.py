"""COCO's JSON format, which Roboflow and most tools export: polygons, run lengths, compressed run lengths.

https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from visionattn.data.masks.annotations.find import ROBOFLOW, Found
from visionattn.data.masks.annotations.records import (
    AnnotatedImage,
    Annotations,
    Shape,
    class_name,
    load_json,
    records,
    refuse,
    require_some,
    ring,
    size_of,
    split_of,
    text,
)
from visionattn.data.masks.areas import BadArea, Patch, Size, run_area, unpacked_runs

_RULE = "the smaller object is on top: the format has no order of objects, and a larger one would hide it"


def read_coco(found: Found) -> Annotations:
    """Read all files; classes of several files are the same if their names are."""
    contents = {path: load_json(path) for path in found.files}
    left_out: Counter[str] = Counter()
    names: dict[str, None] = {}
    drawable = 0
    for path, content in contents.items():
        categories = records(content, "categories", path)
        parents = {category.get("supercategory") for category in categories}
        used = {annotation.get("category_id") for annotation in records(content, "annotations", path)}
        for category in categories:
            # Roboflow's category 0 is the name of the project, under which the others stand.
            if found.format == ROBOFLOW and category.get("name") in parents and category.get("id") not in used:
                left_out[f'category "{category.get("name")}", which only groups the others'] = 1
            else:
                names[class_name(category.get("name"), path)] = None
        drawable += sum(bool(annotation.get("segmentation")) for annotation in content["annotations"])
    require_some(
        drawable, Counter({"a box without a polygon": sum(len(content["annotations"]) for content in contents.values())}), found.root
    )
    return Annotations(list(names), list(_images(found, contents, left_out)), "smaller", _RULE, left_out)


def _images(found: Found, contents: dict[Path, Any], left_out: Counter[str]) -> Iterator[AnnotatedImage]:
    for path, content in contents.items():
        where = path.relative_to(found.root).as_posix()
        split = split_of(path.stem, path.parent.name if path.parent != found.root else "")
        names = {category.get("id"): class_name(category.get("name"), where) for category in content["categories"]}
        images = records(content, "images", where)
        known = {_key(image.get("id"), "images", where) for image in images}
        if len(known) < len(images):
            refuse(where, "two images with the same id")
        of_image: dict[int | str, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            image_id = _key(annotation.get("image_id"), "annotations", where)
            if image_id not in known:
                left_out["an object of an image that the file does not list"] += 1
            elif annotation.get("category_id") not in names:
                refuse(where, f"annotation {annotation.get('id')} has a category_id that the file does not list")
            elif annotation.get("segmentation"):
                of_image.setdefault(image_id, []).append(annotation)
            else:
                left_out["a box without a polygon"] += 1
        for image in images:
            objects = of_image.get(image["id"], [])
            size = size_of(image, "height", "width", where)
            yield AnnotatedImage(text(image, "file_name", where), split, size, partial(_shapes, objects, names, where), where)


def _key(value: Any, key: str, where: str) -> int | str:
    if not isinstance(value, (int, str)):
        refuse(where, f'"{key}" with an image id that is neither a number nor a text')
    return value


def _shapes(objects: list[dict[str, Any]], names: dict[Any, str], where: str, size: Size) -> list[Shape]:
    shapes = []
    for annotation in objects:
        label, place = names[annotation["category_id"]], f"{where}: annotation {annotation.get('id')}"
        layer = -1 if annotation.get("iscrowd") == 1 else 0  # a crowd is drawn around objects that have their own areas
        area = annotation["segmentation"]
        if isinstance(area, dict):
            shapes.append(Shape(label, draw=partial(_draw_runs, area), layer=layer))
        elif isinstance(area, list):
            parts = tuple(points for part in area if len(points := ring(part, place)) > 2)
            shapes.append(Shape(label, parts, layer=layer))
        else:
            refuse(place, "a segmentation that is neither a list of polygons nor run lengths")
    return shapes


def _draw_runs(area: dict[str, Any], size: Size) -> Patch:
    if area.get("size") != list(size):
        raise BadArea(f"run lengths for a size of {area.get('size')} in an image of {list(size)}")
    counts = area.get("counts")
    return Patch(0, 0, run_area(unpacked_runs(counts) if isinstance(counts, str) else counts, size, by_column=True))
