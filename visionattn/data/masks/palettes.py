"""Colours of classes: class lists with mask values, overlays of class maps, palette PNGs."""

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
from visionattn.data.tables import read_lines
from visionattn.errors import UserError
from visionattn.names import to_path

Colour = tuple[int, int, int]

_SHIPPED = files("visionattn") / "data" / "masks" / "classes"
_IGNORED_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
_LONGEST_LINE = 300
# forms of a line in a class list; the first that matches all lines is used
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
    """A class of a dataset: its value in masks, and its colour if it has one."""

    value: int
    name: str
    colour: Colour | None

    @property
    def ignored(self) -> bool:
        """Whether the name marks pixels without a class."""
        return self.name.lower() in _IGNORED_NAMES


def shipped_class_lists() -> list[str]:
    """Names of the class lists in the package."""
    return sorted(path.name.removesuffix(".txt") for path in _SHIPPED.iterdir() if path.name.endswith(".txt"))


def read_classes(source: str | Path) -> list[ClassEntry]:
    """Read a shipped list by name, or a file with one class per line: `name`, `index name` or `index name R G B`.

    Raises:
        UserError: VA-D001, no such file; VA-D002, not text; VA-C002, a duplicate index or an invalid colour.
    """
    if str(source) in shipped_class_lists():
        return _parse_classes(read_lines(Path(str(_SHIPPED / f"{source}.txt"))), str(source))
    path = Path(to_path(str(source))).expanduser()
    if not path.is_file():
        raise UserError(
            "VA-D001", f'list of classes "{source}" not found', fix=f"a text file, or one of {', '.join(shipped_class_lists())}"
        )
    return _parse_classes(read_lines(path), str(path))


def _parse_classes(lines: list[str], where: str) -> list[ClassEntry]:
    if any(len(line) > _LONGEST_LINE for line in lines):  # the forms take long to try on such a line
        raise UserError("VA-C002", f"the list of classes has a line of more than {_LONGEST_LINE} characters", where=where)
    if not lines:
        raise UserError("VA-C002", "the list of classes is empty", where=where, fix="one class per line: index name R G B")
    form = next(form for form in _FORMS if all(form.fullmatch(line) for line in lines))
    entries = []
    for position, line in enumerate(lines):
        match = form.fullmatch(line)
        found = match.groupdict() if match else {}
        colour = (int(found["red"]), int(found["green"]), int(found["blue"])) if "red" in found else None
        if colour is not None and max(colour) > 255:
            raise UserError("VA-C002", f"expected colour values from 0 to 255, got {colour}", where=f"{where}: {line}")
        entries.append(ClassEntry(int(found.get("value", position)), found["name"], colour))
    values = Counter(entry.value for entry in entries)
    twice = [value for value, count in values.items() if count > 1]
    if twice:
        raise UserError("VA-C002", f"index {twice[0]} is used for two classes", where=where)
    return entries


def default_palette(count: int) -> list[Colour]:
    """Return distinct colours, black first: the bits of the index distributed over red, green and blue, as in Pascal VOC."""
    palette = []
    for number in range(count):
        colour = [0, 0, 0]
        for bit in range(24):
            colour[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        palette.append((colour[0], colour[1], colour[2]))
    return palette


def overlay(image: np.ndarray, class_map: np.ndarray, palette: Sequence[Colour], opacity: float = 0.5) -> np.ndarray:
    """Blend the colours of the classes over the image; ignored pixels and black classes show only the image.

    The result is uint8 (H, W, 3), computed in bands of rows to save memory on large images.

    Args:
        image: uint8 (H, W, 1 or 3).
        class_map: (H, W), IGNORE for pixels without a class.
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
    """Encode a class map as a palette PNG, or as 16-bit grey if a value is above 255."""
    buffer = BytesIO()
    if int(class_map.max(initial=0)) > 255:
        Image.fromarray(class_map.astype(np.uint16)).save(buffer, "PNG")
        return buffer.getvalue()
    picture = Image.fromarray(class_map.astype(np.uint8))
    picture.putpalette([part for colour in [*palette, *default_palette(256)[len(palette) :]][:256] for part in colour])
    picture.save(buffer, "PNG", bits=8)
    return buffer.getvalue()
