"""Read bags from files: HDF5, NumPy archives, torch files. No object in them is rebuilt, and none of their links is followed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionattn.data.bags.recognise import BAGS, COORDINATES, FEATURES, LABELS
from visionattn.data.readers import LIMIT_SETTING, UnreadableFile
from visionattn.errors import UserError

INSTANCES = ("instance_labels", "inst")
SLIDE_SIZE = ("slide_size",)
NAMES = ("slide_id", "names", "ids")
H5 = (".h5", ".hdf5")


class Place(NamedTuple):
    """Where a bag is.

    Attributes:
        path: file, or folder of patches.
        group: of an HDF5 file with several bags.
        rows: first row and the one after the last, in an archive of many bags.
        patches: files of patches.
    """

    path: str
    group: str = ""
    rows: tuple[int, int] | None = None
    patches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A bag of a file, and what the file says of it: empty texts where it says nothing."""

    place: Place
    name: str
    label: str = ""
    split: str = ""
    fold: str = ""


@dataclass(frozen=True)
class Bag:
    """Instances of a bag.

    Attributes:
        features: `[N, D]`: float32, float16 or uint8.
        coords: `[N, 2]`, x and y of each instance on the slide; None if unknown.
        instances: `[N]`, label of each instance, which only evaluation looks at; None if unknown.
        slide_size: width and height of the slide in units of the coordinates.
        seed: of what is random in training.
    """

    features: np.ndarray
    coords: np.ndarray | None = None
    instances: np.ndarray | None = None
    slide_size: tuple[float, float] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: np.ndarray) -> Bag:
        """Select instances."""
        coords, instances = (None if part is None else part[indices] for part in (self.coords, self.instances))
        return replace(self, features=self.features[indices], coords=coords, instances=instances)


# ---------------------------------------------------------------- list


def list_bags(path: Path) -> list[Listed]:
    """The bags of a file; only headers and labels are read.

    Raises:
        UnreadableFile: damaged, or without features.
    """
    with _opened(path) as source:
        if path.suffix.lower() in H5 and not _has(source, FEATURES):
            groups = [name for name, item in source.items() if isinstance(item, Mapping) and _has(item, FEATURES)]
            if not groups:
                raise UnreadableFile(str(path), f"no features: expected a dataset {' or '.join(FEATURES)}, or groups with one")
            return [Listed(Place(str(path), name), name, _text(_label(source[name]))) for name in groups]
        if not _has(source, FEATURES):
            raise UnreadableFile(str(path), f"no features: expected {' or '.join(FEATURES)}, found {', '.join(list(source)[:6])}")
        if path.suffix.lower() == ".npz" and _has(source, BAGS):
            return _list_rows(path, source)
        return [Listed(Place(str(path)), path.stem, _text(_label(source)))]


def _list_rows(path: Path, source: Mapping[str, Any]) -> list[Listed]:
    """The bags of an archive whose features are those of many bags, one after the other."""
    edges = _edges(path, source, len(_find(source, FEATURES)))
    columns = [_find(source, names) for names in (NAMES, LABELS, ("split",), ("fold",))]
    if any(column is not None and np.shape(column) != (len(edges) - 1,) for column in columns):
        raise UnreadableFile(str(path), f"labels, splits, folds and names are not one for each of {len(edges) - 1:,} bags", "VA-D013")
    splits = {"0": "train", "1": "val", "2": "test"}
    found = []
    for index in range(len(edges) - 1):
        name, label, split, fold = ("" if column is None else _text(column[index]) for column in columns)
        place = Place(str(path), rows=(int(edges[index]), int(edges[index + 1])))
        found.append(Listed(place, name or f"{path.stem}[{index}]", label, splits.get(split, split), fold))
    return found


def _edges(path: Path, source: Mapping[str, Any], rows: int) -> np.ndarray:
    """First row of each bag, and the number of rows."""
    labels = _find(source, LABELS)
    if "bag" in source:
        bag = np.asarray(source["bag"]).astype(np.int64)
        if bag.shape != (rows,):
            raise UnreadableFile(str(path), f"bag of shape {list(bag.shape)} for {rows:,} instances", "VA-D013")
        count = int(bag.max(initial=-1)) + 1 if labels is None else len(labels)
        if (np.diff(bag) < 0).any() or (rows and not 0 <= bag[0] <= bag[-1] < count):
            raise UnreadableFile(str(path), f"bag: expected the number of the bag of each instance, sorted, from 0 to {count - 1}")
        return np.searchsorted(bag, np.arange(count + 1))
    edges = np.asarray(source["offsets"] if "offsets" in source else np.cumsum(np.insert(source["sizes"], 0, 0)), np.int64)
    if "offsets" in source and len(edges) and edges[-1] != rows:  # first rows alone
        edges = np.append(edges, rows)
    if (
        len(edges) < 2
        or edges[0] != 0
        or (np.diff(edges) < 0).any()
        or edges[-1] != rows
        or (labels is not None and len(edges) != len(labels) + 1)
    ):
        raise UnreadableFile(str(path), f"offsets or sizes do not divide {rows:,} instances into bags", "VA-D013")
    return edges


