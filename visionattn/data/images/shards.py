"""WebDataset shards: tar files whose headers are indexed once, so that any image can be read at its offset."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import ImageFacts, UnreadableFile, header_facts, image_facts, read_image
from visionattn.data.walk import PICTURE_SUFFIXES
from visionattn.errors import UserError
from visionattn.files import atomic_write, cache_folder, counted

# Compressed shards are found too, so that they can be refused.
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Increase when the meaning of the stored index changes.
INDEX_VERSION = 1

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_RECORD = re.compile(rb"(\d{1,6}) ([^=]+)=")  # of a pax header: LENGTH KEY=VALUE and a line feed, all counted
_MOST_SHARDS = 100_000
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LARGEST_LABEL = 2**20  # bytes of a cls or json member
_LARGEST_NAME = 2**16  # bytes of a header that only holds a long name
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}

# Where an image is: number of its shard, offset and size in bytes.
_PLACE = np.dtype([("shard", np.int32), ("offset", np.int64), ("size", np.int64)])


# ---------------------------------------------------------------- images


class Shard(NamedTuple):
    """A tar file as it was when it was indexed; `time` is that of its last change, in nanoseconds."""

    path: str
    size: int
    time: int


@dataclass(frozen=True)
class ShardImages:
    """Images in tar files; `places` holds shard, offset and size of each.

    A shard is open only while an image is read, so that nothing has to be carried through a fork or a pickle.
    """

    shards: tuple[Shard, ...]
    places: np.ndarray
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> np.ndarray:
        return read_image(self.content(index), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        number, offset, size = self.places[index].item()
        shard = self.shards[number]
        try:
            with open(shard.path, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != shard[1:]:
                    raise UnreadableFile(shard.path, "the shard has changed since it was indexed")
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise UnreadableFile(shard.path, error.strerror or str(error)) from error

    def facts(self, index: int) -> ImageFacts:
        return image_facts(self.content(index), max_bytes=self.settings.max_bytes)

    def header(self, index: int) -> ImageFacts:
        return header_facts(self.content(index), max_bytes=self.settings.max_bytes)

    def path(self, index: int) -> str:
        return self.shards[self.places[index]["shard"]].path

    def size(self, index: int) -> int:
        return int(self.places[index]["size"])

    def stamp(self, index: int) -> str:
        number, offset, _ = self.places[index].item()
        return "|".join(map(str, (*self.shards[number], offset)))

    def take(self, indices: Sequence[int]) -> ShardImages:
        return replace(self, places=self.places[np.asarray(indices, dtype=np.int64)])


# ---------------------------------------------------------------- files of a split


def find_shards(root: Path, name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files of a split, sorted by name.

    Args:
        name: a folder of shards, the name of a shard without its suffix or number (`train` of `train-000000.tar`), a glob, or
            a range such as `train-{000000..000012}.tar`.
        suffixes: those that the files may have.

    Raises:
        UserError: VA-D001, files of a range do not exist; VA-C002, the range is too long.
    """
    numbers = _RANGE.search(name)
    if numbers is not None:
        return _files_of_range(root, name, numbers)
    patterns = [name, f"{name}/*", f"{name}-[0-9]*", *(f"{name}{suffix}" for suffix in suffixes)]
    paths = {root / found for pattern in patterns for found in glob(pattern, root_dir=root)}
    return sorted(path for path in paths if path.name.lower().endswith(suffixes) and path.is_file())


def _files_of_range(root: Path, name: str, numbers: re.Match[str]) -> list[Path]:
    first, last = numbers.groups()
    count = int(last) - int(first) + 1
    if not 0 < count <= _MOST_SHARDS:
        raise UserError("VA-C002", f'"{name}": a range of {count:,} shards, expected 1 to {_MOST_SHARDS:,}')
    texts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    paths = [root / f"{name[: numbers.start()]}{text}{name[numbers.end() :]}" for text in texts]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        what = f'{len(missing):,} of {count:,} shards "{name}" do not exist'
        raise UserError("VA-D001", what, where="\n".join([str(root), *missing[:5]]))
    return paths


# ---------------------------------------------------------------- index


class Sample(NamedTuple):
    """An image with its label in a shard; the key is the name up to the first dot, with its folders."""

    key: str
    label: str
    offset: int
    size: int


@dataclass
class Index:
    """Contents of one shard.

    Attributes:
        samples: complete samples, in the order of their images.
        others: count of members that are neither an image nor a label, by suffix.
        without_image: keys.
        without_label: keys.
        repeated: second images and labels of a sample.
    """

    samples: list[Sample] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    without_image: list[str] = field(default_factory=list)
    without_label: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


