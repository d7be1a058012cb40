"""Read the accepted layouts of data.root into tables of images with their original labels."""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionattn.config.schema import DataConfig
from visionattn.data.images.hub import PARQUET_SUFFIXES, download_parquet, is_saved, open_splits, read_split
from visionattn.data.images.settings import ImageDataConfig, LabelDataConfig
from visionattn.data.images.shards import TAR_SUFFIXES, find_shards, read_shards
from visionattn.data.root import find_root
from visionattn.data.sources import ArrayImages, FileImages, Images, TorchvisionImages
from visionattn.data.split_names import SPLITS, split_names
from visionattn.data.splits import Note, histogram
from visionattn.data.stacks import MOST_CHANNELS
from visionattn.data.tables import CsvTable, csv_columns, read_csv
from visionattn.data.walk import IMAGE_SUFFIXES, Walker, is_image_name
from visionattn.errors import UserError, did_you_mean
from visionattn.files import counted
from visionattn.names import from_path, shown, to_path, typed

# How other names of splits begin.
_BEGINNINGS = {"train": ("train", "trn"), "val": ("val", "dev", "eval"), "test": ("test", "tst")}
CSV_COLUMNS = ("path", "label")
_LONGEST_NAME = 255  # characters of a class name, as of a folder

_ACCEPTED = """accepted layouts:
  ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg (and test)
  ROOT/<class>/*.jpg, with data.val_fraction=0.2
  ROOT/train-*.tar and ROOT/val-*.tar, or ROOT/train/*.tar and ROOT/val/*.tar: WebDataset shards
  ROOT/train-*.parquet and ROOT/validation-*.parquet, or ROOT written by save_to_disk: Hugging Face
  ROOT/train.csv and ROOT/val.csv, or ROOT a .csv file: columns path,label[,split]
  ROOT an .npz file: train_images, train_labels, val_images, val_labels (and test_)"""


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """A recognised layout.

    `parts` gives the folder or file of each split, or the name of its shards; `unsplit` means one set of images without splits.
    """

    format: Literal["folders", "csv", "npz", "webdataset", "hf", "digits", "torchvision"]
    root: Path
    parts: dict[str, Path]
    unsplit: bool


def find_layout(settings: LabelDataConfig) -> Layout:
    """Identify the format of data.root from its settings or its files.

    Raises:
        UserError: VA-D001, root missing; VA-D002, none of the accepted layouts.
    """
    if settings.format == "digits":
        return Layout("digits", Path(), {}, False)
    if settings.format == "torchvision" and settings.root:
        return Layout("torchvision", Path(to_path(settings.root)).expanduser(), {}, False)
    if settings.on_hub and settings.root:
        raise UserError("VA-C002", "data.root and data.dataset both name the data", fix='data.root="" or data.dataset=""')
    root = download_parquet(settings.dataset) if settings.on_hub else find_root(settings, otherwise="data.format=digits needs no files")
    form = settings.format if settings.format != "auto" else _guess(root, settings)
    if form == "npz" and root.is_file():
        return Layout("npz", root, {"train": root}, False)
    if form == "csv" and root.is_file():
        return Layout("csv", root.parent, {"train": root}, "split" not in csv_columns(root, CSV_COLUMNS))
    if form == "csv" and root.is_dir():
        parts = _parts(root, settings, ".csv")
        if parts:
            return Layout("csv", root, parts, False)
    if form == "folders" and root.is_dir():
        parts = _parts(root, settings, "")
        if "train" in parts or any(class_folders(part, settings) for part in parts.values()):
            return Layout("folders", root, parts, False)
        if _has_class_folders(root, settings):
            return Layout("folders", root, {"train": root}, True)
    if form == "webdataset" and (parts := _shards(root, settings, TAR_SUFFIXES)):
        return Layout("webdataset", root, parts, False)
    if form == "hf" and is_saved(root):
        return Layout("hf", root, {}, (root / "state.json").is_file())
    if form == "hf" and (parts := _shards(root, settings, PARQUET_SUFFIXES)):
        return Layout("hf", root, parts, False)
    nested = _archive_folders(root, settings) if settings.format in ("auto", "folders") else []
    if len(nested) == 1:
        return find_layout(settings.model_copy(update={"root": str(nested[0])}))
    raise wrong_layout(settings, root, "none of the accepted layouts")