# ---------------------------------------------------------------- read


def read_bag(place: Place, *, max_bytes: int) -> Bag:
    """Load the instances of a bag.

    Raises:
        UnreadableFile: damaged, of another form, or larger than `max_bytes`.
    """
    path = Path(place.path)
    if place.rows is not None:
        status = _status(path)
        return _bag(_cut(_archive(place.path, status.st_size, status.st_mtime_ns), place.rows), place.path, max_bytes)
    with _opened(path) as source:
        return _bag(source[place.group] if place.group else source, place.path, max_bytes)


def check_form(bag: Bag, name: str, *, features: int | None = None) -> None:
    """Stop at a bag that no network takes.

    Args:
        features: of the other bags, or those that a model takes.

    Raises:
        UnreadableFile: VA-D011, empty; VA-D013, other features than expected; VA-D012, values that are not finite.
    """
    if not len(bag):
        raise UnreadableFile(name, "an empty bag: it has no instances", "VA-D011")
    found = bag.features.shape[1]
    if features is not None and found != features:
        raise UnreadableFile(name, f"{found} features per instance, expected {features}", "VA-D013")
    if bag.features.dtype.kind == "f":
        rows = _not_finite(bag.features)
        if rows:
            raise UnreadableFile(name, f"NaN or infinite features in {rows:,} of {len(bag):,} instances", "VA-D012")


def _not_finite(values: np.ndarray, block: int = 4096) -> int:
    """Number of rows with a value that is not finite."""
    return sum(int((~np.isfinite(values[start : start + block]).all(1)).sum()) for start in range(0, len(values), block))


def _bag(source: Mapping[str, Any], name: str, max_bytes: int) -> Bag:
    """Check shapes before anything is loaded, as far as the file tells them."""
    features, coords, instances, size = (_find(source, names) for names in (FEATURES, COORDINATES, INSTANCES, SLIDE_SIZE))
    if features.ndim == 3 and len(features) == 1:  # some tools keep the axis of a batch
        features = features[0]
    if features.ndim != 2 or not features.shape[1]:
        raise UnreadableFile(name, f"features of shape {list(features.shape)}: expected [instances, features]", "VA-D013")
    needed = int(np.prod(features.shape)) * max(4, features.dtype.itemsize)
    if needed > max_bytes:
        raise UnreadableFile(name, f"{needed:,} bytes, the limit is {max_bytes:,}; if you trust it, {LIMIT_SETTING}{needed}", "VA-D020")
    for what, array, shape in (("coordinates", coords, (2,)), ("instance labels", instances, ())):
        if array is not None and tuple(array.shape) != (len(features), *shape):
            raise UnreadableFile(name, f"{what} of shape {list(array.shape)} for {len(features):,} instances", "VA-D013")
    kept = np.asarray(features)
    if kept.dtype not in (np.float32, np.float16, np.uint8):
        kept = kept.astype(np.float32)
    found = None if coords is None else np.asarray(coords, np.float64)
    if found is not None and not np.isfinite(found).all():
        raise UnreadableFile(name, "coordinates that are NaN or infinite", "VA-D012")
    if size is None:
        size = getattr(source, "attrs", {}).get(SLIDE_SIZE[0])
    width = None if size is None or np.shape(size) != (2,) else (float(size[0]), float(size[1]))
    return Bag(np.ascontiguousarray(kept), found, None if instances is None else np.asarray(instances), width)


def _cut(arrays: Mapping[str, np.ndarray], rows: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: arrays[name][slice(*rows)] for names in (FEATURES, COORDINATES, INSTANCES) for name in names if name in arrays}


@lru_cache(maxsize=2)
def _archive(path: str, size: int, changed: int) -> dict[str, np.ndarray]:
    """Arrays of an archive of many bags, kept in memory; the other arguments notice that the file changed."""
    with _opened(Path(path)) as source:
        return {name: source[name] for names in (FEATURES, COORDINATES, INSTANCES) for name in names if name in source}


