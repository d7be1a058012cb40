"""Images as arrays of any number of channels: TIFF, by tifffile, `.npy` and `.npz`. Nothing is unpickled."""

from __future__ import annotations

import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

MOST_CHANNELS = 512  # that OpenCV takes
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
CODECS = "pip install imagecodecs"  # reads what tifffile alone does not: LZW, ZSTD, JPEG 2000, ...

_NPY_MAGIC, _ZIP_MAGIC = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")  # the last one is an empty archive
_ORIENTATION, _ALPHA = 274, {1, 2, 999}  # a tag, and the extra samples that are transparency; 999 is Corel's
_DEFLATE, _DEFLATE_RATIO, _HARMLESS = (8, 32946), 1032, 2**28  # names of zlib, what a byte becomes at most, and bytes that do no harm
_PLAIN = (0, 1, 2)  # photometric interpretations whose samples are bands: grey, RGB


@dataclass(frozen=True)
class Stack:
    """An array in a file, before its values are read.

    Attributes:
        height, width: as stored.
        channels: of the image; pages are channels where the file says so.
        pages: what may be channels as well: pages without a meaning, or the other of the first and the last axis; 0 if nothing is.
        values: their number in the file.
        dtype: of the values.
        alpha: whether the last channel is marked as transparency.
        orientation: as in EXIF.
        read: gives height x width x channels; of as many as asked for, where the pages may be channels.
    """

    height: int
    width: int
    channels: int
    pages: int
    values: int
    dtype: np.dtype[Any]
    alpha: bool
    orientation: int
    read: Callable[[int | None], np.ndarray]

    @property
    def decoded(self) -> int:
        """Bytes of the values as stored, and of the array that is made of them."""
        return self.values * (self.dtype.itemsize + (0 if self.dtype == np.uint8 else 4))


def is_array_file(start: bytes) -> bool:
    """Whether a file that starts like this is `.npy` or `.npz`."""
    return start.startswith((_NPY_MAGIC, *_ZIP_MAGIC))


def array_stack(file: IO[bytes]) -> Stack:
    """The array of a `.npy` file, or the only one of an `.npz` file.

    Raises:
        ValueError: several arrays, objects, not an image; zipfile's own errors.
    """
    file.seek(0)
    start = file.read(len(_NPY_MAGIC))
    file.seek(0)
    if start == _NPY_MAGIC:
        return _npy_stack(file, math.inf)
    with zipfile.ZipFile(file) as archive:
        names = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if len(names) != 1:
            listed = ", ".join(info.filename.removesuffix(".npy")[:40] for info in names[:5]) or "none"
            raise ValueError(f"{len(names)} arrays in the file ({listed}): expected one")
        member = names[0]
        with archive.open(member) as stream:
            stack = _npy_stack(stream, member.file_size)

    def read(wanted: int | None) -> np.ndarray:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            return _npy_stack(stream, member.file_size).read(wanted)

    return replace(stack, read=read)


def _npy_stack(file: IO[bytes], size: float) -> Stack:
    """The array of a stream of `size` bytes."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"version {version[0]}.{version[1]} of the npy format: expected 1.0 or 2.0")
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are never unpickled: save numbers")
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype}: expected integers or floats")
    stored = math.prod(shape) * dtype.itemsize
    if stored > size:
        raise ValueError(f"truncated: an array of {stored:,} bytes in {size:,}")
    axis = channel_axis(shape)

    def read(wanted: int | None) -> np.ndarray:
        content = file.read(stored)
        if len(content) < stored:
            raise ValueError(f"truncated: {len(content):,} of {stored:,} bytes")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
        return _channels_last(array, channel_axis(shape, wanted))

    channels = 1 if axis is None else shape[axis]
    height, width = (side for position, side in enumerate(shape) if position != axis)
    other = 0 if axis is None else shape[2 - axis]
    return Stack(height, width, channels, other, math.prod(shape), dtype, False, 1, read)


def channel_axis(shape: Sequence[int], wanted: int | None = None) -> int | None:
    """Which axis of an array holds the channels: the only one of `wanted`, else the shorter of the first and the last; None of two.

    Raises:
        ValueError: neither two nor three axes, or an empty one.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"an array of {_sides(shape)}: expected height x width, with channels as the first or the last axis")
    if len(shape) == 2:
        return None
    first, last = shape[0], shape[2]
    if wanted in (first, last):
        return 2 if last == wanted else 0
    return 2 if last <= first else 0


