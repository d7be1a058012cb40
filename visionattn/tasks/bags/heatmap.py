"""Attention over the place of its instances, as a picture."""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image

_COLOURS = "inferno"
_STRENGTH = 0.6  # of the colours over a thumbnail


def heat_map(
    attention: np.ndarray,
    coords: np.ndarray | None,
    *,
    side: int = 768,
    thumbnail: Image.Image | None = None,
    slide_size: tuple[float, float] | None = None,
) -> np.ndarray:
    """Colour the place of each instance by its attention, relative to the largest of the bag: `[H, W, 3]` uint8.

    Args:
        attention: `[N]`.
        coords: `[N, 2]`, x and y of the upper left corner of each instance; None draws them in rows, in their order.
        side: longer side of the picture in pixels.
        thumbnail: the whole slide, under the colours.
        slide_size: width and height of the slide; None: 1 by 1 if no coordinate is larger, else as far as the instances reach.
    """
    if coords is None:
        columns = int(np.ceil(np.sqrt(len(attention))))
        coords = np.stack([np.arange(len(attention)) % columns, np.arange(len(attention)) // columns], 1).astype(float)
    patch = spacing(coords)
    relative = coords.min() >= 0 and coords.max() <= 1 and not np.array_equal(coords, np.rint(coords))
    start = np.zeros(2) if slide_size is not None or relative or thumbnail is not None else coords.min(0)
    extent = np.array(slide_size or ((1.0, 1.0) if relative else tuple(coords.max(0) + patch)), float) - start
    if thumbnail is not None:
        small = thumbnail.convert("RGB")
        small.thumbnail((side, side))
        canvas = np.asarray(small, np.float32)
    else:
        height, width = (max(1, round(side * part / extent.max())) for part in extent[::-1])
        canvas = np.full((height, width, 3), 255, np.float32)
    scale = np.array(canvas.shape[1::-1]) / extent
    heat, seen = _painted(
        attention / max(float(attention.max()), 1e-30), (coords - start) * scale, patch * scale, canvas.shape[:2], relative
    )
    colours = matplotlib.colormaps[_COLOURS](heat)[..., :3] * 255
    strength = _STRENGTH if thumbnail is not None else 1.0
    blended = np.where(seen[..., None], strength * colours + (1 - strength) * canvas, canvas)
    return np.rint(blended).astype(np.uint8)


def spacing(coords: np.ndarray) -> float:
    """Side of an instance: the middle distance to the nearest other one."""
    from scipy.spatial import cKDTree

    distinct = np.unique(coords, axis=0)
    if len(distinct) < 2:
        return float(max(abs(distinct).max(), 1.0))
    distances, _ = cKDTree(distinct).query(distinct, k=2)
    return float(np.median(distances[:, 1]))


def _painted(
    values: np.ndarray, corners: np.ndarray, size: np.ndarray, shape: tuple[int, ...], centred: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The largest value at each pixel, and where there is any.

    Args:
        corners: upper left corner of each instance in pixels, or its centre with `centred`.
        size: width and height of an instance in pixels.
    """
    heat, seen = np.zeros(shape, np.float32), np.zeros(shape, bool)
    corners = corners - size / 2 if centred else corners
    first = np.floor(corners).astype(np.int64)
    last = np.maximum(np.ceil(corners + size).astype(np.int64), first + 1)
    for index in np.argsort(values, kind="stable"):  # the largest last
        (left, top), (right, bottom) = np.maximum(first[index], 0), np.maximum(last[index], 0)
        heat[top:bottom, left:right] = values[index]
        seen[top:bottom, left:right] = True
    return heat, seen
