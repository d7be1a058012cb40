"""Splits of labelled bags, from files or from folders of patches."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visionattn.data.bags.patches import PatchFeatures
from visionattn.data.bags.readers import Bag, Listed, Place, list_bags, read_bag
from visionattn.data.bags.recognise import SUFFIXES
from visionattn.data.bags.settings import BagDataConfig
from visionattn.data.readers import UnreadableFile
from visionattn.data.root import find_root
from visionattn.data.split_names import SPLITS, split_names
from visionattn.data.splits import Data, Note, split_folds, split_off
from visionattn.data.tables import CsvTable, csv_columns, read_csv
from visionattn.data.walk import IMAGE_SUFFIXES, Walker
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import from_path, shown, to_path, typed

_ID, _LABEL = "slide_id|slide|id|path|filename", "label|class"  # columns, the first that there is
_PATIENT = ("patient", "patient_id", "case_id")
_SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs")  # endings that tables may give to the names of slides
_NUMBER = re.compile(r"-?\d+")
_LISTED = 5

_ACCEPTED = """accepted layouts:
  ROOT/*.h5 (or .npz, .pt) and ROOT/labels.csv: columns slide_id,label[,patient][,split][,fold]
  ROOT/train/*.h5 and ROOT/val/*.h5, each file with its label
  ROOT/<class>/*.h5, or ROOT/train/<class>/*.h5 and ROOT/val/<class>/*.h5
  ROOT/<class>/<slide>/*.png: patches, also below train, val and test
  ROOT an .npz file: X (instances), bag (number of the bag of each), y (label of each bag)[, split][, fold]
  ROOT an .h5 file with a group per slide"""


@dataclass(frozen=True)
class BagSet:
    """One split.

    Attributes:
        labels: class of each bag, int64.
        groups: patients; None if unknown.
        folds: fold of each bag where the data give them; empty texts where not.
        patches: makes features of folders of patches.
    """

    name: str
    places: tuple[Place, ...]
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None
    folds: list[str]
    max_bytes: int
    patches: PatchFeatures

    @property
    def images(self) -> None:
        """Always None: a bag is not an image."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int], name: str | None = None) -> BagSet:
        """Select the bags at these positions."""
        return replace(
            self,
            name=name or self.name,
            places=tuple(self.places[index] for index in indices),
            labels=self.labels[np.asarray(indices, np.int64)],
            ids=[self.ids[index] for index in indices],
            groups=None if self.groups is None else [self.groups[index] for index in indices],
            folds=[self.folds[index] for index in indices],
        )

    def read(self, index: int) -> Bag:
        """Load a bag; patches that have no features yet get them.

        Raises:
            UnreadableFile: damaged, or of another form.
        """
        place = self.places[index]
        return self.patches.read(place) if place.patches else read_bag(place, max_bytes=self.max_bytes)

    def size(self, index: int) -> int:
        """Bytes of the file, or of the patches."""
        place = self.places[index]
        return sum(os.path.getsize(path) for path in place.patches or (place.path,))


@dataclass(frozen=True)
class BagData(Data[BagSet]):
    """Splits of labelled bags; `classes` are in the order of the model's outputs."""

    classes: list[str]

    def label_text(self, part: BagSet, index: int) -> str:
        return self.classes[part.labels[index]]

    def class_counts(self, part: BagSet) -> dict[str, int]:
        counts = np.bincount(part.labels, minlength=len(self.classes))
        return dict(zip(self.classes, map(int, counts), strict=True))


@dataclass(frozen=True)
class _Row:
    """A bag before its label is numbered."""

    place: Place
    name: str
    label: str
    split: str
    fold: str
    group: str


def load_bags(settings: BagDataConfig, patches: PatchFeatures, *, seed: int) -> BagData:
    """List and label the bags without loading them.

    Raises:
        UserError: VA-D001 to VA-D005, VA-D010, VA-D012.
    """
    root = find_root(settings)
    rows, notes = _rows(root, settings)
    parts = _by_split(rows, settings)
    if settings.fold is not None and "val" in parts:
        parts = {"train": [*parts.get("train", ()), *parts.pop("val")], **{k: v for k, v in parts.items() if k != "train"}}
    if "train" not in parts:
        raise _wrong_layout(root, f"no bags of the split {settings.train}")
    held_out = "val" not in parts
    if held_out and settings.val_fraction is None and settings.fold is None:
        folds = len({row.fold for row in parts["train"]} - {""})
        own = f" (the data have {folds} folds)" if folds > 1 else ""
        fix = f"visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)\nvisionattn train --folds {max(folds, 5)} ...{own}"
        raise UserError("VA-D003", f'no validation split in data.root "{settings.root}"', fix=fix)
    if not held_out and settings.val_fraction is not None:
        notes.append(Note("warning", "VA-D003", f"data.val_fraction is not used: there is a validation split ({settings.val})"))
    classes = _classes(parts["train"], settings)
    sets = {split: _numbered(split, part, classes, settings, patches, root) for split, part in parts.items()}
    if settings.fold is not None:
        sets["train"], sets["val"], note = _fold(sets["train"], settings.fold, seed)
        notes.append(note)
    elif held_out and settings.val_fraction is not None:
        train = sets["train"]
        sets["train"], sets["val"] = split_off(train, train.labels, train.groups, settings.val_fraction, seed, unit="bag")
        notes.append(Note("info", "", f"val: {len(sets['val']):,} bags held out of train (data.val_fraction, seed {seed})"))
    data = BagData(from_path(root.resolve().stem), sets["train"], sets["val"], sets.get("test"), notes, classes)
    notes += [*_missing_classes(data), *_shared_patients(data)]
    return data


def load_bag_split(settings: BagDataConfig, patches: PatchFeatures, split: str, classes: Sequence[str], *, seed: int) -> BagSet:
    """One split, labelled with the classes of a run; data without splits are used as a whole.

    Raises:
        UserError: VA-M003, classes that the run does not have; VA-D001, VA-D002 as in `load_bags`.
    """
    if split in ("train", "val") and (settings.fold is not None or settings.val_fraction is not None):
        data = load_bags(settings.model_copy(update={"classes": list(classes)}), patches, seed=seed)
        return data.train if split == "train" else data.val
    root = find_root(settings)
    rows, _ = _rows(root, settings)
    parts = _by_split(rows, settings)
    part = parts.get(split, parts["train"] if set(parts) == {"train"} and not any(row.split for row in rows) else None)
    if part is None:
        raise UserError("VA-D002", f'no split "{split}" in {root}', why=f"found: {', '.join(parts)}", fix=f"--split {next(iter(parts))}")
    return _numbered(split, part, classes, settings, patches, root, known=True)


def folders_of_patches(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Images by the folder that they are in: each is a bag of patches."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        found.setdefault(path.parent, []).append(path)
    return found


# ---------------------------------------------------------------- list


def _rows(root: Path, settings: BagDataConfig) -> tuple[list[_Row], list[Note]]:
    """All bags with their labels, and notes from listing them."""
    walker = Walker(SUFFIXES, settings.exclude)
    files = [str(root)] if root.is_file() else walker.files(root)
    notes: list[Note] = []
    above = root.parent if root.is_file() else root
    found: list[tuple[Listed, tuple[str, ...]]] = []  # bags, and the folders that they are in
    if files:
        table = _table(above if root.is_dir() else None, settings)
        for path in map(Path, files):
            try:
                listed = list_bags(path)
            except UnreadableFile as error:
                if settings.on_error == "stop":
                    fix = "repair or remove it, or data.on_error=skip"
                    raise UserError(error.code, f"{shown(path.name)}: {shown(error.reason)}", where=str(path), fix=fix) from error
                notes.append(Note("warning", error.code, f"{shown(path.name)} is left out: {shown(error.reason)}"))
                continue
            folders = tuple(map(from_path, path.relative_to(above).parts[:-1]))
            found += [(item, (*folders, *([from_path(path.stem)] * (len(listed) > 1 and root.is_dir())))) for item in listed]
    else:
        images = Walker(IMAGE_SUFFIXES, settings.exclude)
        paths = images.files(root) if root.is_dir() else []
        table = _table(root, settings) if paths else None
        for folder, inside in folders_of_patches(list(map(Path, paths))).items():
            names = tuple(map(from_path, folder.relative_to(root).parts))
            if names:
                found.append((Listed(Place(str(folder), patches=tuple(map(str, inside))), names[-1]), names[:-1]))
        walker = images
    if not found:
        raise _wrong_layout(root, "no bags")
    rows = _labelled(found, table, settings, root, notes)
    notes += [Note("info", "", line) for line in walker.report()] if root.is_dir() and not table else []
    return rows, notes


def _table(root: Path | None, settings: BagDataConfig) -> CsvTable | None:
    """The table of labels: data.labels, or the only one in the folder.

    Raises:
        UserError: VA-D001, VA-D002.
    """
    if settings.labels:
        path = Path(to_path(settings.labels)).expanduser()
        if not path.is_file():
            raise UserError("VA-D001", f'data.labels "{settings.labels}" not found', fix="a CSV file with columns slide_id,label")
        return read_csv(path, _columns(path))
    if root is None:
        return None
    tables = [path for path in sorted(root.glob("*.csv")) if _has_labels(path)]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UserError("VA-D002", f"several tables of labels: {shown(names)}", where=str(root), fix=typed(f"data.labels={tables[0]}"))
    return read_csv(tables[0], _columns(tables[0])) if tables else None


def _columns(path: Path) -> list[str]:
    """The columns of slides and of labels, under the first of their names, for `read_csv`."""
    there = csv_columns(path, (_ID, _LABEL))
    every = [names.split("|") for names in (_ID, _LABEL)]
    return [f"{names[0]}|{next((name for name in names if name in there), names[0])}" for names in every]


def _has_labels(path: Path) -> bool:
    columns = csv_columns(path, (_ID, _LABEL))
    return all(set(names.split("|")) & set(columns) for names in (_ID, _LABEL))


def _labelled(
    found: Sequence[tuple[Listed, tuple[str, ...]]], table: CsvTable | None, settings: BagDataConfig, root: Path, notes: list[Note]
) -> list[_Row]:
    """Give each bag its label, split and patient: of the table, of its file, or of its folder.

    Raises:
        UserError: VA-D012, bags without a label; VA-D002, bags of the same name.
    """
    rows, missing, used = [], [], set()
    given = _by_slide(table) if table else {}
    names = _split_names(settings)
    for item, folders in found:
        split = next((names[part] for part in folders[:1] if part in names), "")
        inner = folders[1:] if split else folders
        name = "/".join((*folders, item.name))
        key = next((key for key in (name, item.name, *(item.name + end for end in (*sorted(SUFFIXES), *_SLIDES))) if key in given), None)
        row = given.get(key or "", {})
        used.add(key)
        label = row.get("label") or item.label or (inner[-1] if inner and not table else "")
        if not label:
            missing.append(name)
        rows.append(
            _Row(
                item.place, name, label, row.get("split") or item.split or split, row.get("fold") or item.fold, _group(name, row, settings)
            )
        )
    if missing:
        what = f"no label for {len(missing):,} of {counted(len(found), 'bag')}: {shown(', '.join(missing[:_LISTED]))}"
        where = str(table.path) if table else str(root)
        raise UserError("VA-D012", what, where=where, fix="list them in labels.csv (slide_id,label), or remove them")
    unused = [name for name in given if name not in used]
    if unused:
        text = f"{counted(len(unused), 'row')} of {table.path.name if table else ''} without a bag: {shown(', '.join(unused[:_LISTED]))}"
        notes.append(Note("warning", "VA-D001", text))
    twice = [name for name, count in Counter(row.name for row in rows).items() if count > 1]
    if twice:
        raise UserError("VA-D002", f"several files of the bag {shown(twice[0])}", where=str(root), fix="exclude one kind: data.exclude")
    return rows


def _by_slide(table: CsvTable) -> dict[str, dict[str, str]]:
    """Rows of a table by their slide.

    Raises:
        UserError: VA-D012, a slide with two labels.
    """
    found: dict[str, dict[str, str]] = {}
    for position, row in enumerate(table.rows):
        name = row["slide_id"]
        if found.setdefault(name, row)["label"] != row["label"]:
            what = f"two labels of {shown(name)}: {shown(found[name]['label'])} and {shown(row['label'])}"
            raise UserError("VA-D012", what, where=table.where([position]), fix="keep one of them")
    return found


def _group(name: str, row: dict[str, str], settings: BagDataConfig) -> str:
    """The patient of a bag, or what data.group_by asks for."""
    by = settings.group_by
    if not by or by in row:
        return row.get(by or next((name for name in _PATIENT if name in row), ""), "")
    if by.isidentifier():
        raise UserError("VA-C002", f'data.group_by: no column "{by}"', fix=f"a column of the labels: {', '.join(row)}")
    try:
        match = re.search(by, name)
    except re.error as error:
        raise UserError("VA-C002", f'data.group_by: "{by}" is not a regular expression: {error}') from error
    return name if match is None else match[1 if match.re.groups else 0] or name


def _split_names(settings: BagDataConfig) -> dict[str, str]:
    """Splits by the names that they may have."""
    return {name: split for split, names in split_names(settings).items() for name in names}


def _by_split(rows: Sequence[_Row], settings: BagDataConfig) -> dict[str, list[_Row]]:
    """The bags of each split; all are of train if none names one.

    Raises:
        UserError: VA-D002, a name that is not one of a split.
    """
    names = _split_names(settings)
    parts: dict[str, list[_Row]] = {}
    for row in rows:
        split = names.get(row.split, row.split if row.split in SPLITS else "")
        if row.split and not split:
            what = f'"{shown(row.split)}" is not a split: {shown(row.name)}'
            raise UserError("VA-D002", what, fix=f"use {', '.join(names)}, or name them with data.train, data.val, data.test")
        parts.setdefault(split or "train", []).append(row)
    return parts


def _wrong_layout(root: Path, what: str) -> UserError:
    return UserError("VA-D002", f'data.root "{root}": {what}', why=_ACCEPTED, fix="arrange the files in one of these layouts")


# ---------------------------------------------------------------- number


def _classes(train: Sequence[_Row], settings: BagDataConfig) -> list[str]:
    if settings.classes != "auto":
        return list(settings.classes)
    names = {row.label for row in train}
    if all(map(_NUMBER.fullmatch, names)):
        return sorted(names, key=int)
    return sorted(names)


def _numbered(
    split: str,
    rows: Sequence[_Row],
    classes: Sequence[str],
    settings: BagDataConfig,
    patches: PatchFeatures,
    root: Path,
    *,
    known: bool = False,
) -> BagSet:
    """Replace labels by class numbers: names of classes, or, of named classes, their numbers.

    Raises:
        UserError: VA-D004, or VA-M003 with `known`: labels that are not classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if not any(_NUMBER.fullmatch(name) for name in classes):
        numbers |= {str(number): number for number in range(len(classes))}
    outside = Counter(row.label for row in rows if row.label not in numbers)
    if outside:
        found = ", ".join(f"{shown(name)}: {counted(count, 'bag')}" for name, count in outside.most_common(_LISTED))
        why = f"the classes are {shown(', '.join(classes[:8]))}"
        if known:
            raise UserError("VA-M003", f"the data have classes that the run does not have: {found}", where=str(root), why=why, exit_code=4)
        raise UserError(
            "VA-D004", f"{split} has labels that are not classes: {found}", why=why, fix="add training bags, or list data.classes"
        )
    groups = [row.group or f"bag {row.name}" for row in rows] if any(row.group for row in rows) else None
    return BagSet(
        split,
        tuple(row.place for row in rows),
        np.array([numbers[row.label] for row in rows], np.int64),
        [row.name for row in rows],
        groups,
        [row.fold for row in rows],
        settings.max_bytes,
        patches,
    )


def _fold(whole: BagSet, fold: tuple[int, int], seed: int) -> tuple[BagSet, BagSet, Note]:
    """Bags outside of a fold and in it: of the data's own folds if they have as many, else drawn by class and patient."""
    number, count = fold
    own = sorted(set(whole.folds), key=lambda name: (len(name), name))
    if "" not in own and len(own) == count:
        held = [name == own[number - 1] for name in whole.folds]
        train = whole.take([index for index, out in enumerate(held) if not out])
        val = whole.take([index for index, out in enumerate(held) if out], "val")
        how = "the data's own"
    else:
        train, val = split_folds(whole, whole.labels, whole.groups, fold, seed, unit="bag")
        how = f"drawn with seed {seed}"
    return train, val, Note("info", "", f"val: fold {number} of {count}, {len(val):,} bags (data.fold, {how}); train: the other folds")


def _missing_classes(data: BagData) -> list[Note]:
    """Report classes without bags in a split."""
    notes = []
    for part in data.sets:
        effect = "cannot be learned" if part.name == "train" else 'recall will be "n/a"'
        notes += [
            Note("warning", "VA-D004", f'{part.name} has no bags of class "{shown(name)}": {effect}')
            for name, count in data.class_counts(part).items()
            if not count
        ]
    return notes


def _shared_patients(data: BagData) -> list[Note]:
    """Report patients with bags in training and in another split."""
    notes = []
    seen = set(data.train.groups or ())
    for part in data.sets[1:]:
        both = sorted(seen & set(part.groups or ()))
        if both:
            text = f"{counted(len(both), 'patient')} with bags in both train and {part.name}: {shown(', '.join(both[:_LISTED]))}"
            notes.append(Note("warning", "VA-D006", text))
    return notes
