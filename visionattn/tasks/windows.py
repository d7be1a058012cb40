"""Predict in windows, with flips and at several scales, in bounded memory.

All functions take a `model`: a network in evaluation mode, or any function from images `[B, C, *size]` to logits `[B, K, *size]`.
They compose: `with_flips(model)` is such a function too; inside a sliding window it flips each window, outside the whole image.

The grid of windows and the average over them match mmsegmentation 1.2.2 (`slide_inference`) and MONAI 1.6.1
(`sliding_window_inference`), which agree; the Gaussian weights are MONAI's. `blend="nnunet"` uses grid and weights of nnU-Net 2
(`compute_steps_for_sliding_window`, `compute_gaussian`). All are Apache-2.0; no code is copied. One difference: an image smaller
than the window is padded with zeros on both sides, as in MONAI and nnU-Net, also for `blend="constant"`, where mmsegmentation passes the
smaller image to the network.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F

from visionattn.heads.base import resize_to

Predict = Callable[[torch.Tensor], torch.Tensor]
Blend = Literal["constant", "gaussian", "nnunet"]
Place = tuple[slice, ...]  # slices of a window in B C *size
Block = tuple[tuple[slice, slice], torch.Tensor]  # rows and columns of an image, and their logits

ALL = (slice(None), slice(None))  # slices of images and channels


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Window starts along one axis: every `stride`, the last one moved inward to end at the image border."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def spread_starts(size: int, window: int, stride: float) -> list[int]:
    """Window starts along one axis: the fewest with steps of at most `stride`, evenly spaced and rounded (nnU-Net)."""
    last = max(size - window, 0)
    gaps = math.ceil(last / stride)
    return [0, *(round(last / gaps * index) for index in range(1, gaps + 1))]


def importance_map(window: tuple[int, ...], *, nnunet: bool = False) -> torch.Tensor:
    """Gaussian weights of the pixels of a window, with sigma an eighth of each side.

    MONAI centres them between the middle pixels of an even side, with a floor of 0.001; nnU-Net on the second of them, without a floor.
    """
    weight = torch.ones(())
    for side in window:
        offset = torch.arange(side) - (side // 2 if nnunet else (side - 1) / 2)
        weight = weight[..., None] * torch.exp(-(offset**2) / (2 * (side / 8) ** 2))
    return weight if nnunet else weight.clamp(min=1e-3)


def sliding_logits(
    model: Predict,
    image: torch.Tensor,
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] | None = None,
    overlap: float = 0.5,
    blend: Blend = "constant",
    batch: int = 1,
    prepare: Predict | None = None,
    stitch_device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Compute logits `[B, K, *size]`, float32, as the weighted average over all windows that cover a pixel.

    Args:
        model: returns logits of the size of its images.
        image: `[B, C, *size]`.
        window: sides of the window.
        stride: steps between windows; None derives them from `overlap`.
        overlap: share of a side that neighbouring windows have in common, from 0 to below 1.
        blend: weights within a window: "constant", all one; "gaussian", MONAI's; "nnunet", nnU-Net's, with its grid (`spread_starts`).
        batch: windows per call of the model.
        prepare: converts a crop of the image to the model's input (normalise, move to the device); None leaves it unchanged.
        stitch_device: device of the logits of the whole image.

    Raises:
        ValueError: windows would leave gaps, or `blend` is unknown.
    """
    size = tuple(image.shape[2:])
    sides, starts = _grid(size, window, stride, overlap, blend)
    weight = _weights(sides, size, blend).to(stitch_device)
    places = [_place(corner, sides, size) for corner in product(*starts)]
    covered = torch.zeros(size, device=stitch_device)
    for place in places:
        covered[place[2:]] += weight
    total: torch.Tensor | None = None
    for place, logits in _windows(model, image, places, sides, batch, prepare):
        if total is None:
            total = torch.zeros(*logits.shape[:2], *size, device=stitch_device)
        total[place].addcmul_(logits.to(stitch_device, torch.float32), weight)
    assert total is not None  # there is always a window
    return total.div_(covered)


