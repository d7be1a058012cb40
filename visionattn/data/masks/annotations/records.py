"""What the readers of annotations have in common: records of images and objects, values out of JSON, names of splits."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from visionattn.data.masks.areas import Patch, Size
from visionattn.data.split_names import KNOWN_NAMES
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import shown

_MOST_BYTES = 2**30  # of a file of annotations; COCO's largest has 0.5 GB
_FARTHEST = 1e7  # pixels from the image at which a coordinate is a mistake
_LONGEST_NAME = 255
_LONGEST_TEXT = 500  # of a file that a message repeats
_BACKGROUND = frozenset({"background", "_background_", "bg"})
_IGNORED = "__ignore__"  # LabelMe's name of areas without a class


@dataclass(frozen=True)
class Shape:
    """An object: its class, and closed lines `[N, 2]` of x and y that each enclose a part of it, or a function that draws it.

    Objects of a higher layer lie above those of a lower one, whatever the rule of the format.
    """

    label: str
    rings: tuple[np.ndarray, ...] = ()
    draw: Callable[[Size], Patch] | None = None
    layer: int = 0


@dataclass(frozen=True)
class AnnotatedImage:
    """Annotations of one image.

    Attributes:
        name: path or name of the image, as the file gives it.
        split: train, val or test; all if the format does not tell.
        size: height and width as annotated; None if the file does not tell.
        shapes: the objects, made for the size of the image.
        where: place of the annotations, for messages.
        mask: instead of shapes, a file whose values or colours are classes.
        other_name: what the image may be called instead.
    """

    name: str
    split: str
    size: Size | None
    shapes: Callable[[Size], list[Shape]]
    where: str
    mask: Path | None = None
    other_name: str = ""


@dataclass(frozen=True)
class Annotations:
    """Annotations of a data set.

    Attributes:
        classes: names in order; a background among them gets value 0.
        images: the annotated images; their objects are made when they are drawn.
        on_top: which of two objects that overlap is visible: the smaller one, or the later one in the file.
        rule: the same as a sentence, with the reason.
        left_out: number of what cannot be drawn or is not meant to be, by a description.
        numbers: of formats with mask files, the index in `classes` of each value; `colours`, of each colour packed into a number.
        mask_folders: names of folders, and `mask_suffix` the ends of files, that hold masks and no images.
    """

    classes: list[str]
    images: list[AnnotatedImage]
    on_top: Literal["smaller", "later"]
    rule: str
    left_out: Counter[str] = field(default_factory=Counter)
    numbers: dict[int, int] = field(default_factory=dict)
    colours: dict[int, int] = field(default_factory=dict)
    mask_folders: tuple[str, ...] = ()
    mask_suffix: str = ""


def refuse(where: str | Path, what: str, why: str = "") -> NoReturn:
    """Stop at annotations that cannot be used.

    Raises:
        UserError: VA-D002.
    """
    what, place = shown(what)[:_LONGEST_TEXT], shown(str(where))[-_LONGEST_TEXT:]
    raise UserError("VA-D002", f"annotations that cannot be used: {what}", where=place, why=why, fix="repair or remove them")


def is_background(name: str) -> bool:
    """Whether a class is named as the background."""
    return name.lower() in _BACKGROUND


def is_ignored(name: str) -> bool:
    """Whether a class is named as LabelMe names what has none."""
    return name == _IGNORED


def split_of(*names: str) -> str:
    """The split that a file or folder is named after (`instances_train2017`), of several names the first that is; all otherwise."""
    for name in names:
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in KNOWN_NAMES:
                return KNOWN_NAMES[word]
    return "all"


def load_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: VA-D002, not JSON, or larger than 1 GiB.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        refuse(path, f"a file of {size:,} bytes, at most {_MOST_BYTES:,} are read")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except RecursionError:
        refuse(path, "lists within lists within lists, too deep to read")
    except ValueError as error:
        refuse(path, f"not JSON: {error}")


def records(value: Any, key: str, where: str | Path) -> list[dict[str, Any]]:
    """The list of objects under a key.

    Raises:
        UserError: VA-D002, not such a list.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        refuse(where, f'"{key}" is not a list of objects')
    return found


def text(record: dict[str, Any], key: str, where: str | Path) -> str:
    """The text under a key."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        refuse(where, f'"{key}" is not a text')
    return value


def size_of(record: dict[str, Any], height: str, width: str, where: str | Path) -> Size | None:
    """The size under two keys; None where it is missing."""
    values = record.get(height), record.get(width)
    if values == (None, None):
        return None
    if not all(isinstance(value, int) and value > 0 for value in values):
        refuse(where, f"{height} and {width} are not whole numbers above 0")
    return values  # type: ignore[return-value]


def class_name(value: Any, where: str | Path) -> str:
    """The name of a class on one line, as it stands in classes.txt."""
    name = shown(" ".join(str(value).split())).strip(" ,") if isinstance(value, (str, int)) else ""
    if not name or len(name) > _LONGEST_NAME:
        refuse(where, f"a class without a name of 1 to {_LONGEST_NAME} characters")
    return name


def ring(values: Any, where: str | Path) -> np.ndarray:
    """Points `[N, 2]` of x and y.

    Args:
        values: a list of pairs, or of x, y, x, y.

    Raises:
        UserError: VA-D002, not such numbers, or absurd ones.
    """
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        refuse(where, "coordinates that are not numbers")
    if points.size % 2 or points.ndim not in (1, 2) or (points.ndim == 2 and points.shape[1] != 2):
        refuse(where, "coordinates that are not pairs of x and y")
    if not np.isfinite(points).all():
        refuse(where, "coordinates that are NaN or infinite")
    if points.size and float(np.abs(points).max()) > _FARTHEST:
        refuse(where, f"a coordinate of {float(np.abs(points).max()):.3g}, ten million pixels or more from the image")
    return points.reshape(-1, 2)


def numbers(record: Any, keys: Sequence[str], where: str | Path) -> list[float]:
    """Finite numbers under several keys."""
    found = []
    for key in keys:
        try:
            value = float(record.get(key))
        except (AttributeError, TypeError, ValueError):
            refuse(where, f'"{key}" is not a number')
        if not math.isfinite(value) or abs(value) > _FARTHEST:
            refuse(where, f'"{key}" is {value:.3g}')
        found.append(value)
    return found


def require_some(count: int, left_out: Counter[str], where: str | Path) -> None:
    """Stop where nothing can be drawn.

    Raises:
        UserError: VA-D002.
    """
    if count == 0 and any(left_out.values()):
        why = "\n".join(f"{counted(number, 'object')}: {what}" for what, number in left_out.items() if number)
        raise UserError("VA-D002", "the annotations contain no area", where=shown(str(where)), why=why, fix="export polygons or masks")
