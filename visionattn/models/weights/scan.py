"""Scan a checkpoint file before it is loaded: what passes loads in time and memory that its size bounds.

`torch.load(weights_only=True)` runs no code of a file, but believes its numbers: it unfolds compressed records, reads past
the end of a record, and allocates whatever a tensor or a constructor asks for. The scan follows the opcodes of the pickle
without making anything, and compares what they ask for with what the file holds.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

MAX_DIRECTORY = 2**24  # bytes of an archive's table of contents: some 200,000 records
MAX_HEADER = 2**23  # bytes of a safetensors header: some 70,000 tensors
MAX_PICKLE = 2**26  # bytes of names and settings; the values of tensors are elsewhere
# Opcodes and the sizes of what they take. The training states of the largest models take a quarter of it; what an opcode
# makes has 100 to 200 bytes.
MAX_WORK = 2_000_000
MAX_DIMENSIONS = 64  # torch's own limit

ZIP = b"PK\x03\x04"
# How torch began files before they were archives: a pickle of a number.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
FOREIGN = "it is neither a zip archive nor a pickle of tensors"

# Bytes of an element, by the class of its storage.
STORAGES = {
    "torch.ComplexDoubleStorage": 16,
    **{f"torch.{name}Storage": 8 for name in ("Double", "Long", "ComplexFloat")},
    **{f"torch.{name}Storage": 4 for name in ("Float", "Int")},
    **{f"torch.{name}Storage": 2 for name in ("Half", "BFloat16", "Short")},
    **{f"torch.{name}Storage": 1 for name in ("Byte", "Char", "Bool")},
    "torch.storage.UntypedStorage": 1,
}
WITH_DTYPE = "torch._utils._rebuild_tensor_v3"
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", WITH_DTYPE)
# What a pickle may call besides: none of it makes more of its arguments than it is given.
CALLS = ("collections.Counter", "collections.OrderedDict", "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "builtins.set")
ENCODE = "_codecs.encode"  # how a pickle holds bytes; codecs other than this one's may multiply them
DICTS = ("collections.Counter", "collections.OrderedDict", "yacs.config.CfgNode")
METHODS = frozenset(dir(dict))
VALUES = ("BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE")


class Refused(ValueError):
    """A file that must not be loaded; the text is the reason."""


class ForeignObject(Refused):
    """A pickle that asks for more than tensors and plain objects; the text names what it asks for."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names."""

    full: str


@dataclass(eq=False, slots=True)
class Thing:
    """What opcodes would make.

    Attributes:
        kind: tuple, list, dict, storage, or the name of what was called.
        weight: number of values in it, shared ones counted each time: what it costs to hash or to join them.
        parts: values of a tuple.
        names: the keys of a dict that are text.
        count: elements of a storage, of `item` bytes each.
    """

    kind: str
    weight: int = 1
    parts: tuple[Any, ...] = ()
    names: set[str] | None = None
    count: int = 0
    item: int = 0