def sliding_blocks(
    model: Predict,
    image: torch.Tensor,
    num_classes: int,
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    overlap: float = 0.5,
    blend: Blend = "constant",
    batch: int = 1,
    prepare: Predict | None = None,
    held_bytes: int = 2**28,
) -> Iterator[Block]:
    """Compute the logits of one image block by block, `[K, rows, columns]`, float32, on the CPU.

    Equal to `sliding_logits(...)` without storing the logits of the whole image: a band of one window's height is filled, and rows that
    no further window covers are a block. If a band of the full width is larger than `held_bytes` (150 classes in windows of 512 rows:
    above 873 columns), the image is processed in strips of columns, and the windows across a cut run twice.

    Args:
        model: as in `sliding_logits`.
        image: `[1, C, H, W]`, of any type that `prepare` accepts: a large image may stay uint8 on the CPU.
        num_classes: K of the logits.
        window, stride, overlap, blend, batch, prepare: as in `sliding_logits`.
        held_bytes: size of the band of logits. A strip is at least one stride wide.

    Yields:
        Where a block is, and its logits, which the next block replaces.

    Raises:
        ValueError: windows would leave gaps, `blend` is unknown, or there is not exactly one image.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image: expected one image [1, C, H, W], got {list(image.shape)}")
    height, width = size = tuple(image.shape[2:])
    sides, (rows, columns) = _grid(size, window, stride, overlap, blend)
    weight = _weights(sides, size, blend)
    tall = min(sides[0], height)
    strips = list(_strips(columns, width, held_bytes // (4 * num_classes * tall)))
    planes = num_classes + 1  # the last one is the sum of the weights
    held = torch.empty(planes * tall * max(right - left for left, right in strips))  # shared by all strips
    for left, right in strips:
        band = held[: planes * tall * (right - left)].view(planes, tall, -1).zero_()
        inside = [column for column in columns if column < right and column + sides[1] > left]
        for row, following in zip(rows, [*rows[1:], height], strict=True):
            places = [_place((row, column), sides, size) for column in inside]
            for (_, _, _, across), logits in _windows(model, image, places, sides, batch, prepare):
                start, stop = max(across.start, left), min(across.stop, right)
                cut, there = slice(start - across.start, stop - across.start), slice(start - left, stop - left)
                band[:-1, :, there].addcmul_(logits[0, ..., cut].to("cpu", torch.float32), weight[:, cut])
                band[-1, :, there] += weight[:, cut]
                del logits  # the logits of one window can be as large as the activations of the next
            done = following - row
            yield (slice(row, following), slice(left, right)), band[:-1, :done].div_(band[-1, :done])
            for plane in band:  # plane by plane, because a copy of the band would double its memory
                plane[: tall - done] = plane[done:].clone()
                plane[tall - done :] = 0


def class_map(model: Predict, image: torch.Tensor, num_classes: int, window: int | tuple[int, int], **settings: Any) -> torch.Tensor:
    """Predict the most likely class of each pixel of one image, `[H, W]`, uint8 (int16 above 255 classes), on the CPU.

    Args:
        num_classes: K of the logits; with 1, the map is 1 if the logit is positive.
        **settings: as in `sliding_blocks`, also all others.
    """
    classes = torch.empty(image.shape[2:], dtype=class_dtype(num_classes))
    for place, logits in sliding_blocks(model, image, num_classes, window, **settings):
        classes[place] = most_likely(logits)
    return classes


def resized_blocks(logits: torch.Tensor, size: tuple[int, int], held_bytes: int = 2**28) -> Iterator[Block]:
    """Compute `F.interpolate(logits, size)` of one image in bands of rows, `[K, rows, W]`, float32, on the device of the logits.

    Args:
        logits: `[1, K, h, w]`.
        size: `(H, W)`, for example of the original image.
        held_bytes: size of the band of resized logits.
    """
    source, (height, width) = logits[0].float(), size
    step = max(1, held_bytes // (4 * len(source) * width))
    scale = source.shape[1] / height
    for row in range(0, height, step):
        # Bilinear interpolation without aligned corners is separable: rows first, then columns.
        at = ((torch.arange(row, min(row + step, height), dtype=torch.float64) + 0.5) * scale - 0.5).clamp(min=0)
        above = at.long()
        share = (at - above).float().to(source.device)[:, None]
        above = above.to(source.device)
        band = torch.lerp(source[:, above], source[:, (above + 1).clamp(max=source.shape[1] - 1)], share)
        yield (slice(row, row + len(at)), slice(0, width)), resize_to(band[None], (len(at), width))[0]


def resized_classes(
    logits: torch.Tensor, size: tuple[int, int], held_bytes: int = 2**28, *, decide: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Compute `F.interpolate(logits, size).argmax(1)` of one image: `[H, W]`, uint8 (int16 above 255 classes), on the CPU.

    Args:
        logits, size, held_bytes: as in `resized_blocks`.
        decide: from logits `[K, rows, W]` to classes `[rows, W]`; default: `most_likely`.
    """
    classes = torch.empty(size, dtype=class_dtype(logits.shape[1]))
    for place, band in resized_blocks(logits, size, held_bytes):
        classes[place] = (decide or most_likely)(band).to("cpu", classes.dtype)
    return classes


