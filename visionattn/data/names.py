"""Find the files that a list names: by whole relative paths, or by names where these are unique."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from visionattn.data.walk import is_image_name
from visionattn.errors import UserError
from visionattn.files import counted


class FileNames:
    """The names of files: paths relative to root or to the folder, or file names, each also without the ending of an image.

    Args:
        files: paths of all files below the folder.
    """

    def __init__(self, files: Sequence[str], folder: Path, root: Path) -> None:
        self._readings: list[dict[str, set[str]]] = [{}, {}, {}, {}]
        for path in files:
            places = {Path(os.path.relpath(path, base)).as_posix() for base in (root, folder)}
            name = os.path.basename(path)
            for known, keys in zip(self._readings, (places, set(map(_stem, places)), {name}, {_stem(name)}), strict=True):
                for key in keys:
                    known.setdefault(key, set()).add(path)

    def fitting(self, entry: str) -> set[str]:
        """The files that an entry of a list may mean, by the most exact of these readings that fits any."""
        text = os.path.normpath(entry.replace("\\", "/")).replace(os.sep, "/").lstrip("/")
        return next((known[key] for known, key in zip(self._readings, (text, _stem(text)) * 2, strict=True) if key in known), set())


def find_listed(listed: Sequence[str], files: Sequence[str], folder: Path, root: Path, *, where: Path) -> list[str]:
    """The file that each entry of a list names.

    An entry is a path relative to root or to the folder, or a file name; the ending may be missing or that of another image
    type. The most exact of these readings that fits any file decides.

    Args:
        files: paths of all files below the folder.
        where: the list, for messages.

    Raises:
        UserError: VA-D001, entries without a file; VA-D002, entries that several files fit.
    """
    names = FileNames(files, folder, root)
    found: list[str] = []
    missing: list[str] = []
    several: list[str] = []
    for entry in listed:
        fitting = names.fitting(entry)
        if len(fitting) == 1:
            found.append(next(iter(fitting)))
        else:
            (several if fitting else missing).append(entry)
    if missing:
        what = f"{len(missing):,} of {counted(len(listed), 'image')} listed in {where.name} do not exist"
        raise UserError(
            "VA-D001", what, where="\n".join([f"{where}, below {folder}:", *missing[:5]]), fix="correct the list, or add the images"
        )
    if several:
        raise UserError(
            "VA-D002",
            f"{len(several):,} of {counted(len(listed), 'name')} in {where.name} fit more than one image",
            where="\n".join([f"{where}:", *several[:5]]),
            fix=f"list paths relative to {folder}, with their ending",
        )
    return found


def _stem(path: str) -> str:
    """A path without its ending, if that is an image's: names may contain dots."""
    return os.path.splitext(path)[0] if is_image_name(path) else path