def scan(path: Path, objects: Collection[str]) -> None:
    """Check what a checkpoint file asks for.

    Args:
        path: a regular file; safetensors are told by the suffix.
        objects: full names of classes that pickles may contain besides tensors; making one must cost no more than its arguments.

    Raises:
        Refused: with the reason; `ForeignObject` if a pickle contains other objects.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
        size = file.seek(0, 2)
        if path.suffix == ".safetensors":
            if not 0 < int.from_bytes(start[:8], "little") <= min(MAX_HEADER, size - 8):
                raise Refused("it is cut off, or its header has no sensible length")
        elif start.startswith(ZIP):
            _scan_archive(file, size, objects)
        elif start == LEGACY:
            _scan_legacy(file, size, objects)
        else:
            raise Refused(FOREIGN)


def _scan_archive(file: BinaryIO, size: int, objects: Collection[str]) -> None:
    """Check that all readers of the archive see the same records, stored one after the other, and scan its pickle."""
    _require_one_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
            _require_plain_records(found, archive.start_dir)
            records = {record.filename.casefold(): record for record in found}  # torch ignores case
            if len(records) < len(found):
                raise Refused("two of its records have the same name")
            folder = found[0].filename.partition("/")[0].casefold() if found else ""
            record = records.get(f"{folder}/data.pkl")
            if record is None or record.file_size > MAX_PICKLE:
                raise Refused(f"its pickle is missing, or larger than {MAX_PICKLE >> 20} MiB")
            content = archive.read(record)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, UnicodeDecodeError) as error:
        raise Refused(f"the archive is damaged: {error}") from error
    prefix = f"{folder}/data/"
    sizes = {name.removeprefix(prefix): record.file_size for name, record in records.items() if name.startswith(prefix)}
    Pickle(BytesIO(content), objects, sizes).follow()


def _require_one_directory(file: BinaryIO, size: int) -> None:
    """Check that the table of contents is where every reader looks for it, and no larger than one reads."""
    file.seek(max(size - 98, 0))
    tail = file.read(98).rjust(98, b"\0")
    directory, offset, comment = struct.unpack("<IIH", tail[-10:])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":  # zip64, which torch always writes
        (elsewhere,) = struct.unpack("<Q", tail[-34:-26])
        directory, offset = struct.unpack("<QQ", tail[40:56])
        end = size - 98
        if elsewhere != end or not tail.startswith(b"PK\x06\x06"):
            raise Refused("the archive has two tables of contents")
    if tail[-22:-18] != b"PK\x05\x06" or comment or offset + directory != end:
        raise Refused("the archive is cut off, or something follows it")
    if directory > MAX_DIRECTORY:
        raise Refused(f"its table of contents has {directory:,} bytes")


def _require_plain_records(records: list[zipfile.ZipInfo], limit: int) -> None:
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size or record.flag_bits & 1:
            raise Refused(f"its record {record.filename[:80]!r} is compressed or encrypted; torch.save does neither")
        if record.orig_filename != record.filename:
            raise Refused("a record has a damaged name")
        if record.header_offset < end:
            raise Refused("its records overlap")
        end = record.header_offset + 30 + record.file_size  # at least: a header has 30 bytes and a name
    if end > limit:
        raise Refused("its records are larger than the file")


def _scan_legacy(file: BinaryIO, size: int, objects: Collection[str]) -> None:
    """Scan the five pickles of a file that is not an archive: number, version, system, objects, keys of the values that follow."""
    file.seek(0)
    head = BytesIO(file.read(MAX_PICKLE))
    needed = 0
    for _ in range(5):
        pickle = Pickle(head, objects, None)
        pickle.follow()
        needed += sum(8 + storage.count * storage.item for storage in pickle.storages.values())
    if needed > size - head.tell():
        raise Refused(f"its tensors need {needed:,} bytes, {size - head.tell():,} are there")


class Pickle:
    """Follows the opcodes that torch's restricted unpickler takes, without making what they describe.

    Args:
        stream: at the start of a pickle.
        objects: see `scan`.
        sizes: bytes of the records of values by key, in lower case; None where values follow the pickles.
    """

    def __init__(self, stream: BytesIO, objects: Collection[str], sizes: dict[str, int] | None) -> None:
        self.stream, self.sizes = stream, sizes
        self.calls = frozenset((*CALLS, *TENSORS, ENCODE, *objects))
        self.storages: dict[str | int, Thing] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def follow(self) -> None:
        """Follow a pickle to its end, where the stream is left.

        Raises:
            Refused: as `scan`.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self.stream):
                self._step(opcode.name, argument)
                if self.work > MAX_WORK:
                    raise Refused("its pickle holds too many objects")
        except Refused:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # opcodes that make no sense
            raise Refused(FOREIGN) from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        self.work += 1
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(self._name(argument))
        elif name == "MARK":
            self.work += 3
            self.marks.append(stack)
            self.stack = []
        elif name == "EMPTY_TUPLE":
            stack.append(Thing("tuple"))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self._make_tuple(tuple(self._pop_mark() if name == "TUPLE" else self._pop(int(name[-1]))))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            self.work += 3
            stack.append(Thing(name[6:].lower()))
        elif name in ("APPEND", "APPENDS"):
            self._put(self._pop(1) if name == "APPEND" else self._pop_mark())
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_mark())
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            self._set_state(stack.pop(), stack[-1])
        elif name not in ("PROTO", "STOP"):
            raise Refused(FOREIGN)

    def _pop(self, count: int) -> list[Any]:
        parts = self.stack[-count:]
        del self.stack[-count:]
        return parts

    def _pop_mark(self) -> list[Any]:
        parts, self.stack = self.stack, self.marks.pop()
        return parts

    def _make_tuple(self, parts: tuple[Any, ...]) -> None:
        made = Thing("tuple", 1 + sum(map(_weight, parts)), parts)
        self.work += made.weight
        self.stack.append(made)

    def _put(self, parts: list[Any]) -> None:
        weight = sum(map(_weight, parts))
        self.work += weight
        self.stack[-1].weight += weight

    def _set_items(self, parts: list[Any]) -> None:
        self._put(parts)
        target = self.stack[-1]
        for key in parts[::2]:
            if isinstance(key, str):
                target.names = target.names or set()
                target.names.add(key)
            elif isinstance(key, Thing) or (isinstance(key, int) and abs(key) >= 2**32):
                self.work += 100  # their hashes can be made to collide

    def _set_state(self, state: Any, made: Thing) -> None:
        self.work += _weight(state)
        if made.kind in DICTS and (state.kind != "dict" or not METHODS.isdisjoint(state.names or ())):
            raise Refused("it replaces methods of a dict")

    def _name(self, text: str) -> Name:
        full = text.replace("__builtin__ ", "builtins ", 1).replace(" ", ".", 1)
        if full not in self.calls and full not in STORAGES and _dtype(full) is None:
            raise ForeignObject(full[:200])
        return Name(full)

    def _call(self, function: Name, arguments: Thing) -> Thing:
        parts, weight = arguments.parts, arguments.weight
        if function.full not in self.calls:
            raise ForeignObject(f"{function.full}(...)")
        if function.full in TENSORS:
            self._require_values(parts, function.full == WITH_DTYPE)
        if function.full == ENCODE and parts[1] not in ("latin1", "latin-1"):
            raise ForeignObject(f"{ENCODE}(..., {str(parts[1])[:40]!r})")
        self.work += 3 + weight + (weight * weight // 1000 if function.full in CALLS else 0)  # hashes may collide
        return Thing(function.full, weight)

    def _require_values(self, parts: tuple[Any, ...], with_dtype: bool) -> None:
        """Check that a tensor lies inside its storage and has no more elements than that."""
        storage, offset, size, stride = parts[0], parts[1], parts[2].parts, parts[3].parts
        dtype = _dtype(parts[6].full) if with_dtype else None
        if storage.kind != "storage" or len(size) != len(stride) or len(size) > MAX_DIMENSIONS or (dtype is None) is with_dtype:
            raise Refused(FOREIGN)
        held = storage.count * storage.item // (dtype.itemsize if dtype else storage.item)
        count = math.prod(map(_natural, size))
        last = _natural(offset) + sum((side - 1) * _natural(step) for side, step in zip(size, stride, strict=True))
        if count > held or (count and last >= held):
            raise Refused("a tensor is larger than the values that the file holds for it")

    def _storage(self, pid: Thing) -> Thing:
        word, kind, key, _, count, *view = pid.parts
        item = STORAGES[kind.full]
        nbytes = _natural(count) * item
        if word != "storage" or type(key) not in (str, int) or view not in ([], [None]):
            raise Refused(FOREIGN)
        storage = self.storages.setdefault(key, Thing("storage", count=count, item=item))
        if (storage.count, storage.item) != (count, item):
            raise Refused("it describes the same values in two ways")
        if self.sizes is not None and nbytes > self.sizes.get(str(key).casefold(), -1):
            raise Refused(f"{nbytes:,} bytes of a tensor are not in the file")
        return storage


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise Refused(FOREIGN)
    return value


def _weight(value: Any) -> int:
    if isinstance(value, Thing):
        return value.weight
    return 1 + len(value) // 64 if isinstance(value, str) else 1


def _dtype(full: str) -> torch.dtype | None:
    found = getattr(torch, full.removeprefix("torch."), None) if full.startswith("torch.") else None
    return found if isinstance(found, torch.dtype) else None
