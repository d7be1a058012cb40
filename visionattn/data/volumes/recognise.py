"""Recognise volumes by names of folders and files, without numpy or torch."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from visionattn.data.volumes.settings import NIFTI

# Names of a folder of images and a folder of labels.
FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"), ("images", "masks"))
# Endings of files of volumes; those of a DICOM series may have any others.
SUFFIXES = frozenset({".nii", ".gz", ".dcm", ".ima", ""})
_FEW = 1000  # entries that are looked at


def holds_volumes(root: Path) -> bool:
    """Whether root, or the only folder in it, has folders of images and labels with a volume among the labels."""
    return volume_root(root) is not None


def volume_root(root: Path) -> Path | None:
    """The folder that holds the folders of images and labels: root, or the only folder in it, as archives unpack."""
    if not root.is_dir():
        return None
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    for folder in [root, *(inside if len(inside) == 1 else [])]:
        if any((folder / images).is_dir() and _holds_volume(folder / labels) for images, labels in FOLDERS):
            return folder
    return None


def is_nifti(name: str) -> bool:
    """Whether a file name has the ending of a NIfTI file."""
    return name.lower().endswith(NIFTI)


def is_dicom(path: str) -> bool:
    """Whether a file begins as one of DICOM."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def without_ending(name: str) -> str:
    """A name without the ending of a volume."""
    return next((name[: -len(ending)] for ending in NIFTI if name.lower().endswith(ending)), name)


def _holds_volume(folder: Path) -> bool:
    names = (name for _, _, names in os.walk(folder) for name in names)
    return any(is_nifti(name) for name in islice(names, _FEW))
