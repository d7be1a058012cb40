"""nnU-Net's raw data in 2D: dataset.json beside imagesTr and labelsTr, one picture per case, or one per channel of it.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn.data.masks.palettes import ClassEntry
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import shown

_ENDINGS = (".png", ".tif", ".tiff", ".bmp")
_MOST_BYTES = 2**26  # of dataset.json, which may list the cases


def file_ending(root: Path, folders: Sequence[Path]) -> str:
    """The ending of images and masks.

    Args:
        folders: those of images.

    Raises:
        UserError: VA-D002, volumes, other names than CASE_0000.png, or cases with different channels.
    """
    ending = _contents(root).get("file_ending")
    if ending not in _ENDINGS:
        raise UserError(
            "VA-D002",
            f"nnU-Net data whose files end in {shown(str(ending))}",
            where=str(root / "dataset.json"),
            why=f"images are pictures: {', '.join(_ENDINGS)}; NIfTI files are volumes, another task",
            fix="task=volumes",
        )
    names = sorted(f"{folder.name}/{entry.name}" for folder in folders for entry in os.scandir(folder) if not entry.name.startswith("."))
    numbered = {name: match for name in names if (match := re.fullmatch(rf"(.*)_(\d{{4}}){re.escape(ending)}", name))}
    if others := [name for name in names if name not in numbered]:
        what = f"{counted(len(others), 'file')} not named as nnU-Net names images, CASE_0000{ending}"
        raise UserError("VA-D002", what, where="\n".join([str(root), *others[:5]]), fix="rename or remove them")
    channels: dict[str, list[str]] = {}
    for match in numbered.values():
        channels.setdefault(match[1], []).append(match[2])
    every = [f"{number:04d}" for number in range(max(map(len, channels.values()), default=0))]
    for case, found in channels.items():
        if sorted(found) != every:
            what = f"nnU-Net data whose cases have different channels: {shown(case)} has {', '.join(sorted(found))}"
            fix = f"give each case the files {', '.join(f'CASE_{number}{ending}' for number in every)}"
            raise UserError("VA-D002", what, where=str(root), why=f"others have {len(every)} files, numbered from 0000", fix=fix)
    return str(ending)


def nnunet_classes(root: Path) -> list[ClassEntry]:
    """The classes in dataset.json; the one called ignore is excluded from loss and scores.

    Raises:
        UserError: VA-D002, labels that are no single values.
    """
    labels = _contents(root).get("labels")
    if not isinstance(labels, dict) or not labels or not all(type(value) is int and 0 <= value <= 255 for value in labels.values()):
        why = "regions (a list of values) and the form of nnU-Net 1 (names by value) are not read"
        fix = "name the classes in order of the mask values: data.classes=[background,...]"
        raise UserError("VA-D002", "labels in dataset.json that are not values by name", where=str(root / "dataset.json"), why=why, fix=fix)
    if len(set(labels.values())) < len(labels):
        raise UserError("VA-D002", "labels in dataset.json with the same value", where=str(root / "dataset.json"), fix="correct the file")
    return [ClassEntry(value, str(name), None) for name, value in sorted(labels.items(), key=lambda label: label[1])]


def _contents(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        fix = 'dataset.json: {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, ...}, "file_ending": ".png"}'
        raise UserError("VA-D002", "imagesTr and labelsTr without dataset.json", where=str(root), why="nnU-Net's layout has one", fix=fix)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError("VA-D002", f"dataset.json cannot be read: {shown(str(error))}", where=str(path), fix="correct the file") from error
    return value if isinstance(value, dict) else {}
