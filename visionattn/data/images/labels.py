"""Load numbered classes and labelled splits from data.root."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np

from visionattn.data.images.layouts import (
    Layout,
    Table,
    check_settings,
    data_name,
    find_layout,
    no_validation_split,
    read_tables,
    refuse_labels,
    require_distinct,
    wrong_layout,
)
from visionattn.data.images.sets import ImageSet, LabelledData
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.masks.recognise import mask_suffix_among
from visionattn.data.readers import is_mask_of
from visionattn.data.root import find_root
from visionattn.data.sources import FileImages, join_images
from visionattn.data.splits import Note, fold_note, histogram, split_folds, split_off
from visionattn.data.tables import read_lines
from visionattn.errors import UserError
from visionattn.names import shown, to_path, typed


def load_data(settings: LabelDataConfig, *, seed: int, in_chans: int) -> LabelledData:
    """List and label the images without decoding them.

    Args:
        seed: seed of the hold-out by data.val_fraction.
        in_chans: channels that the images are loaded with.

    Raises:
        UserError: VA-D001 to VA-D005, VA-D012, VA-C002.
    """
    check_settings(settings)
    layout = find_layout(settings)
    tables, notes = _read_named(layout, settings, in_chans)
    tables = tables if settings.fold is None else _pooled(tables, notes)
    if "train" not in tables:
        raise wrong_layout(settings, layout.root, f"no images of the split {settings.train}")
    held_out = "val" not in tables
    if held_out and settings.val_fraction is None and settings.fold is None:
        raise no_validation_split(settings)
    if not held_out and settings.val_fraction is not None:
        notes.append(Note("warning", "VA-D003", f"data.val_fraction is not used: there is a validation split ({settings.val})"))
    if layout.format == "folders" and settings.format == "auto":
        inner = os.path.relpath(layout.root, find_root(settings))
        refuse_masks(tables["train"], unsplit=layout.unsplit, prefix="" if inner == "." else f"{inner}/")
    classes = _class_names(tables["train"], layout, settings)
    if len(classes) > settings.max_classes:
        what = f"{len(classes):,} classes, data.max_classes is {settings.max_classes:,}"
        why = f"classes: {', '.join(name[:40] for name in classes[:3])}, ..."
        raise UserError("VA-D012", what, where=str(layout.root), why=why, fix="labels that are ids or paths are no classes")
    require_distinct(classes)
    notes += _check_classes(tables, classes, given=_given_classes(layout, settings) is not None)
    parts = {split: _encode(split, table, classes) for split, table in tables.items()}
    if settings.fold is not None:
        parts["train"], parts["val"] = _held_out(parts["train"], settings, seed)
        notes.append(fold_note(len(parts["val"]), settings.fold, seed))
    elif held_out and settings.val_fraction is not None:
        parts["train"], parts["val"] = _held_out(parts["train"], settings, seed)
        notes.append(Note("info", "", f"val: {len(parts['val']):,} images held out of train (data.val_fraction, seed {seed})"))
    notes += _missing_classes(parts, tables, classes)
    return LabelledData(data_name(settings), parts["train"], parts["val"], parts.get("test"), notes, classes)


def load_split(settings: LabelDataConfig, split: str, classes: Sequence[str], in_chans: int, *, seed: int = 0) -> ImageSet:
    """Load one split, labelled with the classes of a run, for evaluation.

    A root without splits is used as a whole, unless data.val_fraction or data.fold is set and `split` is train or val: then the
    images held out with `seed` are selected again.

    Raises:
        UserError: VA-M003 for classes that are unknown to the run; VA-D001, VA-D002 as in load_data.
    """
    layout, tables = _tables(settings, in_chans)
    return _part(layout, tables, settings, split, classes, seed)


def load_own_split(settings: LabelDataConfig, split: str, in_chans: int, *, seed: int = 0) -> tuple[ImageSet, list[str]]:
    """Load one split as `load_split` does, labelled with the classes of the data, which need no training split.

    Raises:
        UserError: VA-D001, VA-D002, VA-D012 as in load_data.
    """
    layout, tables = _tables(settings, in_chans)
    first = tables.get("train", next(iter(tables.values())))
    if not isinstance(first.labels, np.ndarray):
        first = replace(first, labels=[names for table in tables.values() for names in table.labels])
    classes = _class_names(first, layout, settings)
    require_distinct(classes)
    return _part(layout, tables, settings, split, classes, seed), classes


def _tables(settings: LabelDataConfig, in_chans: int) -> tuple[Layout, dict[str, Table]]:
    """The layout and its tables, pooled for folds."""
    check_settings(settings)
    layout = find_layout(settings)
    tables, notes = _read_named(layout, settings, in_chans)
    return layout, tables if settings.fold is None else _pooled(tables, notes)


def _part(layout: Layout, tables: dict[str, Table], settings: LabelDataConfig, split: str, classes: Sequence[str], seed: int) -> ImageSet:
    """One split of the tables, labelled with the given classes."""
    drawn = settings.val_fraction is not None or settings.fold is not None
    if split in ("train", "val") and "val" not in tables and drawn and "train" in tables:
        train = _encode("train", _known_only(tables["train"], classes, layout.root), classes)
        return _held_out(train, settings, seed)[0 if split == "train" else 1]
    table = tables.get(split, tables.get("train") if layout.unsplit and settings.fold is None else None)
    if table is None:
        raise UserError(
            "VA-D002", f'no split "{split}" in {layout.root}', why=f"found: {', '.join(tables)}", fix=f"--split {next(iter(tables))}"
        )
    return _encode(split, _known_only(table, classes, layout.root), classes)


# ---------------------------------------------------------------- masks among the images

_FEW_CLASSES = 4  # as many as folders of images, of masks and the like
_COMPARED = 5  # files of one name in two class folders


def refuse_masks(train: Table, *, unsplit: bool, prefix: str = "") -> None:
    """Stop where a class folder seems to hold the masks of the images in another, or masks beside images.

    Args:
        unsplit: the class folders are not below folders of splits.
        prefix: path from data.root to the folder they are in, with a slash at its end.

    Raises:
        UserError: VA-D002.
    """
    assert isinstance(train.images, FileImages)
    by_class: dict[str, dict[str, str]] = {}
    for path, (name,) in zip(train.images.paths, train.labels, strict=True):
        by_class.setdefault(name, {})[os.path.basename(path)] = path
    for name, files in by_class.items():
        if suffix := mask_suffix_among(files):
            place = f"{prefix}{'' if unsplit else '{split}'}" or "."
            pair = " ".join(map(typed, (f"data.images={place}", f"data.masks={place}", f"data.mask_suffix={suffix}")))
            raise UserError(
                "VA-D002",
                f'masks beside images: the class folder "{name}" has files that end in {suffix}',
                fix=f"task=segment {pair}\nor, to classify the images: \"data.exclude=['.*','*{suffix}']\"",
            )
    if not 2 <= len(by_class) <= _FEW_CLASSES:
        return
    stems = {name: {os.path.splitext(file)[0]: path for file, path in files.items()} for name, files in by_class.items()}
    for (images, photographs), (masks, labels) in permutations(stems.items(), 2):
        common = sorted(photographs.keys() & labels.keys())
        if 10 * len(common) >= 9 * len(labels) and all(
            is_mask_of(Path(labels[stem]), Path(photographs[stem]), max_bytes=train.images.settings.max_bytes)
            for stem in common[:_COMPARED]
        ):
            above = f"{prefix}{'' if unsplit else '{split}/'}"
            pair = " ".join(map(typed, (f"data.images={above}{images}", f"data.masks={above}{masks}")))
            raise UserError(
                "VA-D002",
                f'images with masks? The folders "{images}" and "{masks}" have files of the same names',
                where=f"{photographs[common[0]]}\n{labels[common[0]]}",
                why=f'the files in "{masks}" have few values, as masks have',
                fix=f"task=segment {pair}\nor, if they are classes: data.format=folders",
            )


# ---------------------------------------------------------------- classes and labels


def _read_named(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    """Read the tables; where shards number the given classes, replace the numbers by names."""
    tables, notes = read_tables(layout, settings, in_chans)
    given = _given_classes(layout, settings) if layout.format in ("webdataset", "hf") else None
    if given is None:
        return tables, notes
    names = {str(number): (name,) for number, name in enumerate(given)} | {name: (name,) for name in given}
    return {split: replace(table, labels=[names.get(label[0], label) for label in table.labels]) for split, table in tables.items()}, notes


def _given_classes(layout: Layout, settings: LabelDataConfig) -> list[str] | None:
    """Class names from data.classes, or from classes.txt in the root folder."""
    if isinstance(settings.classes, list):
        names = settings.classes
    elif settings.classes != "auto":
        path = Path(to_path(settings.classes)).expanduser()
        if not path.is_file():
            raise UserError("VA-D001", f'data.classes "{settings.classes}" not found', fix="auto, a list of names, or a text file")
        names = read_lines(path)
    elif layout.format in ("folders", "csv", "webdataset", "hf") and (layout.root / "classes.txt").is_file():
        names = read_lines(layout.root / "classes.txt")
    else:
        return None
    require_distinct(names)
    return names


def _class_names(train: Table, layout: Layout, settings: LabelDataConfig) -> list[str]:
    given = _given_classes(layout, settings) or train.classes
    if given is not None:
        return given
    if isinstance(train.labels, np.ndarray):
        if train.labels.ndim == 2:
            return [str(number) for number in range(train.labels.shape[1])]
        values, counts = np.unique(train.labels, return_counts=True)
        outside = {str(value): int(count) for value, count in zip(values, counts, strict=True) if not 0 <= value < len(values)}
        refuse_labels(outside, settings.train, f"0..{len(values) - 1}, as there are {len(values)} different ones")
        return [str(number) for number in range(len(values))]
    names = {name for labels in train.labels for name in labels} | set(train.empty)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name)) if numbers else sorted(names)


def _outside(table: Table, classes: Sequence[str]) -> dict[str, int]:
    """Count the images of each label that is not a class."""
    if isinstance(table.labels, np.ndarray):
        if table.labels.ndim == 2:
            extra = table.labels[:, len(classes) :].sum(0)
            return {str(len(classes) + index): int(count) for index, count in enumerate(extra)}
        values, counts = np.unique(table.labels, return_counts=True)
        return {str(v): int(count) for v, count in zip(values, counts, strict=True) if not 0 <= v < len(classes)}
    known = set(classes)
    return dict(Counter(name for labels in table.labels for name in labels if name not in known).most_common())


def _check_classes(tables: dict[str, Table], classes: Sequence[str], *, given: bool) -> list[Note]:
    """Stop at labels that are not classes and at empty class folders in train; warn about empty ones elsewhere."""
    notes = []
    for split, table in tables.items():
        outside = _outside(table, classes)
        if outside and (given or split == "train" or isinstance(table.labels, np.ndarray) or "" in outside):
            first = shown(", ".join(classes[:8])) + (", ..." if len(classes) > 8 else "")
            refuse_labels(outside, split, f"one of {len(classes)} classes: {first}")
        if outside:
            raise UserError(
                "VA-D004",
                f"{split} has classes without training images: {histogram(outside)}",
                why="the classes are those of the training set",
                fix="add training images, remove them, or list all classes in data.classes or classes.txt",
            )
        if table.empty and split == "train":
            raise UserError(
                "VA-D005",
                shown(f"empty class folders in train: {', '.join(table.empty)}"),
                fix="add images or remove the folders (in all splits)",
            )
        notes += [Note("warning", "VA-D005", f'{split} has an empty folder for class "{shown(name)}"') for name in table.empty]
    return notes


def _missing_classes(parts: dict[str, ImageSet], tables: dict[str, Table], classes: list[str]) -> list[Note]:
    notes = []
    in_train = parts["train"].class_counts(len(classes))
    for name, count in zip(classes, in_train, strict=True):
        if not count:
            notes.append(Note("warning", "VA-D004", f'train has no images of class "{shown(name)}": it cannot be learned'))
    for split in ("val", "test"):
        if split not in parts:
            continue
        empty = tables[split].empty if split in tables else ()
        for name, count, train_count in zip(classes, parts[split].class_counts(len(classes)), in_train, strict=True):
            if not count and name not in empty:
                text = f'{split} has no images of class "{shown(name)}" ({train_count:,} in train): its recall will be "n/a"'
                notes.append(Note("warning", "VA-D004", text))
    return notes


def _known_only(table: Table, classes: Sequence[str], root: Path) -> Table:
    outside = _outside(table, classes)
    if outside:
        raise UserError(
            "VA-M003",
            f"the data has classes that the run does not have: {histogram(outside)}",
            where=str(root),
            why=f"the run has {len(classes)} classes: {shown(', '.join(classes[:8]))}{', ...' * (len(classes) > 8)}",
            exit_code=4,
        )
    return table


def _encode(split: str, table: Table, classes: Sequence[str]) -> ImageSet:
    """Replace labels by class numbers; all labels must be classes."""
    if isinstance(table.labels, np.ndarray) and table.labels.ndim == 1:
        labels = table.labels
    elif isinstance(table.labels, np.ndarray):
        labels = np.zeros((len(table.labels), len(classes)), np.float32)
        width = min(table.labels.shape[1], len(classes))
        labels[:, :width] = table.labels[:, :width]
    else:
        number = {name: index for index, name in enumerate(classes)}
        if table.multi_label:
            labels = np.zeros((len(table.ids), len(classes)), np.float32)
            for row, names in enumerate(table.labels):
                labels[row, [number[name] for name in names]] = 1
        else:
            labels = np.array([number[names[0]] for names in table.labels], np.int64)
    return ImageSet(split, table.images, labels, table.ids, table.groups)


def _held_out(train: ImageSet, settings: LabelDataConfig, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and validation images by data.fold, or by data.val_fraction."""
    if settings.fold is not None:
        return split_folds(train, train.labels, train.groups, settings.fold, seed)
    assert settings.val_fraction is not None
    return split_off(train, train.labels, train.groups, settings.val_fraction, seed)


