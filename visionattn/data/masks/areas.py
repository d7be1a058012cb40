"""Areas of objects: polygons and run lengths to pixels, and regions of a class map to polygons and run lengths as in COCO files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

Size = tuple[int, int]

_MOST_CROSSINGS = 50_000_000  # of the edges of a polygon with rows of pixels
_LARGE = 1000  # pixels of a region whose outline may get fewer points
_SIMPLER = 0.005  # largest share of its area that they may change


class BadArea(ValueError):
    """An area that cannot be drawn; the text says why."""


class Patch(NamedTuple):
    """Pixels of an object within its box: place of the upper left corner, and a mask."""

    row: int
    column: int
    pixels: np.ndarray

    def within(self, array: np.ndarray) -> np.ndarray:
        """The box cut out of an array of the image's size."""
        height, width = self.pixels.shape
        cut: np.ndarray = array[self.row : self.row + height, self.column : self.column + width]
        return cut


_NOTHING = Patch(0, 0, np.zeros((0, 0), bool))


# ---------------------------------------------------------------- to pixels


def polygon_area(rings: Sequence[np.ndarray], size: Size) -> Patch:
    """Pixels whose centres lie inside closed lines `[N, 2]` of x and y; those inside two of them are outside again.

    A square of side 10 covers 100 pixels; OpenCV and Pillow also fill the outline, which makes 121 of them.

    Raises:
        BadArea: edges that cross too many rows.
    """
    start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    lowest, highest = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, last = (np.ceil(edge - 0.5).clip(0, size[0]).astype(np.int64) for edge in (lowest, highest))
    crossed = last - first
    total = int(crossed.sum())
    if total > _MOST_CROSSINGS:
        raise BadArea(f"a polygon of {len(start):,} points that crosses rows of pixels {total:,} times")
    if total == 0:
        return _NOTHING
    edge = np.repeat(np.arange(len(start)), crossed)
    rows = np.arange(total) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    step = end[edge] - start[edge]
    across = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * (step[:, 0] / step[:, 1])
    columns = np.ceil(across - 0.5).clip(0, size[1]).astype(np.int64)
    row, column = int(rows.min()), int(columns.min())
    crossings = np.zeros((int(rows.max()) - row + 1, int(columns.max()) - column + 1), np.uint8)
    np.add.at(crossings, (rows - row, columns - column), 1)
    inside = np.bitwise_xor.accumulate(crossings & 1, axis=1)[:, :-1].astype(bool)
    return Patch(row, column, inside) if inside.size else _NOTHING


def union(patches: Sequence[Patch]) -> Patch:
    """All pixels of several patches."""
    patches = [patch for patch in patches if patch.pixels.size]
    if len(patches) < 2:
        return patches[0] if patches else _NOTHING
    row, column = min(patch.row for patch in patches), min(patch.column for patch in patches)
    bottom = max(patch.row + patch.pixels.shape[0] for patch in patches)
    right = max(patch.column + patch.pixels.shape[1] for patch in patches)
    pixels = np.zeros((bottom - row, right - column), bool)
    for patch in patches:
        cut = Patch(patch.row - row, patch.column - column, patch.pixels).within(pixels)
        cut |= patch.pixels
    return Patch(row, column, pixels)


def run_area(counts: Any, size: Size, *, by_column: bool) -> np.ndarray:
    """The mask of run lengths that begin with pixels outside the object.

    Args:
        counts: lengths of the runs, as a file gives them.
        by_column: whether runs go down the columns, as in COCO files.

    Raises:
        BadArea: not whole numbers that add up to the pixels of the size.
    """
    pixels = size[0] * size[1]
    if not isinstance(counts, list) or not all(isinstance(count, int) and 0 <= count <= pixels for count in counts):
        raise BadArea("run lengths that are not whole numbers from 0 to the pixels of the image")
    if sum(counts) != pixels:
        raise BadArea(f"run lengths of {sum(counts):,} pixels in all, for {size[1]} x {size[0]}")
    mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return mask.reshape(size[1], size[0]).T if by_column else mask.reshape(size)


def unpacked_runs(text: str) -> list[int]:
    """Run lengths of a compressed string in a COCO file: 6 bits per letter, from the third on differences to the last but one.

    Raises:
        BadArea: not such a string.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 40:
            raise BadArea("a compressed string of run lengths with letters or numbers that do not occur in one")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise BadArea("a compressed string of run lengths that is cut off")
    return counts


def brush_area(packed: Any, size: Size) -> np.ndarray:
    """The mask that Label Studio's brush painted: run lengths of RGBA bytes, of which alpha counts.

    The format is that of the JavaScript package rle-pack: 32 bits for the number of words, 5 for their bits, four times 4 for
    the bits of a length; then runs of equal or of different words.

    Raises:
        BadArea: not such bytes, or not those of an image of this size.
    """
    if not isinstance(packed, list) or not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in packed):
        raise BadArea("a brush stroke that is not a list of bytes")
    bits = (np.unpackbits(np.array(packed, np.uint8)) + ord("0")).tobytes()
    place = 0

    def take(count: int) -> bytes:
        nonlocal place
        place += count
        if place > len(bits):
            raise BadArea("a brush stroke that is cut off")
        return bits[place - count : place]

    total, word = int(take(32), 2), int(take(5), 2) + 1
    lengths = [int(take(4), 2) + 1 for _ in range(4)]
    if word != 8 or total != 4 * size[0] * size[1]:
        raise BadArea(f"a brush stroke of {total:,} words of {word} bits, for {size[1]} x {size[0]} pixels of 4 bytes")
    values = np.empty(total, np.uint8)
    done = 0
    while done < total:
        equal = take(1) == b"1"
        end = done + 1 + int(take(lengths[int(take(2), 2)]), 2)
        if end > total:
            raise BadArea("a brush stroke with more runs than pixels")
        values[done:end] = int(take(8), 2) if equal else np.packbits(np.frombuffer(take(8 * (end - done)), np.uint8) - ord("0"))
        done = end
    return values.reshape(*size, 4)[:, :, 3] >= 128


def turned(points: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    """Points rotated clockwise, as a picture with y downwards shows it, about a centre."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - centre) @ matrix + centre


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners of a rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """A polygon of 256 points in the place of an ellipse: its area is smaller by a ten-thousandth."""
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