# ---------------------------------------------------------------- files


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a file by name, loaded when they are asked for.

    Raises:
        UnreadableFile: whatever is wrong with the file.
        UserError: VA-C005, the package that reads it is missing.
    """
    _status(path)
    try:
        if path.suffix.lower() in H5:
            with _h5py().File(path, "r") as file:
                yield _Group(file, str(path))
        elif path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                yield _Archive(archive, str(path))
        else:
            yield _tensors(path)
    except (UnreadableFile, UserError, MemoryError):
        raise
    except Exception as error:  # damaged files make the readers raise whatever comes next
        raise UnreadableFile(str(path), str(error).partition("\n")[0][:200] or type(error).__name__) from error


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableFile(str(path), error.strerror or str(error)) from error
    if not path.is_file():
        raise UnreadableFile(str(path), "not a regular file", "VA-D011")
    if not status.st_size:
        raise UnreadableFile(str(path), "empty file (0 bytes)", "VA-D011")
    return status


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "VA-C005", "HDF5 files need the package h5py, which is not installed", fix='pip install "visionattn[bags]"'
        ) from error
    return h5py


class _Group(Mapping[str, Any]):
    """A group of an HDF5 file: its own datasets and groups, not what it links to in other files."""

    def __init__(self, group: Any, path: str) -> None:
        self.group, self.path, self.attrs = group, path, group.attrs

    def __getitem__(self, name: str) -> Any:
        h5py = _h5py()
        if isinstance(self.group.get(name, getlink=True), h5py.ExternalLink):
            raise UnreadableFile(self.path, f"{name} links to another file")
        item = self.group[name]
        if isinstance(item, h5py.Group):
            return _Group(item, self.path)
        if item.external or item.is_virtual:
            raise UnreadableFile(self.path, f"{name} has its values in another file")
        if item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is None:
            raise _objects(self.path, name)
        return item if item.dtype.kind != "O" else item.asstr()[()]

    def __contains__(self, name: object) -> bool:
        return name in self.group

    def __iter__(self) -> Iterator[str]:
        return iter(self.group)

    def __len__(self) -> int:
        return len(self.group)


class _Archive(Mapping[str, Any]):
    """Arrays of an .npz file, whose headers are read before room is made for them."""

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self.archive, self.path = archive, path
        self.names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}

    def __getitem__(self, name: str) -> Any:
        info = self.archive.getinfo(self.names[name])
        with self.archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
        if dtype.hasobject:
            raise _objects(self.path, name)
        if int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
            raise UnreadableFile(self.path, f"{name} is shorter than its header says")
        with self.archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _objects(path: str, name: str) -> UnreadableFile:
    return UnreadableFile(path, f"{name} is an array of objects, which only unpickling could read: save it as an array of numbers")


def _tensors(path: Path) -> dict[str, Any]:
    """Tensors of a file of torch.save: one of features, or a dict with other values beside them."""
    import torch

    from visionattn.models.weights.scan import ForeignObject, Refused, scan

    try:
        scan(path, ())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ForeignObject as error:
        raise UnreadableFile(str(path), f"it contains more than tensors and was not loaded: it asks for {error}") from error
    except Refused as error:
        raise UnreadableFile(str(path), str(error)) from error
    content = {FEATURES[0]: content} if isinstance(content, torch.Tensor) else content
    if not isinstance(content, dict):
        raise UnreadableFile(str(path), f"a {type(content).__name__}: expected a tensor of features, or a dict with one")
    return {str(name): _array(value) for name, value in content.items()}


def _array(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value) if isinstance(value, (int, float, str, list, tuple)) else value
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()


# ---------------------------------------------------------------- names


def _has(source: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(name in source for name in names)


def _find(source: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of several names that there is; None without any."""
    return next((source[name] for name in names if name in source), None)


def _label(source: Mapping[str, Any]) -> Any:
    """A label, among the arrays or the attributes; None without one."""
    found = _find(source, LABELS)
    attributes = getattr(source, "attrs", {})
    return next((attributes[name] for name in LABELS if name in attributes), None) if found is None else found[()]


def _text(value: Any) -> str:
    """A label as text: numbers without a fraction, bytes as UTF-8; empty for none."""
    if value is None:
        return ""
    plain = np.asarray(value)
    if plain.size != 1:
        return ""
    item = plain.reshape(-1)[0]
    item = item.item() if isinstance(item, np.generic) else item
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if isinstance(item, (bool, np.bool_)):
        return str(int(item))
    return str(int(item)) if isinstance(item, float) and item.is_integer() else str(item)
