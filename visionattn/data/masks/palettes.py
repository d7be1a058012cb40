"""Colours of classes: lists of classes with their mask values, pictures of class maps, palette PNGs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from visionattn.data.masks.settings import IGNORE
from visionattn.errors import UserError

Colour = tuple[int, int, int]

_SHIPPED = files("visionattn") / "data" / "masks" / "classes"
_IGNORED_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
# of a line in a list of classes; the first that fits all lines
_FORMS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"(?P<value>\d+)[\s,]+(?P<name>\S.*?)[\s,]+(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)",
        r"(?P<name>\S.*?)[\s,]+(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)",
        r"(?P<value>\d+)[\s,]+(?P<name>\S.*)",
        r"(?P<name>.+)",
    )
)


@dataclass(frozen=True)
class ClassEntry:
    """A class of a data set: the value that stands for it in masks, and its colour if it has one."""

    value: int
    name: str
    colour: Colour | None

    @property
    def ignored(self) -> bool:
        """Whether the name says that these pixels are no class."""
        return self.name.lower() in _IGNORED_NAMES


def shipped_class_lists() -> list[str]:
    """Names of the class lists inside the package."""
    return sorted(path.name.removesuffix(".txt") for path in _SHIPPED.iterdir() if path.name.endswith(".txt"))


def read_classes(source: str | Path) -> list[ClassEntry]:
    """A shipped list by its name, or a file: a class per line, `name`, `index name` or `index name R G B`.

    Raises:
        UserError: VA-D001, no such file; VA-C002, lines of different forms, or an index twice.
    """
    if str(source) in shipped_class_lists():
        return _parse_classes((_SHIPPED / f"{source}.txt").read_text(encoding="utf-8"), str(source))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            "VA-D001", f'list of classes "{source}" not found', fix=f"a text file, or one of {', '.join(shipped_class_lists())}"
        )
    return _parse_classes(path.read_text(encoding="utf-8-sig"), str(path))


def _parse_classes(text: str, where: str) -> list[ClassEntry]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("VA-C002", "the list of classes is empty", where=where, fix="a class per line: index name R G B")
    form = next(form for form in _FORMS if all(form.fullmatch(line) for line in lines))
    entries = []
    for position, line in enumerate(lines):
        match = form.fullmatch(line)
        found = match.groupdict() if match else {}
        colour = (int(found["red"]), int(found["green"]), int(found["blue"])) if "red" in found else None
        if colour is not None and max(colour) > 255:
            raise UserError("VA-C002", f"a colour has numbers from 0 to 255, got {colour}", where=f"{where}: {line}")
        entries.append(ClassEntry(int(found.get("value", position)), found["name"], colour))
    values = Counter(entry.value for entry in entries)
    twice = [value for value, count in values.items() if count > 1]
    if twice:
        raise UserError("VA-C002", f"index {twice[0]} stands for two classes", where=where)
    return entries


def default_palette(count: int) -> list[Colour]:
    """Colours that differ well, black first: bits of the number dealt out to red, green and blue, as in Pascal VOC."""
    palette = []
    for number in range(count):
        colour = [0, 0, 0]
        for bit in range(24):
            colour[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        palette.append((colour[0], colour[1], colour[2]))
    return palette


def overlay(image: np.ndarray, class_map: np.ndarray, palette: Sequence[Colour], opacity: float = 0.5) -> np.ndarray:
    """uint8 (H, W, 3): the classes in their colours over the image; ignored pixels and classes in black show the image alone.

    It is made in bands of rows, so that a large image takes no more memory than the picture.

    Args:
        image: uint8 (H, W, 1 or 3).
        class_map: (H, W), IGNORE where there is no class.
    """
    table = np.zeros((256, 3), np.float32)
    table[: len(palette)] = palette
    tinted = table.max(1) > 0
    tinted[IGNORE] = False
    result = np.empty((*image.shape[:2], 3), np.uint8)
    for row in range(0, len(image), 64):
        band, classes = image[row : row + 64].astype(np.float32), class_map[row : row + 64]
        numbers = classes.astype(np.uint8)
        mixed = np.where(tinted[numbers][:, :, None], band * (1 - opacity) + table[numbers] * opacity, band)
        result[row : row + 64] = np.rint(mixed)
    return result


def mask_png(class_map: np.ndarray, palette: Sequence[Colour]) -> bytes:
    """A PNG whose pixels are the numbers of the map, shown in colours; 16 bits and grey where a number is above 255."""
    buffer = BytesIO()
    if int(class_map.max(initial=0)) > 255:
        Image.fromarray(class_map.astype(np.uint16)).save(buffer, "PNG")
        return buffer.getvalue()
    picture = Image.fromarray(class_map.astype(np.uint8))
    picture.putpalette([part for colour in [*palette, *default_palette(256)[len(palette) :]][:256] for part in colour])
    picture.save(buffer, "PNG", bits=8)
    return buffer.getvalue()
