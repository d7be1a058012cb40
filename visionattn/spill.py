"""Results that may be too many for memory: they move to a temporary file, which has no name and vanishes with the process."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")

HELD_BYTES = 2**26  # of one collection; above, it lies on the disk
BLOCK = 2**22  # numbers computed with at a time


class Rows(Sequence[T]):
    """A growing sequence of picklable rows; a row is loaded when it is asked for, so changing it changes nothing here."""

    def __init__(self, rows: Iterable[T] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(HELD_BYTES)  # noqa: SIM115 - closed with its last user
        self._starts, self._end = array("Q"), 0
        self.extend(rows)

    def append(self, row: T) -> None:
        self._file.seek(self._end)
        pickle.dump(row, self._file, pickle.HIGHEST_PROTOCOL)
        self._starts.append(self._end)
        self._end = self._file.tell()

    def extend(self, rows: Iterable[T]) -> None:
        for row in rows:
            self.append(row)

    def reordered(self, order: Iterable[int]) -> Rows[T]:
        """The rows at these positions, in this order. They share the file: neither grows afterwards."""
        chosen = copy.copy(self)
        chosen._starts = array("Q", (self._starts[position] for position in order))
        return chosen

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        row: T = pickle.load(self._file)
        return row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (list(self),)


class Table:
    """Arrays `[n, ...]` of one kind, joined along their first axis."""

    def __init__(self, parts: Iterable[np.ndarray] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(HELD_BYTES)  # noqa: SIM115 - closed with its last user
        self._count, self._row = 0, np.empty(())
        for part in parts:
            self.append(part)

    def append(self, part: np.ndarray) -> None:
        self._count, self._row = self._count + len(part), np.empty(part.shape[1:], part.dtype)
        self._file.seek(0, os.SEEK_END)
        self._file.write(part.tobytes())

    def array(self) -> np.ndarray:
        """All rows, read-only: in memory, or mapped from the disk."""
        shape = (self._count, *self._row.shape)
        if self._count * self._row.nbytes <= HELD_BYTES:
            self._file.seek(0)
            return np.frombuffer(self._file.read(), self._row.dtype).reshape(shape)
        self._file.flush()
        mapped: np.ndarray = np.memmap(self._file, self._row.dtype, "r", shape=shape)  # type: ignore[call-overload]
        return mapped

    def ordered(self, order: np.ndarray) -> np.ndarray:
        """The rows at these positions, in this order."""
        rows = self.array()
        if np.array_equal(order, np.arange(self._count)):
            return rows
        return Table(rows[order[part]] for part in blocks(len(order), self._row.size)).array()

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, ([np.asarray(self.array())],)


def room(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array to fill, of zeros: in memory, or on the disk if it is large."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= HELD_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:  # the map keeps it
        mapped: np.ndarray = np.memmap(file, dtype, "w+", shape=tuple(shape))
        return mapped


def npy_pieces(array: np.ndarray) -> Iterator[bytes]:
    """The content of a `.npy` file, in pieces."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, np.lib.format.header_data_from_array_1_0(np.empty(0, array.dtype)) | {"shape": array.shape}
    )
    yield header.getvalue()
    for part in blocks(len(array), math.prod(array.shape[1:])):
        yield np.ascontiguousarray(array[part]).tobytes()


def blocks(count: int, width: int) -> Iterator[slice]:
    """Cut `count` rows of `width` numbers into parts of about BLOCK numbers."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