class ShardSet(NamedTuple):
    """The samples of a split; `others` counts members that are neither an image nor a label, by suffix."""

    images: ShardImages
    labels: list[str]
    ids: list[str]
    others: Counter[str]


def read_shards(paths: Sequence[Path], root: Path, settings: ImageDataConfig, in_chans: int) -> ShardSet:
    """Index shards by their headers, or by the cached index of each that has not changed; no image is decoded.

    The label of a sample is the text of KEY.cls, or `label` or `class` of KEY.json. Members are never extracted.

    Raises:
        UserError: VA-D010, shards that are damaged, cut off or compressed, or that hold anything but regular files; VA-D021,
            samples without an image or a label; VA-D002, several images or labels of a sample.
    """
    shards: list[Shard] = []
    places: list[np.ndarray] = []
    labels: list[str] = []
    ids: list[str] = []
    others: Counter[str] = Counter()
    broken: dict[str, str] = {}
    faults: dict[str, list[str]] = {"without_image": [], "without_label": [], "repeated": []}
    texts: dict[str, str] = {}  # samples of a class share one string
    for path in paths:
        name = Path(os.path.relpath(path, root)).as_posix()
        try:
            shard, index = _indexed(path, settings)
        except UnreadableFile as error:
            broken[name] = error.reason
            continue
        for kind, found in faults.items():
            found += [f"{name}/{key}" for key in getattr(index, kind)]
        others += index.others
        places.append(np.array([(len(shards), sample.offset, sample.size) for sample in index.samples], _PLACE))
        labels += [texts.setdefault(sample.label, sample.label) for sample in index.samples]
        ids += [f"{name}/{sample.key}" for sample in index.samples]
        shards.append(shard)
    if broken:
        where = "\n".join(f"{name}: {reason}" for name, reason in list(broken.items())[:5])
        fix = "download them again, or write them anew as uncompressed tar files of regular files"
        raise UserError("VA-D010", f"{len(broken):,} of {counted(len(paths), 'shard')} cannot be used", where=where, fix=fix)
    label = "the label is the text of KEY.cls, or label or class in KEY.json"
    _refuse("VA-D021", faults["without_label"], "sample", "without a label", label)
    _refuse("VA-D021", faults["without_image"], "sample", "without an image", "an image has the key of its label: KEY.jpg, KEY.png, ...")
    _refuse("VA-D002", faults["repeated"], "member", "with the key of another", "a key names one image and one label of its shard")
    images = ShardImages(tuple(shards), np.concatenate([np.empty(0, _PLACE), *places]), settings, in_chans)
    return ShardSet(images, labels, ids, others)


def _refuse(code: str, names: list[str], word: str, what: str, why: str) -> None:
    if names:
        raise UserError(code, f"{counted(len(names), word)} {what}", where="\n".join(names[:5]), why=why)


def _indexed(path: Path, settings: ImageDataConfig) -> tuple[Shard, Index]:
    """Index a shard, or load its index from the cache; raises UnreadableFile."""
    place = os.path.abspath(path)
    try:
        status = os.stat(place)
        shard = Shard(place, status.st_size, status.st_mtime_ns)
        stamp: list[Any] = [INDEX_VERSION, *shard, settings.exclude]
        stored = cache_folder() / "shards" / f"{blake2b(os.fsencode(place), digest_size=12).hexdigest()}.json"
        index = _stored_index(stored, stamp)
        if index is not None:
            return shard, index
        with open(place, "rb") as file:
            index = _scan(file, shard, settings.exclude)
    except OSError as error:
        raise UnreadableFile(place, error.strerror or str(error)) from error
    if not (index.without_image or index.without_label or index.repeated):
        stored.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(stored, json.dumps({"stamp": stamp, "samples": index.samples, "others": index.others}))
    return shard, index


def _stored_index(path: Path, stamp: list[Any]) -> Index | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["stamp"] == stamp:
            return Index([Sample(*sample) for sample in stored["samples"]], Counter(stored["others"]))
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: the shard is indexed again
        pass
    return None