# ---------------------------------------------------------------- to COCO


class Region(NamedTuple):
    """A connected region of a class as an annotation in a COCO file has it: area in pixels, box, and polygon or run lengths."""

    area: int
    bbox: list[int]
    segmentation: list[list[float]] | dict[str, Any]


def regions(mask: np.ndarray) -> Iterator[Region]:
    """The connected regions of a mask; pixels that touch at a corner are connected.

    A region without holes is a polygon along the edges of its pixels; that of 1,000 pixels or more gets fewer points where they
    change the area by less than 0.5 %. Polygons of COCO files have no holes, so a region with holes becomes run lengths.
    """
    rings, links = _outlines(mask)
    for number, ring in enumerate(rings):
        _, _, hole, parent = links[number]
        if parent >= 0:
            continue
        left, top = ring.min(0).tolist()
        right, bottom = ring.max(0).tolist()
        box = [left, top, right - left, bottom - top]
        area = _enclosed(ring)
        if hole < 0:
            yield Region(area, box, [_simplified(ring, area).ravel().tolist()])
            continue
        holes = []
        while hole >= 0:
            holes.append(rings[hole])
            hole = links[hole][0]
        area -= sum(map(_enclosed, holes))
        yield Region(area, box, _run_lengths([ring, *holes], left, right, mask.shape))


def _outlines(mask: np.ndarray) -> tuple[list[np.ndarray], list[list[int]]]:
    """Outlines along the edges of the pixels, and for each: next, previous, first hole, and what it is a hole of; -1 for none.

    OpenCV's outlines connect centres of pixels. On a grid of twice the size, where a pixel is a square of 3 x 3 that shares its
    border with its neighbours, the centres with even coordinates are the corners of the pixels.
    """
    fine = np.zeros((2 * mask.shape[0] + 1, 2 * mask.shape[1] + 1), np.uint8)
    for down in range(3):
        for right in range(3):
            fine[down : down + 2 * mask.shape[0] : 2, right : right + 2 * mask.shape[1] : 2] |= mask
    found, links = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [_corners(ring[:, 0]) for ring in found], [] if links is None else links[0].tolist()


def _corners(ring: np.ndarray) -> np.ndarray:
    """Corners of an outline on the fine grid, in pixels; where it cuts one off by a diagonal step, the corner is put back."""
    after = np.roll(ring, -1, axis=0)
    cut = np.where(ring % 2 == 0, ring, after)  # of a diagonal step: even in both coordinates, otherwise the point itself or the next
    path = np.stack([ring, cut], axis=1).reshape(-1, 2)
    path = path[(path % 2 == 0).all(1)] // 2
    path = path[(path != np.roll(path, 1, axis=0)).any(1)]
    turn = ((path - np.roll(path, 1, axis=0)) != (np.roll(path, -1, axis=0) - path)).any(1)
    return path[turn]


def _enclosed(ring: np.ndarray) -> int:
    """Pixels that an outline encloses."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return abs(int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) // 2


def _simplified(ring: np.ndarray, area: int) -> np.ndarray:
    """An outline with fewer points, each step of it within a pixel of the old one, if that leaves the area as it is."""
    if area < _LARGE:
        return ring
    fewer: np.ndarray = cv2.approxPolyDP(ring.astype(np.int32)[:, None], 1.0, True)[:, 0]
    return fewer if len(fewer) > 2 and abs(_enclosed(fewer) - area) < _SIMPLER * area else ring


def _run_lengths(rings: list[np.ndarray], left: int, right: int, size: tuple[int, ...]) -> dict[str, Any]:
    """Run lengths, down the columns of the image, of an outline and its holes, which lie in the columns from left to right."""
    columns = np.zeros((size[0], right - left), bool)
    patch = polygon_area([ring - np.array([left, 0.0]) for ring in rings], (size[0], right - left))
    patch.within(columns)[:] = patch.pixels
    flat = np.concatenate([[False], columns.T.ravel(), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + left * size[0]
    counts = np.diff([0, *changes.tolist(), size[0] * size[1]])
    return {"size": [size[0], size[1]], "counts": counts.tolist()}
