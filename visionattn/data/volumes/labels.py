"""What the values of label maps mean: exclusive classes, or regions that overlap."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.masks.settings import IGNORE
from visionattn.errors import UserError
from visionattn.names import shown

_MOST_BYTES = 2**26  # of dataset.json, which may list the cases
_MOST_VALUES = 64  # of label maps whose classes are asked for


@dataclass(frozen=True)
class LabelRule:
    """The values of label maps and what they stand for.

    In memory a label map holds positions in `values`, and IGNORE.

    Attributes:
        values: those of the files, ascending. Without regions they are the classes.
        regions: for each region the positions of the values that belong to it; empty without regions.
        ignored: value of voxels that are left out, if there is one.
    """

    values: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    ignored: int | None = None

    def encode(self, array: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Return uint8 positions, and the values that have none."""
        known = np.array(self.values)
        places = np.searchsorted(known, array).clip(max=len(known) - 1)
        labels = places.astype(np.uint8)
        stray = known[places] != array
        labels[stray] = IGNORE
        if self.ignored is not None:
            stray &= array != self.ignored
        return labels, np.unique(array[stray]).tolist() if stray.any() else []


@dataclass(frozen=True)
class LabelSet:
    """Names of the outputs of a model, and the rule that gives their labels; `outputs` are the values that `predict` writes for each."""

    names: list[str]
    rule: LabelRule
    outputs: tuple[int, ...]


def read_json(root: Path) -> dict[str, Any]:
    """The contents of dataset.json; empty if there is none.

    Raises:
        UserError: VA-D002, it cannot be read.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("VA-D002", f"dataset.json cannot be read: {shown(str(error))}", where=str(path), fix="correct the file") from error
    return value if isinstance(value, dict) else {}


def channel_names(content: Mapping[str, Any]) -> list[str]:
    """Channels that dataset.json names: `channel_names` of nnU-Net 2, `modality` of the Medical Segmentation Decathlon."""
    named = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or not named:
        return []
    return [str(named[key]) for key in sorted(named, key=lambda key: (len(str(key)), str(key)))]


def declared_labels(content: Mapping[str, Any], root: Path) -> LabelSet | None:
    """Classes or regions that dataset.json declares, in the form of nnU-Net 2 or of the Medical Segmentation Decathlon.

    Raises:
        UserError: VA-D002, labels that are neither.
    """
    labels = content.get("labels")
    if labels is None:
        return None
    where = str(root / "dataset.json")
    fix = '"labels": {"background": 0, "liver": 1, ...}, or {"0": "background", "1": "liver", ...}'
    if not isinstance(labels, dict) or not labels:
        raise UserError("VA-D002", "labels in dataset.json are not a table of names and values", where=where, fix=fix)
    if all(str(key).lstrip("-").isdigit() and isinstance(name, str) for key, name in labels.items()):
        labels = {name: int(key) for key, name in labels.items()}
        if len(labels) < len(content["labels"]):
            raise UserError("VA-D002", "labels in dataset.json with the same name", where=where, fix="correct the file")
    table: dict[str, list[int]] = {}
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(number) is int and 0 <= number < 2**15 for number in values):
            raise UserError("VA-D002", f'label "{shown(str(name))}" in dataset.json has no whole numbers as values', where=where, fix=fix)
        table[str(name)] = values
    ignored = table.pop("ignore", [None])[0]  # type: ignore[list-item]
    if any(isinstance(value, list) for value in labels.values()):
        background = next((name for name, values in table.items() if values == [0]), None)
        regions = {name: values for name, values in table.items() if name != background}
        order = content.get("regions_class_order")
        return regions_of(regions, order if isinstance(order, list) else None, ignored, where)
    single = {name: values[0] for name, values in table.items()}
    if len(set(single.values())) < len(single) or ignored in single.values():
        raise UserError("VA-D002", "labels in dataset.json with the same value", where=where, fix="correct the file")
    return classes_of(sorted(single, key=single.__getitem__), sorted(single.values()), ignored, where)


def classes_of(names: Sequence[str], values: Sequence[int], ignored: int | None, where: str) -> LabelSet:
    """Exclusive classes, the first of them the background.

    Raises:
        UserError: VA-D002, fewer than two.
    """
    if not 2 <= len(values) < IGNORE:
        fix = f"two to {IGNORE - 1}, the background among them"
        raise UserError("VA-D002", f"{len(values)} classes of label values", where=where, fix=fix)
    return LabelSet(list(names), LabelRule(tuple(values), (), ignored), tuple(values))


def regions_of(regions: Mapping[str, Sequence[int]], order: Sequence[Any] | None, ignored: int | None, where: str) -> LabelSet:
    """Regions, each made of label values, which may be in several.

    Args:
        order: the value that a label map gets for each region, later ones over earlier ones; None: the value of each region that no
            later one has, from the largest region on.

    Raises:
        UserError: VA-D002, a region without values, or an order of another length.
    """
    values = sorted({0, *(value for numbers in regions.values() for value in numbers)})
    if not regions or not all(regions.values()) or len(values) >= IGNORE:
        raise UserError("VA-D002", "regions without label values", where=where, fix="give each region a list of values: {whole: [1, 2]}")
    if order is None:
        rest = list(regions.values())
        order = [next((v for v in numbers if not any(v in later for later in rest[place + 1 :])), 0) for place, numbers in enumerate(rest)]
    if len(order) != len(regions) or not all(type(value) is int and 0 < value < IGNORE for value in order):
        what = f"regions_class_order {list(order)}: expected the label value of each of {len(regions)} regions, from large to small"
        raise UserError("VA-D002", what, where=where, fix='"regions_class_order": [1, 2, 3]')
    places = tuple(tuple(values.index(value) for value in numbers) for numbers in regions.values())
    return LabelSet(list(regions), LabelRule(tuple(values), places, ignored), tuple(order))


def found_labels(values: set[int], where: str) -> LabelSet:
    """Classes by the values that label maps have, where nothing names them.

    Raises:
        UserError: VA-D012, values that are not 0, 1, 2, ...
    """
    known = sorted(values)
    if known == [0]:
        raise UserError("VA-D012", "label maps that are 0 everywhere", where=where, fix="check that these are the label maps")
    if known != list(range(len(known))) or len(known) < 2:
        listed = ", ".join(map(str, known[:12])) + (", ..." if len(known) > 12 else "")
        named = {"background": 0, **{f"class{value}": value for value in known if value}}
        fix = f'dataset.json in data.root: {{"labels": {json.dumps(named)}}}' if len(known) <= _MOST_VALUES else "are these label maps?"
        raise UserError("VA-D012", f"label values {listed} are not consecutive from 0 on, and nothing names them", where=where, fix=fix)
    names = ["background", "object"] if len(known) == 2 else ["background", *(f"class{value}" for value in known[1:])]
    return classes_of(names, known, None, where)
