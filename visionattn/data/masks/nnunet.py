"""nnU-Net's raw data in 2D: dataset.json beside imagesTr and labelsTr, one picture per case.

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
        UserError: VA-D002, volumes, channels in files of their own, or other names than CASE_0000.png.
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
    names = sorted(entry.name for folder in folders for entry in os.scandir(folder) if not entry.name.startswith("."))
    numbered = {name: match[1] for name in names if (match := re.search(rf"_(\d{{4}}){re.escape(ending)}$", name))}
    channels = sorted({number for number in numbered.values() if number != "0000"})
    if channels:
        raise UserError(
            "VA-D002",
            f"nnU-Net data with channels in files of their own: CASE_{channels[0]}{ending}",
            where=str(root),
            why="an image is read from one file, with 1 or 3 channels",
            fix=f"join the channels of a case in one file CASE_0000{ending}, as nnU-Net stores RGB pictures",
        )
    if others := [name for name in names if name not in numbered]:
        what = f"{counted(len(others), 'file')} not named as nnU-Net names images, CASE_0000{ending}"
        raise UserError("VA-D002", what, where="\n".join([str(root), *others[:5]]), fix="rename or remove them")
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
