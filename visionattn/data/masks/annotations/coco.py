"""COCO's JSON format, which Roboflow and most tools export: polygons, run lengths, compressed run lengths.

https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
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
from visionattn.names import from_path

_RULE = "the smaller object is on top: the format has no order of objects, and a larger one would hide it"


def read_coco(found: Found) -> Annotations:
    """Read all files; classes of several files are the same if their names are."""
    contents = {path: load_json(path) for path in found.files}
    left_out: Counter[str] = Counter()
    classes: dict[str, None] = {}
    images: list[AnnotatedImage] = []
    drawable = 0
    for path, content in contents.items():
        where = from_path(path.relative_to(found.root).as_posix())
        annotations = records(content, "annotations", where)
        used = {_key(annotation, "category_id", where) for annotation in annotations}
        names: dict[int | str, str] = {}
        categories = records(content, "categories", where)
        parents = {str(category.get("supercategory")) for category in categories}
        for category in categories:
            number, name = _key(category, "id", where), class_name(category.get("name"), where)
            # Roboflow's first category is the name of the project, under which the others stand.
            if found.format == ROBOFLOW and name in parents and number not in used:
                left_out[f'category "{name}", which only groups the others'] = 1
            else:
                names[number] = name
        classes |= dict.fromkeys(names.values())
        drawable += sum(bool(annotation.get("segmentation")) for annotation in annotations)
        split = split_of(path.stem, path.parent.name if path.parent != found.root else "")
        images += _images(records(content, "images", where), annotations, names, split, where, left_out)
    require_some(drawable, left_out, found.root)
    return Annotations(list(classes), images, "smaller", _RULE, left_out)


def _images(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    names: dict[int | str, str],
    split: str,
    where: str,
    left_out: Counter[str],
) -> Iterator[AnnotatedImage]:
    objects: dict[int | str, list[dict[str, Any]]] = {_key(image, "id", where): [] for image in images}
    if len(objects) < len(images):
        refuse(where, "two images with the same id")
    for annotation in annotations:
        image_id = _key(annotation, "image_id", where)
        if annotation["category_id"] not in names:
            refuse(where, f"annotation {annotation.get('id')} has a category_id that the file does not list")
        if image_id not in objects:
            left_out["an object of an image that the file does not list"] += 1
        elif annotation.get("segmentation"):
            objects[image_id].append(annotation)
        else:
            left_out["a box without a polygon"] += 1
    for image in images:
        size = size_of(image, "height", "width", where)
        draw = partial(_shapes, objects[image["id"]], names, where)
        yield AnnotatedImage(text(image, "file_name", where), split, size, draw, where)


def _key(record: dict[str, Any], key: str, where: str) -> int | str:
    value = record.get(key)
    if not isinstance(value, (int, str)):
        refuse(where, f'"{key}" is neither a number nor a text')
    return value


def _shapes(objects: list[dict[str, Any]], names: dict[int | str, str], where: str, size: Size) -> list[Shape]:
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