def _archive_folders(root: Path, settings: LabelDataConfig) -> list[Path]:
    """Folders in root that contain splits: archives often unpack into a folder inside it."""
    return [path for path in class_folders(root, settings) if "train" in _parts(path, settings, "")] if root.is_dir() else []


def _guess(root: Path, settings: LabelDataConfig) -> str:
    if root.is_file():
        return root.suffix.lower().removeprefix(".")
    if is_saved(root):
        return "hf"
    folders = _parts(root, settings, "")
    if not folders and "train" in _parts(root, settings, ".csv"):
        return "csv"
    if any(class_folders(folder, settings) for folder in folders.values()):
        return "folders"
    if _shards(root, settings, TAR_SUFFIXES):
        return "webdataset"
    return "hf" if _shards(root, settings, PARQUET_SUFFIXES) else "folders"


def _parts(root: Path, settings: LabelDataConfig, suffix: str) -> dict[str, Path]:
    """Find the folders (empty suffix) or files of the existing splits."""
    found = {}
    for split, names in split_names(settings).items():
        for name in names:
            path = root / f"{name}{suffix}"
            if path.is_file() if suffix else path.is_dir():
                found[split] = path
                break
    return found


def _shards(root: Path, settings: LabelDataConfig, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Find the names of the splits that have shards, in root or in its folder `data`, where the hub keeps them."""
    found = {}
    for split, names in split_names(settings).items():
        places = [name for known in names if known for name in (known, f"data/{known}")]
        name = next((name for name in places if find_shards(root, name, suffixes)), None)
        if name is not None:
            found[split] = Path(name)
    return found


def class_folders(folder: Path, settings: ImageDataConfig) -> list[Path]:
    return image_walker(settings).folders(folder)


def image_walker(settings: ImageDataConfig) -> Walker:
    """A walker that lists images and skips data.exclude."""
    return Walker(IMAGE_SUFFIXES, settings.exclude)


def _has_class_folders(root: Path, settings: LabelDataConfig) -> bool:
    """Whether a folder in root contains images directly; otherwise the folders may be splits under other names."""
    return any(is_image(path.name, settings) for folder in class_folders(root, settings) for path in folder.iterdir())


def is_image(name: str, settings: ImageDataConfig) -> bool:
    return is_image_name(name) and not image_walker(settings).excludes(name)


def data_name(settings: LabelDataConfig) -> str:
    if settings.format == "digits":
        return "digits"
    if settings.on_hub:
        return settings.dataset.partition("@")[0].rpartition("/")[2]
    return settings.dataset.lower() if settings.format == "torchvision" else folder_name(settings)


def folder_name(settings: ImageDataConfig) -> str:
    """Last part of data.root."""
    return from_path(Path(to_path(settings.root)).expanduser().resolve().stem)


def wrong_layout(settings: LabelDataConfig, root: Path, what: str) -> UserError:
    inside = [path for path in root.iterdir() if path.suffix.lower() in (".npz", ".csv")] if root.is_dir() else []
    nested = class_folders(root, settings) if root.is_dir() else []
    inside += _archive_folders(root, settings)
    fix = "arrange the files in one of these layouts"
    if len(inside) == 1:
        fix = typed(f"data.root={inside[0]}")
    elif any(_has_class_folders(path, settings) for path in nested):
        fix = f"name the splits: {_named_splits([path.name for path in nested])}"
    place = f'data.dataset "{settings.dataset}"' if settings.on_hub else f'data.root "{settings.root}"'
    return UserError("VA-D002", f"{place}: {what}", where="\n".join(tree(root, settings)), why=_ACCEPTED, fix=fix)


def _named_splits(names: list[str]) -> str:
    """The settings for folders of splits under other names, as far as these tell which is which."""
    found = {}
    for split, beginnings in _BEGINNINGS.items():
        known = [name for name in names if name.lower().startswith(beginnings)]
        if len(known) == 1:
            found[split] = typed(f"data.{split}={known[0]}")
    if "train" not in found:
        return f"data.train=NAME data.val=NAME data.test=NAME, from {shown(', '.join(names[:5]))}"
    return " ".join(found.values())


def tree(root: Path, settings: ImageDataConfig, lines: int = 8) -> list[str]:
    """Summarise the contents of root in a few lines."""
    if root.is_file():
        return [f"{shown(root.name)} ({root.stat().st_size:,} bytes)"]
    walker = image_walker(settings)
    entries = sorted((path for path in root.iterdir() if not walker.excludes(path.name)), key=lambda path: (not path.is_dir(), path.name))
    found = [f"{shown(root.name)}/" + ("" if entries else " (empty)")]
    for path in entries[:lines]:
        if not path.is_dir():
            found.append(f"  {shown(path.name)}")
            continue
        inside = list(path.iterdir())
        images = sum(is_image(item.name, settings) for item in inside)
        found.append(f"  {shown(path.name)}/ ({sum(item.is_dir() for item in inside)} folders, {images} images)")
    return [*found, *([f"  ... {len(entries) - lines} more"] if len(entries) > lines else [])]


def no_validation_split(settings: ImageDataConfig) -> UserError:
    names = " or ".join(split_names(settings)["val"])
    return UserError(
        "VA-D003",
        f'no validation split in data.root "{settings.root}"',
        why=f"looked for {names}; images are held out of the training set only on request",
        fix="visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)",
    )


def check_settings(settings: ImageDataConfig) -> None:
    if isinstance(settings.range, tuple) and settings.range[0] >= settings.range[1]:
        raise UserError("VA-C002", f"data.range: expected [low, high] with low < high, got {list(settings.range)}")


# ---------------------------------------------------------------- tables: images with their original labels


@dataclass(frozen=True)
class Table:
    """A split before its labels are numbered.

    `labels` are names per image, or the contents of an .npz: numbers (N,), or zeros and ones (N, K). `classes` are
    the class names of the dataset, in order. `empty` are class folders without images.
    """

    images: Images
    labels: list[tuple[str, ...]] | np.ndarray
    ids: list[str]
    groups: list[str] | None = None
    classes: list[str] | None = None
    empty: tuple[str, ...] = ()
    multi_label: bool = False


def read_tables(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    if layout.format == "folders":
        return _read_folders(layout, settings, in_chans)
    if layout.format == "csv":
        return _read_csv(layout, settings, in_chans)
    if settings.group_by and layout.format not in ("webdataset", "hf"):
        raise UserError("VA-C002", f"data.group_by needs file paths or a CSV column, the data is {layout.format}", fix='data.group_by=""')
    if layout.format == "npz":
        return _read_npz(layout.root, settings, in_chans), []
    if settings.multi_label:
        raise UserError("VA-C002", f"data.multi_label: {layout.format} has one label per image", fix="data.multi_label=false")
    if layout.format in ("webdataset", "hf"):
        if settings.cache == "ram":
            raise UserError("VA-C002", f"data.cache=ram is for images in files, the data is {layout.format}", fix="data.cache=none")
        tables, notes = (_read_webdataset if layout.format == "webdataset" else _read_hub)(layout, settings, in_chans)
        for split, table in tables.items():
            if not table.ids:
                raise wrong_layout(settings, layout.root, f"no images in the shards of {split}")
        return tables, notes
    if layout.format == "digits":
        return _read_digits(settings, in_chans), []
    return _read_torchvision(layout.root, settings, in_chans), []


def _read_folders(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    if settings.multi_label:
        raise UserError("VA-C002", "data.multi_label: a folder per class gives one label per image", fix="list the labels in a CSV file")
    walker = image_walker(settings)
    tables = {}
    loose = 0
    for folder in {layout.root, *layout.parts.values()}:
        names = os.listdir(folder)
        walker.hidden.update(name for name in names if walker.excludes(name))
        loose += sum(is_image_name(name) and not walker.excludes(name) for name in names)
    classes_of = {split: walker.folders(folder, above=[layout.root]) for split, folder in layout.parts.items()}
    if walker.repeated:
        what = f"class folders that are links to a folder beside or above them: {shown(', '.join(sorted(walker.repeated)))}"
        raise UserError("VA-D002", what, where=str(layout.root), fix="remove the links, or add their names to data.exclude")
    for split, classes in classes_of.items():
        folder = layout.parts[split]
        found = walker.without_strays(walker.files_of(classes, above=[layout.root, folder]))
        paths = [path for files in found for path in files]
        labels: list[tuple[str, ...]] = [(from_path(path.name),) for path, files in zip(classes, found, strict=True) for _ in files]
        if not paths:
            raise wrong_layout(settings, layout.root, f"no images in the class folders of {folder.name}/")
        ids = [from_path(Path(os.path.relpath(path, layout.root)).as_posix()) for path in paths]
        groups = groups_from_paths(ids, settings)
        empty = tuple(from_path(path.name) for path, files in zip(classes, found, strict=True) if not files)
        tables[split] = Table(FileImages(tuple(paths), settings, in_chans), labels, ids, groups, empty=empty)
    notes = [Note("info", "", line) for line in walker.report()]
    if loose:
        notes.append(Note("warning", "", f"{counted(loose, 'image')} outside the class folders left out"))
    return tables, notes


def groups_from_paths(ids: list[str], settings: DataConfig) -> list[str] | None:
    if not settings.group_by:
        return None
    try:
        pattern = re.compile(settings.group_by)
    except re.error as error:
        raise UserError("VA-C002", f'data.group_by: "{settings.group_by}" is not a regular expression: {error}') from error
    matches = [pattern.search(text) for text in ids]
    if not any(matches):
        raise UserError(
            "VA-C002",
            f'data.group_by: "{settings.group_by}" is found in none of the paths',
            where=shown(ids[0]),
            fix="Example: (patient\\d+)",
        )
    # a path without a match forms its own group
    wanted = 1 if pattern.groups else 0
    return [text if match is None else match[wanted] or text for text, match in zip(ids, matches, strict=True)]


def _read_csv(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    listed = {split: read_csv(path, CSV_COLUMNS) for split, path in layout.parts.items()}
    if not settings.multi_label:
        for table in listed.values():
            _require_labels(table)
    require_one_value(listed.values(), "path", "label")
    by_split: dict[str, dict[str, dict[str, str]]] = {}
    count = 0
    for split, table in listed.items():
        for row in table.rows:
            count += 1
            part = by_split.setdefault(row["split"] if "split" in row and len(layout.parts) == 1 else split, {})
            part.setdefault(os.path.normpath(row["path"]), row)
    names = {name: split for split, known in split_names(settings).items() for name in known}
    unknown = {name: len(rows) for name, rows in by_split.items() if name not in names and name not in SPLITS}
    if unknown:
        raise UserError(
            "VA-D002",
            f"column split has unknown values: {histogram(unknown)}",
            where=", ".join(path.name for path in layout.parts.values()),
            fix=f"use {', '.join(names)}, or name them with data.train, data.val, data.test",
        )
    tables: dict[str, Table] = {}
    for name, unique in by_split.items():
        rows = list(unique.values())
        ids = [row["path"] for row in rows]
        paths = tuple(str(layout.root / to_path(text)) for text in ids)
        require_files(paths, ids, layout.root)
        if settings.multi_label:
            labels = [tuple(dict.fromkeys(part.strip() for part in row["label"].split(";") if part.strip())) for row in rows]
        else:
            labels = [(row["label"],) for row in rows]
        groups = _csv_groups(rows, ids, settings)
        images = FileImages(paths, settings, in_chans)
        tables[names.get(name, name)] = Table(images, labels, ids, groups, multi_label=settings.multi_label)
    repeated = count - sum(len(rows) for rows in by_split.values())
    return tables, [Note("warning", "", f"{counted(repeated, 'repeated row')} left out")] if repeated else []


def _require_labels(table: CsvTable) -> None:
    """Stop at rows without a label.

    Raises:
        UserError: VA-D012.
    """
    empty = [position for position, row in enumerate(table.rows) if not row["label"]]
    if empty:
        what = f"{counted(len(empty), 'row')} of {len(table.rows):,} in {table.path.name} without a label"
        raise UserError("VA-D012", what, where=table.where(empty), fix="fill in the labels, or remove these rows")


def require_one_value(tables: Iterable[CsvTable], key: str, value: str) -> None:
    """Stop at files that are listed with different labels or masks.

    Raises:
        UserError: VA-D012.
    """
    first: dict[str, tuple[str, str]] = {}
    conflicts = []
    for table in tables:
        for position, row in enumerate(table.rows):
            where = f"{row[value]} ({table.path.name}, line {table.lines[position]})"
            known = first.setdefault(os.path.normpath(row[key]), (row[value], where))
            if known[0] != row[value]:
                conflicts.append(f"{row[key]}: {known[1]}, {where}")
    if conflicts:
        what = f"{counted(len(conflicts), 'row')} with another {value} for an image that is listed already"
        raise UserError("VA-D012", what, where="\n".join(conflicts[:5]), fix=f"keep one {value} per image")


def _csv_groups(rows: list[dict[str, str]], ids: list[str], settings: LabelDataConfig) -> list[str] | None:
    if settings.group_by in rows[0]:
        return [row[settings.group_by] for row in rows]
    if settings.group_by.isidentifier():  # a plain word means a column
        raise UserError(
            "VA-C002", f'data.group_by: no column "{settings.group_by}"', fix=did_you_mean(settings.group_by, rows[0]) or ", ".join(rows[0])
        )
    return groups_from_paths(ids, settings)


def require_files(paths: Sequence[str], ids: Sequence[str], folder: Path) -> None:
    """Stop at listed images that do not exist; paths may also be absolute, or lead out of the folder of the list.

    Raises:
        UserError: VA-D001.
    """
    missing = [text for path, text in zip(paths, ids, strict=True) if not os.path.isfile(path)]
    if missing:
        raise UserError(
            "VA-D001",
            f"{len(missing):,} of {len(ids):,} listed images do not exist or are not regular files",
            where="\n".join(map(shown, missing[:5])),
            why=f"paths are relative to the folder of the CSV file, {folder}",
        )


def _read_npz(path: Path, settings: LabelDataConfig, in_chans: int) -> dict[str, Table]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name.endswith(("_images", "_labels"))}
            found = list(archive.files)
    except (OSError, ValueError, EOFError) as error:
        raise UserError("VA-D002", f"{path.name} is not an .npz file of plain arrays: {error}", where=str(path)) from error
    tables = {}
    for split, names in split_names(settings).items():
        name = next((name for name in names if f"{name}_images" in arrays and f"{name}_labels" in arrays), None)
        if name is not None:
            images, labels = _npz_images(arrays[f"{name}_images"], name, path), _npz_labels(arrays[f"{name}_labels"], name, path, settings)
            if len(images) != len(labels):
                raise UserError("VA-D002", f"{len(images):,} {name}_images but {len(labels):,} {name}_labels", where=str(path))
            ids = [f"{split}[{index}]" for index in range(len(images))]
            tables[split] = Table(ArrayImages(images, settings, in_chans), labels, ids, multi_label=settings.multi_label)
    if not tables:
        raise UserError(
            "VA-D002", f"{path.name} has no train_images and train_labels", where=shown(f"arrays: {', '.join(found)}"), why=_ACCEPTED
        )
    return tables


def _npz_images(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    channels = images.shape[3] if images.ndim == 4 else 1
    last = channels in (1, 3, 4) or channels <= min(MOST_CHANNELS, *images.shape[1:3])  # else they are the axis before
    channels_ok = images.ndim in (3, 4) and last
    if not channels_ok or not (images.dtype in (np.uint8, np.uint16, np.int16) or images.dtype.kind == "f"):
        raise UserError(
            "VA-D002",
            f"{name}_images has shape {images.shape} of {images.dtype}",
            where=str(path),
            why=f"expected (N, H, W) or (N, H, W, C) with the channels last, at most {MOST_CHANNELS}, of uint8, uint16, int16 or float",
        )
    return images


def _npz_labels(labels: np.ndarray, name: str, path: Path, settings: LabelDataConfig) -> np.ndarray:
    """Check labels and convert them to int64 (N,), or float32 (N, K)."""
    if settings.multi_label:
        if labels.ndim != 2:
            raise UserError("VA-D002", f"data.multi_label: {name}_labels has shape {labels.shape}, expected (N, classes)", where=str(path))
        refuse_labels({str(value): int((labels == value).sum()) for value in np.unique(labels) if value not in (0, 1)}, name, "0 and 1")
        return labels.astype(np.float32)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            "VA-D002",
            f"{name}_labels has shape {labels.shape}, expected (N,) or (N, 1)",
            where=str(path),
            fix="data.multi_label=true if these are several classes per image",
        )
    if labels.dtype.kind not in "iub":
        wrong = labels[labels != np.floor(labels)] if labels.dtype.kind == "f" else labels
        refuse_labels(dict(Counter(str(value) for value in wrong.tolist())), name, "integers")
    return labels.astype(np.int64)


def _read_webdataset(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    tables = {}
    others: Counter[str] = Counter()
    for split, name in layout.parts.items():
        found = read_shards(find_shards(layout.root, str(name), TAR_SUFFIXES), layout.root, settings, in_chans)
        groups = groups_from_paths(found.ids, settings)
        tables[split] = Table(found.images, _single(found.labels), found.ids, groups)
        others += found.others
    if not others:
        return tables, []
    examples = ", ".join(suffix for suffix, _ in others.most_common(4))
    return tables, [Note("info", "", f"{counted(sum(others.values()), 'member')} of other types left out ({examples})")]


def _read_hub(layout: Layout, settings: LabelDataConfig, in_chans: int) -> tuple[dict[str, Table], list[Note]]:
    files = {split: find_shards(layout.root, str(name), PARQUET_SUFFIXES) for split, name in layout.parts.items()}
    sources = open_splits(layout.root, files)
    tables, notes = {}, []
    for split, names in split_names(settings).items():
        name = next((name for name in ((split,) if files or layout.unsplit else names) if name in sources), None)
        if name is None:
            continue
        found = read_split(sources[name], settings, in_chans)
        if split == "test" and not any(found.labels):
            notes.append(Note("info", "", "test has no labels: left out"))
            continue
        ids = [f"{split}[{index}]" for index in range(len(found.labels))]
        tables[split] = Table(found.images, _single(found.labels), ids, found.groups, found.classes)
    return tables, notes


def _single(labels: list[str]) -> list[tuple[str, ...]]:
    """One label per image; images of a class share a tuple."""
    tuples = {label: (label,) for label in set(labels)}
    return [tuples[label] for label in labels]


def _read_digits(settings: LabelDataConfig, in_chans: int) -> dict[str, Table]:
    """Load the 1,797 digits of scikit-learn, 8 x 8 grey: per class 60 % train, 20 % val, 20 % test, the same in every run."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)
    labels = np.asarray(source.target, dtype=np.int64)
    order = np.random.default_rng(0)
    chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(10):
        members = order.permutation(np.flatnonzero(labels == number)).tolist()
        first, second = round(0.6 * len(members)), round(0.8 * len(members))
        for split, part in zip(SPLITS, (members[:first], members[first:second], members[second:]), strict=True):
            chosen[split] += part
    names = [str(number) for number in range(10)]
    return {
        split: Table(
            ArrayImages(images[sorted(part)], settings, in_chans),
            [(names[labels[index]],) for index in sorted(part)],
            [f"digits[{index}]" for index in sorted(part)],
            classes=names,
        )
        for split, part in chosen.items()
    }


def _read_torchvision(root: Path, settings: LabelDataConfig, in_chans: int) -> dict[str, Table]:
    from torchvision import datasets

    kind = getattr(datasets, settings.dataset, None)
    if not inspect.isclass(kind):
        known = [name for name in dir(datasets) if inspect.isclass(getattr(datasets, name))]
        hint = did_you_mean(settings.dataset, known)
        raise UserError("VA-D001", f'data.dataset "{settings.dataset}" is not in torchvision.datasets', fix=hint)
    accepted = inspect.signature(kind).parameters
    tables = {}
    for split, names in split_names(settings).items():
        if "split" not in accepted and split == "val":
            continue  # such datasets have only train=True and train=False
        try:
            source = _torchvision_split(kind, root, accepted, split, names)
            if source is not None:
                tables[split] = _torchvision_table(source, split, settings, in_chans)
        except Exception as error:  # these classes raise different errors
            raise UserError(
                "VA-D001",
                f"torchvision dataset {settings.dataset} could not be prepared: {str(error) or type(error).__name__}",
                where=str(root),
                why="the first use downloads it, which needs internet access",
            ) from error
    return tables


def _torchvision_split(kind: Any, root: Path, accepted: Mapping[str, Any], split: str, names: Sequence[str]) -> Any:
    arguments: dict[str, Any] = {"download": True} if "download" in accepted else {}
    if "split" not in accepted:
        return kind(str(root), **arguments, **({"train": split == "train"} if "train" in accepted else {}))
    for name in names:
        try:
            return kind(str(root), split=name, **arguments)
        except ValueError:  # raised by torchvision for a split that the dataset lacks
            if split == "train":
                raise
    return None


def _torchvision_table(source: Any, split: str, settings: LabelDataConfig, in_chans: int) -> Table:
    targets = next((getattr(source, name) for name in ("targets", "_labels") if hasattr(source, name)), None)
    if targets is None:
        targets = [source[index][1] for index in range(len(source))]
    numbers = [int(target) for target in targets]
    brought = getattr(source, "classes", None) or range(max(numbers) + 1)
    classes = [name if isinstance(name, str) else ", ".join(name) if isinstance(name, tuple) else str(name) for name in brought]
    images = TorchvisionImages(source, tuple(range(len(numbers))), settings, in_chans)
    return Table(images, [(classes[number],) for number in numbers], [f"{split}[{i}]" for i in range(len(numbers))], classes=classes)


def require_distinct(names: Sequence[str]) -> None:
    """Check the names of all classes.

    Raises:
        UserError: VA-C002, a name is used twice or is too long.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError("VA-C002", f"data.classes names {', '.join(twice[:8])} more than once")
    long = [name for name in names if len(name) > _LONGEST_NAME]
    if long:
        what = f"a class name of {len(long[0]):,} characters, at most {_LONGEST_NAME} are accepted"
        raise UserError("VA-C002", what, where=f"{long[0][:60]}...")


def refuse_labels(outside: dict[str, int], split: str, expected: str) -> None:
    if outside:
        raise UserError(
            "VA-D012",
            f"labels outside the classes in {split}: {histogram(outside)}",
            why=f"expected {expected}",
            fix="correct these labels, or name all classes in data.classes",
        )