def with_flips(model: Predict, axes: tuple[int, ...] = (-1,)) -> Predict:
    """Average the outputs of the model over all flips of the image along `axes`.

    Args:
        model: as in `sliding_logits`. If it ends in a softmax, probabilities are averaged, as in mmsegmentation's multi-scale
            figures; otherwise logits, as in nnU-Net.
        axes: -1 mirrors left and right, -2 top and bottom; both give four passes.
    """

    def predict(image: torch.Tensor) -> torch.Tensor:
        total = model(image).float()
        for chosen in list(product((False, True), repeat=len(axes)))[1:]:
            flipped = [axis for axis, flip in zip(axes, chosen, strict=True) if flip]
            total = total + model(image.flip(flipped)).float().flip(flipped)
        return total / 2 ** len(axes)

    return predict


def with_scales(model: Predict, scales: tuple[float, ...]) -> Predict:
    """Average the outputs of the model over resized copies of the image, each resized back.

    Args:
        model: as in `with_flips`; wrap the network in a sliding window first, so that it runs over the resized image.
        scales: factors of the image size.
    """

    def predict(image: torch.Tensor) -> torch.Tensor:
        height, width = size = (image.shape[2], image.shape[3])
        logits = [resize_to(model(resize_to(image, (round(height * scale), round(width * scale)))).float(), size) for scale in scales]
        return torch.stack(logits).mean(0)

    return predict


def class_dtype(num_classes: int) -> torch.dtype:
    """The type of class maps."""
    return torch.uint8 if num_classes <= 255 else torch.int16  # 255 is the ignore label


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The class with the largest of logits `[K, ...]`; of a single one, 1 where it is positive."""
    return logits.argmax(0) if len(logits) > 1 else logits[0] > 0


def _grid(
    size: tuple[int, ...], window: int | tuple[int, ...], stride: int | tuple[int, ...] | None, overlap: float, blend: Blend
) -> tuple[tuple[int, ...], list[list[int]]]:
    """Compute the sides of the window and its starts along each axis."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: expected a share from 0 to below 1, got {overlap}")
    sides = _per_axis(window, len(size))
    steps = tuple(max(1, int(side * (1 - overlap))) for side in sides) if stride is None else _per_axis(stride, len(size))
    if any(not 0 < step <= side for step, side in zip(steps, sides, strict=True)):
        raise ValueError(f"stride: expected 1 to the side of the window {sides}, got {steps}")
    if blend == "nnunet":
        wanted = steps if stride is not None else tuple(side * (1 - overlap) for side in sides)
        return sides, [spread_starts(*axis) for axis in zip(size, sides, wanted, strict=True)]
    return sides, [window_starts(*axis) for axis in zip(size, sides, steps, strict=True)]


def _per_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _weights(sides: tuple[int, ...], size: tuple[int, ...], blend: Blend) -> torch.Tensor:
    """Weights of a window, cropped to the image if that is smaller."""
    if blend not in typing.get_args(Blend):
        raise ValueError(f"blend: expected {' or '.join(typing.get_args(Blend))}, got {blend!r}")
    weight = torch.ones(sides) if blend == "constant" else importance_map(sides, nnunet=blend == "nnunet")
    return weight[_inside(sides, size)[2:]]


def _inside(sides: tuple[int, ...], size: tuple[int, ...]) -> Place:
    """Slices of the image in a padded window; the full window if the image is not smaller."""
    margins = [max(side - length, 0) // 2 for side, length in zip(sides, size, strict=True)]
    axes = zip(margins, sides, size, strict=True)
    return (*ALL, *(slice(margin, margin + min(side, length)) for margin, side, length in axes))


def _place(corner: tuple[int, ...], sides: tuple[int, ...], size: tuple[int, ...]) -> Place:
    axes = zip(corner, sides, size, strict=True)
    return (*ALL, *(slice(start, min(start + side, length)) for start, side, length in axes))


def _strips(columns: list[int], width: int, limit: int) -> Iterator[tuple[int, int]]:
    """Strips of at most `limit` columns, cut at window starts, which cuts the fewest windows."""
    left = 0
    edges = [*columns[1:], width]
    for edge, following in zip(edges, [*edges[1:], None], strict=True):
        if following is None or following - left > limit:
            yield left, edge
            left = edge


def _windows(
    model: Predict, image: torch.Tensor, places: list[Place], sides: tuple[int, ...], batch: int, prepare: Predict | None
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Yield the logits of each window without the padding."""
    inside = _inside(sides, tuple(image.shape[2:]))
    padding: list[int] = []
    for part, side in zip(reversed(inside[2:]), reversed(sides), strict=True):  # last axis first
        padding += [part.start, side - part.stop]
    for first in range(0, len(places), batch):
        chosen = places[first : first + batch]
        parts = [image[place] for place in chosen]
        with torch.no_grad():
            inputs = torch.cat([F.pad(prepare(part) if prepare else part, padding) for part in parts])
            outputs = model(inputs)[inside]
        yield from zip(chosen, outputs.split(len(image)), strict=True)
        del outputs
