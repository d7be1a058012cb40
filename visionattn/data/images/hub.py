"""Data sets of Hugging Face: folders of save_to_disk and parquet files, local or from the hub, read through memory-mapped files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionattn.data.images.settings import ImageDataConfig, LabelDataConfig
from visionattn.data.readers import ImageFacts, UnreadableFile, header_facts, image_facts, read_image
from visionattn.errors import UserError, did_you_mean
from visionattn.files import cache_folder

PARQUET_SUFFIXES = (".parquet",)


@dataclass(frozen=True)
class HubImages:
    """Images in the rows of a `datasets.Dataset` whose only column holds encoded images; `version` changes with its files."""

    source: Any
    rows: np.ndarray
    version: str
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> np.ndarray:
        return read_image(self.content(index), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        row = int(self.rows[index])
        try:
            (image,) = self.source[row].values()
        except (OSError, ValueError) as error:  # pyarrow's are of these kinds
            raise UnreadableFile(f"row {row}", str(error)) from error
        if image is None or image["bytes"] is None:  # a path would lead to a file anywhere on this machine
            raise UnreadableFile(f"row {row}", "the row holds no image" + (", but a path" if image and image["path"] else ""))
        return bytes(image["bytes"])

    def facts(self, index: int) -> ImageFacts:
        return image_facts(self.content(index), max_bytes=self.settings.max_bytes)

    def header(self, index: int) -> ImageFacts:
        return header_facts(self.content(index), max_bytes=self.settings.max_bytes)

    def path(self, index: int) -> None:
        return None

    def size(self, index: int) -> int:
        return len(self.content(index))

    def stamp(self, index: int) -> str:
        return f"{self.version}|{self.rows[index]}"

    def take(self, indices: Sequence[int]) -> HubImages:
        return replace(self, rows=self.rows[np.asarray(indices, dtype=np.int64)])


class HubSplit(NamedTuple):
    """One split; `labels` are empty where a row has none, `groups` and `classes` are None if there are none."""

    images: HubImages
    labels: list[str]
    groups: list[str] | None
    classes: list[str] | None


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def download_parquet(name: str) -> Path:
    """Download the parquet files of a data set of the hub into Hugging Face's cache.

    Returns their folder, or where there are several (a data set with configurations), the folder of those.

    Args:
        name: `USER/NAME`, or `USER/NAME@REVISION`.

    Raises:
        UserError: VA-D001, not there, no connection, or downloads are off and it is not in the cache; VA-D002, no parquet files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from visionattn.models.weights.download import offline  # loads the networks

    repo, _, revision = name.partition("@")
    switch = offline()
    try:
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision or None, allow_patterns="*.parquet", local_files_only=bool(switch)
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            "VA-D001",
            f'data.dataset "{name}" could not be loaded from the Hugging Face hub',
            why=f"{switch} is set, and it is not in the cache" if switch else str(error).strip().splitlines()[0],
            fix=f"hf download {repo} --repo-type dataset   on a machine with internet access\n"
            'or data.root=FOLDER data.dataset="", where the parquet files are',
        ) from error
    folders = {path.parent for path in Path(folder).rglob("*.parquet")}
    if not folders:
        raise UserError(
            "VA-D002",
            f'data.dataset "{name}" has no parquet files',
            where=folder,
            fix=f"data.dataset={repo}@refs/convert/parquet, if the hub has converted it; data.train=default/train",
        )
    return folders.pop() if len(folders) == 1 else Path(folder)


def open_splits(root: Path, files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Open a data set as a `datasets.Dataset` per split; no code that comes with it is run.

    Args:
        files: parquet files by split, which are converted to Arrow in the cache once; if empty, `root` is a folder of
            `save_to_disk`, and one without splits is named `train`.

    Raises:
        UserError: VA-R007, the package is not installed; VA-D002, not a data set, or damaged.
    """
    try:
        import datasets
    except ImportError as error:
        fix = 'pip install "visionattn[hf]"'
        raise UserError("VA-R007", "data.format=hf needs the package datasets, which is not installed", fix=fix) from error
    try:
        if not files:
            saved = datasets.load_from_disk(str(root))
            return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        # load_dataset would ask the hub, whatever VISIONATTN_OFFLINE is.
        cache = str(cache_folder() / "arrow")
        names = {split: [escape(os.path.abspath(path)) for path in paths] for split, paths in files.items()}
        return {split: datasets.Dataset.from_parquet(paths, split=split, cache_dir=cache) for split, paths in names.items()}
    except Exception as error:  # many kinds, of three libraries
        reason = str(error.__cause__ or error) or type(error).__name__
        raise UserError("VA-D002", "the Hugging Face data set cannot be opened", where=str(root), why=reason) from error


def read_split(source: Any, settings: LabelDataConfig, in_chans: int) -> HubSplit:
    """Find the columns of a split and read its labels; no image is decoded.

    Raises:
        UserError: VA-D002, no or several columns of images or labels, or labels that are neither text nor whole numbers;
            VA-C002, the column that a setting names does not exist.
    """
    import datasets

    features = source.features
    image = _column("image", settings.image_column, features, datasets.Image)
    label = _column("label", settings.label_column, features, datasets.ClassLabel)
    classes = list(features[label].names) if isinstance(features[label], datasets.ClassLabel) else None
    groups = None
    if settings.group_by:
        groups = [str(value) for value in _values(source, _known("group_by", settings.group_by, features))]
    try:
        encoded = source.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's are of these kinds
        raise UserError("VA-D002", f'column "{image}" of {features[image]} holds no images', fix="data.image_column=NAME") from error
    images = HubImages(encoded, np.arange(len(source)), _version(source), settings, in_chans)
    return HubSplit(images, [_label(value, label, classes) for value in _values(source, label)], groups, classes)


def _column(kind: str, name: str, features: Mapping[str, Any], feature: type) -> str:
    """The column that a setting names, or the only one of a type."""
    if name:
        return _known(f"{kind}_column", name, features)
    found = [column for column, type_ in features.items() if isinstance(type_, feature)]
    if len(found) != 1:
        raise UserError(
            "VA-D002",
            f"{len(found)} columns are of type {feature.__name__}, expected 1",
            where=", ".join(f"{column}: {type(type_).__name__}" for column, type_ in list(features.items())[:20]),
            fix=f"data.{kind}_column=NAME",
        )
    return found[0]


def _known(key: str, name: str, features: Mapping[str, Any]) -> str:
    if name not in features:
        raise UserError("VA-C002", f'data.{key}: no column "{name}"', fix=did_you_mean(name, features) or ", ".join(list(features)[:20]))
    return name


def _values(source: Any, column: str) -> list[Any]:
    values: list[Any] = source.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    return values


def _label(value: Any, column: str, classes: list[str] | None) -> str:
    if value is None or (classes is not None and value == -1):  # how the hub marks rows without a label
        return ""
    if isinstance(value, (int, str)):
        return classes[value] if classes is not None and isinstance(value, int) and 0 <= value < len(classes) else str(value)
    raise UserError(
        "VA-D002", f'column "{column}" holds {type(value).__name__}, expected text or whole numbers', fix="data.label_column=NAME"
    )


def _version(source: Any) -> str:
    """A hash of the names, sizes and times of the files behind a split."""
    files = [file["filename"] for file in source.cache_files]
    stamps = [f"{os.path.abspath(file)}|{os.path.getsize(file)}|{os.stat(file).st_mtime_ns}" for file in files]
    return blake2b("\n".join(stamps).encode(errors="surrogateescape"), digest_size=12).hexdigest()