def _pooled(tables: dict[str, Table], notes: list[Note]) -> dict[str, Table]:
    """The tables with the validation images among those of training, each once: folds are made of both."""
    if not {"train", "val"} <= tables.keys():
        return tables
    train, val = tables["train"], tables["val"]
    known = set(train.ids)
    new = [index for index, name in enumerate(val.ids) if name not in known]
    if len(new) < len(val.ids):
        notes.append(Note("warning", "VA-D006", f"{len(val.ids) - len(new):,} images are listed in train and val: each is in one fold"))
    if isinstance(train.labels, np.ndarray) and isinstance(val.labels, np.ndarray):
        labels: list[tuple[str, ...]] | np.ndarray = _stacked(train.labels, val.labels[new])
        present: set[str] = set()
    else:
        labels = [*train.labels, *(val.labels[index] for index in new)]
        present = {name for names in labels for name in names}
    groups = None if train.groups is None or val.groups is None else [*train.groups, *(val.groups[index] for index in new)]
    pool = replace(
        train,
        images=join_images(train.images, val.images.take(new)),
        labels=labels,
        ids=[*train.ids, *(val.ids[index] for index in new)],
        groups=groups,
        empty=tuple(name for name in dict.fromkeys([*train.empty, *val.empty]) if name not in present),
    )
    return {"train": pool, **{split: table for split, table in tables.items() if split not in ("train", "val")}}


def _stacked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Labels of two tables; of zeros and ones, the narrower has no image of the last classes."""
    if first.ndim == 2:
        width = max(first.shape[1], second.shape[1])
        first, second = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (first, second))
    return np.concatenate([first, second])
