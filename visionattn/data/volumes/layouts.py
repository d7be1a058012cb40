"""Find volumes and their label maps: folders of splits, nnU-Net's raw data, the Medical Segmentation Decathlon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.data.root import find_root
from visionattn.data.split_names import split_names
from visionattn.data.splits import Note
from visionattn.data.volumes.files import Source, folder_series
from visionattn.data.volumes.labels import channel_names, read_json
from visionattn.data.volumes.recognise import FOLDERS, SUFFIXES, is_dicom, is_nifti, volume_root, without_ending
from visionattn.data.volumes.settings import VolumeDataConfig
from visionattn.data.walk import Walker
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import from_path, shown

_ACCEPTED = """accepted layouts:
  ROOT/images/train/CASE.nii.gz and ROOT/labels/train/CASE.nii.gz (and val, test); masks for labels
  ROOT/images/CASE.nii.gz and ROOT/labels/CASE.nii.gz, with data.val_fraction=0.2 or --folds 5
  ROOT/images/train/CASE/*.dcm, a DICOM series per folder, with ROOT/labels/train/CASE.nii.gz
  nnU-Net's ROOT/imagesTr/CASE_0000.nii.gz, ROOT/labelsTr/CASE.nii.gz and ROOT/dataset.json
  the Medical Segmentation Decathlon's ROOT/imagesTr, ROOT/labelsTr and ROOT/dataset.json
  others: data.images=FOLDER/{split} data.labels=FOLDER/{split}"""


@dataclass(frozen=True)
class Case:
    """A volume with its label map; ids are paths relative to data.root."""

    id: str
    source: Source
    label_id: str
    label_path: str


@dataclass(frozen=True)
class Cases:
    """Contents of a layout.

    Attributes:
        root: where it is.
        content: of dataset.json.
        channels: names of the channels.
        parts: cases by split; `all` if there are no splits.
        without_label: ids of volumes without a label map.
        notes: what was left out.
    """

    root: Path
    content: Mapping[str, Any]
    channels: list[str]
    parts: dict[str, list[Case]]
    without_label: list[str]
    notes: list[Note]


def find_cases(settings: VolumeDataConfig) -> Cases:
    """List the volumes of data.root with their label maps; none is opened.

    Raises:
        UserError: VA-D001, root missing; VA-D002, none of the accepted layouts, or a dataset.json that does not fit the files.
    """
    root = find_root(settings)
    if bool(settings.images) != bool(settings.labels):
        raise UserError("VA-C002", "data.images and data.labels belong together", fix="give both: data.images=FOLDER data.labels=FOLDER")
    found = root if settings.images else volume_root(root)
    if found is None:
        raise _wrong_layout(settings, root, "none of the accepted layouts of volumes")
    content = read_json(found)
    channels = channel_names(content) or ["image"]
    cases = Cases(found, content, channels, {}, [], [])
    walker = Walker(SUFFIXES, settings.exclude, is_dicom)
    for split, images, labels in _folders(settings, found):
        volumes = _volumes(images, walker, len(channels))
        maps = _label_maps(labels, walker)
        if split == "test" and not maps:
            cases.notes.append(Note("info", "", "test has no label maps and is left out"))
            continue
        listed = _listed(content, found) if split == "all" else None
        for key, source in sorted(volumes.items()):
            name = _id(source.name, found)
            if listed is not None and key not in listed:
                continue
            if key not in maps:
                cases.without_label.append(name)
                continue
            cases.parts.setdefault(split, []).append(Case(name, source, _id(maps[key], found), maps[key]))
        if listed is not None and (missing := sorted(listed - set(volumes))):
            what = f"{counted(len(missing), 'volume')} of dataset.json not found: {shown(', '.join(missing[:3]))}"
            raise UserError("VA-D002", what, where=str(images), fix="restore the files, or correct the list of training in dataset.json")
    if not any(cases.parts.values()):
        raise _wrong_layout(settings, root, "no volume has a label map of its name")
    return cases


def _folders(settings: VolumeDataConfig, root: Path) -> list[tuple[str, Path, Path]]:
    """The folders of images and labels of each split; `all` for those without splits."""
    names = split_names(settings)
    if not settings.images and (root / "imagesTr").is_dir() and settings.format in ("auto", "nnunet"):
        pairs = [("all", root / "imagesTr", root / "labelsTr"), ("test", root / "imagesTs", root / "labelsTs")]
        return [pair for pair in pairs if pair[1].is_dir()]
    patterns = [(settings.images, settings.labels)] if settings.images else [pair for pair in FOLDERS[1:] if (root / pair[1]).is_dir()]
    for images, labels in patterns:
        split_images, split_labels = (text if "{split}" in text or settings.images else f"{text}/{{split}}" for text in (images, labels))
        found = []
        for split, known in names.items() if "{split}" in split_images else ():
            folder = next((root / text for name in known if (root / (text := split_images.replace("{split}", name))).is_dir()), None)
            if folder is not None:
                found.append((split, folder, root / split_labels.replace("{split}", folder.name)))
        if found:
            return found
        if (root / images).is_dir():
            return [("all", root / images, root / labels)]
    return []


def _volumes(folder: Path, walker: Walker, channels: int) -> dict[str, Source]:
    """Volumes below a folder by their place in it without endings.

    Raises:
        UserError: VA-D002, a case without all of its channels.
    """
    files: dict[str, list[str]] = {}
    series: set[str] = set()
    for path in walker.files(folder):
        inside = from_path(Path(os.path.relpath(path, folder)).as_posix())
        if is_nifti(path):
            files.setdefault(without_ending(inside), []).append(path)
        elif "/" in inside:
            series.add(inside.rpartition("/")[0])
    numbered = {key: paths for key, paths in files.items() if key[-5:-4] == "_" and key[-4:].isdigit()}
    grouped: dict[str, list[str]] = {}
    if len(numbered) == len(files):  # all or none are named as nnU-Net names channels
        for key in sorted(numbered):
            grouped.setdefault(key[:-5], []).extend(numbered[key])
    else:
        grouped = {key: paths[:1] for key, paths in files.items()}
    for key, paths in grouped.items():
        if len(paths) not in (1, channels):
            what = (
                f"{shown(key)} has {counted(len(paths), 'channel')} ({shown(os.path.basename(paths[-1]))} is the last), expected {channels}"
            )
            fix = 'name them in dataset.json: "channel_names": {"0": "T1", "1": "T2"}'
            raise UserError("VA-D002", what, where=str(folder), fix=fix)
    found = {key: Source(tuple(paths), channels) for key, paths in grouped.items()}
    for key in series:
        if key not in found and (source := folder_series(folder / key)) is not None:
            found[key] = source
    return found


def _label_maps(folder: Path, walker: Walker) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    maps = [path for path in walker.files(folder) if is_nifti(path)]
    return {without_ending(from_path(Path(os.path.relpath(path, folder)).as_posix())): path for path in maps}


def _listed(content: Mapping[str, Any], root: Path) -> set[str] | None:
    """Names of the training cases that dataset.json lists, if it lists any; they are looked for in imagesTr only."""
    training = content.get("training")
    if not isinstance(training, list) or not training:
        return None
    names = [entry.get("image") if isinstance(entry, dict) else entry for entry in training]
    if not all(isinstance(name, str) for name in names):
        fix = '"training": [{"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}, ...]'
        raise UserError("VA-D002", "the list of training in dataset.json has no names", where=str(root / "dataset.json"), fix=fix)
    keys = {without_ending(str(name).replace("\\", "/").rpartition("/")[2]) for name in names}
    return {key[:-5] if key[-5:] == "_0000" else key for key in keys}


def _id(path: str, root: Path) -> str:
    return from_path(Path(os.path.relpath(path, root)).as_posix())


def _wrong_layout(settings: VolumeDataConfig, root: Path, what: str) -> UserError:
    return UserError("VA-D002", f'data.root "{settings.root}": {what}', where="\n".join(_tree(root)), why=_ACCEPTED, fix=_FIX)


_FIX = "arrange the files in one of these layouts"


def _tree(root: Path, lines: int = 8) -> Sequence[str]:
    """Summarise the contents of root in a few lines."""
    if root.is_file():
        return [f"{shown(root.name)} (a file)"]
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    found = [f"{shown(root.name)}/" + ("" if entries else " (empty)")]
    for path in entries[:lines]:
        inside = list(path.iterdir()) if path.is_dir() else None
        volumes = sum(is_nifti(item.name) for item in inside or ())
        found.append(f"  {shown(path.name)}" + ("" if inside is None else f"/ ({len(inside)} entries, {volumes} of them NIfTI)"))
    return [*found, *([f"  ... {len(entries) - lines} more"] if len(entries) > lines else [])]