def _scan(file: BinaryIO, shard: Shard, exclude: Sequence[str]) -> Index:
    """Index a shard by one pass over its headers and labels."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, str]] = {"cls": {}, "json": {}}
    index = Index()
    for name, offset, size in _members(file, shard):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = folder + slash + stem, suffix.lower()
        if any(fnmatch(part, pattern) for part in name.split("/") for pattern in exclude):
            index.others[base] += 1
        elif f".{suffix}" in PICTURE_SUFFIXES:
            if key in images:
                index.repeated.append(name)
            images[key] = (offset, size)
        elif suffix in labels:
            if key in labels[suffix]:
                index.repeated.append(name)
            file.seek(offset)
            content = file.read(size) if size <= _LARGEST_LABEL else b""
            labels[suffix][key] = _text_label(content) if suffix == "cls" else _json_label(content)
        else:
            index.others[f".{suffix}" if suffix else base] += 1
    for key, (offset, size) in images.items():
        label = labels["cls"].get(key) or labels["json"].get(key)
        if label:
            index.samples.append(Sample(key, label, offset, size))
        else:
            index.without_label.append(key)
    for key, label in (labels["json"] | labels["cls"]).items():
        if key not in images and label:
            index.without_image.append(key)
        elif key not in images:
            index.others[".json"] += 1
    return index


def _text_label(content: bytes) -> str:
    """The label in a cls member; empty if there is none."""
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return ""


def _json_label(content: bytes) -> str:
    """The label in a json member; empty if there is none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    label = next((values[key] for key in ("label", "class") if values.get(key) is not None), None) if isinstance(values, dict) else None
    return str(label).strip() if isinstance(label, (int, str)) and not isinstance(label, bool) else ""


# ---------------------------------------------------------------- tar


def _members(file: BinaryIO, shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar.

    The standard library parses the headers. Its TarFile is not used: it accepts a shard that ends too early, follows sizes and
    nested headers that are made up, and keeps an object per member.

    Raises:
        UnreadableFile: not a tar, cut off, or a member other than a file or a folder with a name below the root.
    """
    position, extended = 0, dict[str, str]()
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if not position:
            _refuse_compressed(block, shard)
        if len(block) < _BLOCK:
            raise UnreadableFile(shard.path, f"cut off: no end mark within {shard.size:,} bytes" if shard.size else "empty file (0 bytes)")
        if block == _ZEROS:
            break
        header = _header(block, position, shard)
        about_next = header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        size = header.size if about_next else int(extended.get("size", header.size))
        start = position + _BLOCK
        name = extended.get("path", header.name).removeprefix("./")
        if size < 0 or start + size > shard.size:
            raise UnreadableFile(shard.path, f"cut off: {name} ends at byte {start + size:,} of {shard.size:,}")
        position = start + -(-size // _BLOCK) * _BLOCK
        if about_next:
            if size > _LARGEST_NAME:
                raise UnreadableFile(shard.path, f"a name of {size:,} bytes")
            content = file.read(size)
            extended |= {"path": _decode(content.rstrip(b"\0"))} if header.type == tarfile.GNUTYPE_LONGNAME else _records(content, shard)
        elif header.type != tarfile.XGLTYPE:  # a header about all members names none
            _require_plain(name, header.type, extended, shard)
            extended = {}
            if header.type != tarfile.DIRTYPE:
                yield name, start, size
    if file.read(2**20).strip(b"\0"):
        raise UnreadableFile(shard.path, "data behind the end mark: several tar files were put together")


def _header(block: bytes, position: int, shard: Shard) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise UnreadableFile(shard.path, f"not a tar file: {error} at byte {position:,}") from error


def _refuse_compressed(block: bytes, shard: Shard) -> None:
    kind = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), None)
    if kind is not None:
        raise UnreadableFile(shard.path, f"compressed with {kind}, without random access: decompress it to .tar")


def _require_plain(name: str, kind: bytes, extended: dict[str, str], shard: Shard) -> None:
    if kind in _REFUSED or any(key.startswith("GNU.sparse") for key in extended):
        raise UnreadableFile(shard.path, f"{name} is {_REFUSED.get(kind, 'a sparse file')}: expected regular files")
    if kind not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE):
        raise UnreadableFile(shard.path, f"{name} is of type {kind!r}: expected regular files")
    if name.startswith("/") or ".." in name.split("/"):
        raise UnreadableFile(shard.path, f"{name} is a path out of the shard")


def _records(content: bytes, shard: Shard) -> dict[str, str]:
    """Records of a pax header."""
    records = {}
    position = 0
    while position < len(content):
        found = _RECORD.match(content, position)
        end = position + int(found[1]) if found is not None else 0
        if found is None or not found.end() < end <= len(content):
            raise UnreadableFile(shard.path, "damaged pax header")
        key, value = _decode(found[2]), _decode(content[found.end() : end - 1])
        if key == "size" and not re.fullmatch(r"[0-9]{1,18}", value):
            raise UnreadableFile(shard.path, "damaged pax header")
        records[key] = value
        position = end
    return records


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
