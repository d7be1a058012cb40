"""Roboflow's "Semantic Segmentation Masks": in the folder of each split X.jpg, X_mask.png, and the values in _classes.csv."""

from __future__ import annotations

from collections.abc import Iterator

from visionattn.data.masks.annotations.find import Found
from visionattn.data.masks.annotations.records import AnnotatedImage, Annotations, class_name, refuse, split_of
from visionattn.data.tables import read_csv

_SUFFIX = "_mask.png"
_RULE = "the masks are finished: what was on top in Roboflow is in them"


def read_roboflow_masks(found: Found) -> Annotations:
    """Read the lists of values, which have to agree, and list the masks."""
    names: dict[int, str] = {}
    for path in found.files:
        table = read_csv(path, ())
        columns = {column.lower(): column for column in table.columns}
        if not {"pixel value", "class"} <= set(columns):
            refuse(path, "no columns Pixel Value and Class")
        for row in table.rows:
            value, name = row[columns["pixel value"]], class_name(row[columns["class"]], path)
            if not value.isdecimal() or len(value) > 3 or int(value) > 255:
                refuse(path, f'"{value[:20]}" is not a pixel value from 0 to 255')
            if names.setdefault(int(value), name) != name:
                refuse(path, f'pixel value {value} is "{name}" here and "{names[int(value)]}" in another split')
    classes = [names[value] for value in sorted(names)]
    numbers = {value: index for index, value in enumerate(sorted(names))}
    return Annotations(classes, list(_masks(found)), "later", _RULE, numbers=numbers, mask_suffix=_SUFFIX)


def _masks(found: Found) -> Iterator[AnnotatedImage]:
    for listed in found.files:
        folder = listed.parent
        split = split_of(folder.name if folder != found.root else "")
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            inside = path.relative_to(found.root).as_posix()
            yield AnnotatedImage(inside.removesuffix(_SUFFIX), split, None, lambda size: [], inside, path)