def tiff_stack(file: IO[bytes]) -> Stack:
    """The first image of a TIFF; its pages are channels where the file says so.

    Raises:
        ValueError: a stack of several planes per channel; tifffile's own errors.
    """
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # damage is reported by what it leads to
        logger.addHandler(logging.NullHandler())
    file.seek(0)
    tiff = tifffile.TiffFile(file, _multifile=False)  # OME-TIFF may name other files, anywhere
    if not tiff.series:
        raise ValueError("no image in the file")
    series, page = tiff.series[0], tiff.pages.first
    axes, shape = series.axes, tuple(series.shape)
    more = [position for position, letter in enumerate(axes) if letter not in "YX"]
    if len(more) > 1 or "Y" not in axes or "X" not in axes or not all(shape):
        raise ValueError(f"a stack of axes {axes}, {_sides(shape)}: expected height, width and channels")
    axis: int | None = more[0] if more else None
    named = not more or axes[more[0]] in "SC"
    first_only = not named and series.kind != "shaped"  # which are arrays as numpy has them
    pages, plane = 0, axis
    if first_only:
        axis, pages = None, shape[more[0]]
    elif not named:
        axis = plane = channel_axis(shape)
        pages = shape[2 - (axis or 0)]
    channels = 1 if axis is None else shape[axis]
    height, width = (side for position, side in enumerate(shape) if position != plane)
    if page.photometric not in _PLAIN:  # inks, or an index of colours
        channels, pages = min(channels, 3), 0
    tag = page.tags.get(_ORIENTATION)
    alpha = channels in (2, 4) and bool(_ALPHA & {int(kind) for kind in page.extrasamples})

    def read(wanted: int | None) -> np.ndarray:
        other = pages > 0 and wanted == pages
        one = first_only and not other
        for read_page in [page] if one else series.pages:
            _refuse_bomb(tiff, read_page, series.nbytes)
        array = page.asarray(maxworkers=1) if one else series.asarray(maxworkers=1)
        if array.shape != ((height, width) if one else shape):
            raise ValueError("damaged: pixels are missing")
        place = axis if not other else plane if first_only else 2 - (axis or 0)
        return _channels_last(array, place)

    orientation = 1 if tag is None else int(tag.value)
    return Stack(height, width, channels, pages, math.prod(shape), np.dtype(series.dtype), alpha, orientation, read)


def _refuse_bomb(tiff: Any, page: Any, size: int) -> None:
    """Stop at a part of a page that tifffile would decompress to more than the whole image: zlib is not given a limit there.

    Raises:
        ValueError: the part is larger.
    """
    if page is None or page.compression not in _DEFLATE:
        return
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count * _DEFLATE_RATIO > max(size, _HARMLESS):
            tiff.filehandle.seek(offset)
            if len(zlib.decompressobj().decompress(tiff.filehandle.read(count), size + 1)) > size:
                raise ValueError(f"damaged: a part holds more than the {size:,} bytes of the image")


def _channels_last(array: np.ndarray, axis: int | None) -> np.ndarray:
    return array[:, :, None] if axis is None else np.moveaxis(array, axis, -1)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "no axes"


def scaled_values(array: np.ndarray, rule: str | tuple[float, float]) -> np.ndarray:
    """Values of height x width x channels as a network takes them: uint8, or float32.

    `dtype` leaves 8 bits and floats as they are, and divides other integers by the maximum of their type: 65535 for 16 bits, and
    for 32, whose values are mostly 16-bit ones. Nothing is clipped. `percentile` maps the 1st to 99th percentile of each channel to
    0..1, a pair [low, high], with clipping.
    """
    if rule == "dtype":
        if array.dtype == np.uint8:
            return np.ascontiguousarray(array)
        if array.dtype == np.bool_:
            return array.astype(np.uint8) * np.uint8(255)
        values: np.ndarray = array.astype(np.float32, order="C")
        if array.dtype.kind != "f":
            values /= np.float32(np.iinfo(array.dtype).max if array.dtype.itemsize <= 2 else 65535)
        return values
    values = array.astype(np.float32, order="C")
    if isinstance(rule, tuple):
        low, high = (np.float32(bound) for bound in rule)
    else:
        low, high = np.percentile(values, (1, 99), axis=(0, 1)).astype(np.float32)
    values -= low
    values /= np.maximum(high - low, np.float32(1e-30))
    return values.clip(0, 1, out=values)
