"""Figures that every task can use: grids of pictures, a confusion matrix, learning curves; and how names are drawn in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from visionattn.names import shown

_TICK = 32  # most letters of a class name beside an axis


def picture_grid(pictures: Sequence[np.ndarray], titles: Sequence[str], colors: Sequence[str] | None = None, *, columns: int = 8) -> Figure:
    """Pictures in rows of at most `columns`, each with a title."""
    width, letters = 13.6 / columns, 208 // columns
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    steepest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    above = 0.34 + 0.13 * max(title.count("\n") for title in titles)  # inches
    figure = Figure(figsize=(width * columns, (width * min(steepest, 1.0) + above) * rows), layout="constrained")
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype != np.uint8 else 255)
        lines = [drawn(line, letters) for line in title.split("\n")]
        axes.set_title("\n".join(lines), fontsize=7, color=colors[index] if colors else "black")
        axes.axis("off")
    return figure


def confusion_figure(counts: np.ndarray, classes: list[str], title: str, texts: np.ndarray) -> Figure:
    """Rows are true classes; colour is the share of the row, `texts` are written into the cells that are not zero."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [drawn(name, _TICK) for name in classes] if len(classes) <= 40 else []
    side = min(16.0, 2.5 + 0.42 * len(classes)) + 0.05 * max(map(len, names), default=0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    if names:
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), names, fontsize=8)
    if len(classes) <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, texts[row, column], ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def reliability_figure(images: np.ndarray, right: np.ndarray, confidence: np.ndarray, title: str, unit: str = "images") -> Figure:
    """Accuracy over confidence in bins of equal width, and below it how many images each bin has.

    Args:
        images: of each bin.
        right: images of each bin with the right answer.
        confidence: sum of the probabilities of the answers of each bin.
        unit: what they are called.
    """
    width = 1 / len(images)
    centres = (np.arange(len(images)) + 0.5) * width
    used = images > 0
    accuracy, mean = right[used] / images[used], confidence[used] / images[used]
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(centres[used], accuracy, width, color="tab:blue", edgecolor="white", lw=0.5, label="accuracy")
    upper.bar(
        centres[used],
        mean - accuracy,
        width,
        accuracy,
        color="none",
        edgecolor="firebrick",
        hatch="////",
        lw=0.5,
        label="gap to confidence",
    )
    upper.plot([0, 1], [0, 1], color="grey", ls="--", lw=1, label="perfect calibration")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
    upper.set_title(title, fontsize=10)
    upper.legend(fontsize=7, loc="upper left")
    lower.bar(centres, images / images.sum(), width, color="lightsteelblue", edgecolor="white", lw=0.5)
    lower.set(xlabel="probability of the answer", ylabel=f"share of {unit}")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def curves_figure(history: list[dict[str, Any]], metrics: Sequence[str]) -> Figure:
    """Loss, the named validation metrics and learning rate over the epochs, from the lines of metrics.jsonl."""
    epochs = [line for line in history if line["kind"] == "epoch"]
    steps = [line for line in history if line["kind"] == "step"]
    per_epoch = epochs[0]["step"] / epochs[0]["epoch"] if epochs else 1
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, metric, rate = figure.subplots(1, 3)
    loss.plot(
        [line["step"] / per_epoch for line in steps], [line["loss"] for line in steps], color="lightsteelblue", lw=1, label="train, step"
    )
    point = {"marker": ".", "ms": 4}  # a run may have a single epoch
    loss.plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], color="tab:blue", label="train, epoch", **point)
    evaluated = [line for line in epochs if "val_loss" in line]
    loss.plot([line["epoch"] for line in evaluated], [line["val_loss"] for line in evaluated], color="tab:orange", label="val", **point)
    loss.set(xlabel="epoch", ylabel="loss")
    for name in metrics:
        points = [(line["epoch"], line[f"val_{name}"]) for line in evaluated if line.get(f"val_{name}") is not None]
        if points:
            metric.plot(*zip(*points, strict=True), label=name, **point)
    metric.set(xlabel="epoch", ylabel="val metric")
    rate.plot([line["step"] / per_epoch for line in steps], [line["lr"] for line in steps], color="tab:green", label="lr")
    rate.set(xlabel="epoch", ylabel="learning rate")
    for axes in (loss, metric, rate):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return figure


@dataclass(frozen=True)
class Point:
    """A named point of `scatter_figure`; points of a group share a colour, and one that is not `filled` is a ring."""

    name: str
    group: str
    x: float
    y: float
    filled: bool = True


def scatter_figure(points: Sequence[Point], title: str, xlabel: str, ylabel: str, note: str = "") -> Figure:
    """Points with their names beside them, over a logarithmic x axis; names are placed so that none covers another.

    Args:
        note: a line below the axes.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    colours = matplotlib.colormaps["tab10" if len(groups) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(9, 5 + 0.06 * len(points)), layout="constrained")
    axes = figure.add_subplot()
    for number, group in enumerate(groups):
        colour = colours[number % len(colours)]
        for filled in (True, False):
            chosen = [point for point in points if point.group == group and point.filled == filled]
            face = {"color": colour} if filled else {"facecolors": "white", "edgecolors": [colour]}
            axes.scatter([point.x for point in chosen], [point.y for point in chosen], s=34, zorder=3, **face)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.margins(x=0.14, y=0.1)
    axes.grid(alpha=0.3, which="both")
    if note:
        figure.text(0.5, 0, note, fontsize=7, ha="center", va="bottom", color="dimgrey")
        figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(figure).draw()  # lays the axes out
    _name_points(axes, points, [colours[groups.index(point.group) % len(colours)] for point in points])
    return figure


def _name_points(axes: Any, points: Sequence[Point], colours: Sequence[Any]) -> None:
    """Write the name of each point at the nearest free place around it, with a line to it where that is far."""
    renderer = axes.figure.canvas.get_renderer()
    places = axes.transData.transform([(point.x, point.y) for point in points])
    frame, unit = axes.get_window_extent(), axes.figure.dpi / 72
    taken = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in places]
    for point, (x, y), colour in zip(points, places, colours, strict=True):
        text = axes.annotate(
            drawn(point.name, 40),
            (point.x, point.y),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=[0.6 * part for part in colour],
        )
        extent = text.get_window_extent(renderer)
        width, height = extent.width + 2 * unit, extent.height
        best, best_cost = (7.0, 0.0), math.inf
        for ring in range(8):
            for side in (0, 1, -1):  # right, above and below to the right; then to the left
                for left in (False, True):
                    across = -width / unit - 7 if left else 7.0
                    down = side * (9 + 10 * ring) if side else 0.0
                    box = Bbox.from_bounds(x + across * unit, y + down * unit - height / 2, width, height)
                    overlap = sum(_shared(box, other) for other in taken)
                    outside = width * height - _shared(box, frame)
                    cost = 6 * overlap + 6 * outside + 12 * unit * abs(down) + 4 * unit * left
                    if cost < best_cost:
                        best, best_cost = (across, down), cost
        text.set_position(best)
        if abs(best[1]) > 12:
            axes.annotate(
                "",
                (point.x, point.y),
                (best[0] + (width / unit if best[0] < 0 else 0), best[1]),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkB": 3},
            )
        taken.append(Bbox.from_bounds(x + best[0] * unit, y + best[1] * unit - height / 2, width, height))


def _shared(first: Bbox, second: Bbox) -> float:
    """Area that two boxes have in common."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(0.0, width) * max(0.0, height)


# ---------------------------------------------------------------- names


def drawn(name: str, letters: int) -> str:
    """Write a name for matplotlib, which takes text between dollar signs for a formula: shortened, with letters its fonts have."""
    return shortened(name, letters, fonts()).replace("$", r"\$")


def shortened(name: str, letters: int, fonts: Sequence[str]) -> str:
    """Write a name in at most so many letters, the last an ellipsis if it is longer; letters that no font has become escapes.

    Args:
        fonts: files that the letters are taken from.
    """
    known = [_letters_of(font) for font in fonts]
    text = ""
    for letter in shown(name):
        text += letter if any(ord(letter) in font for font in known) else letter.encode("unicode_escape").decode()
        if len(text) > letters:
            return f"{text[: letters - 1]}…"
    return text


def fonts() -> Sequence[str]:
    """Files of the fonts that matplotlib is set to draw with: a letter comes from the first that has it."""
    found = []
    for family in matplotlib.rcParams["font.family"]:
        for name in matplotlib.rcParams.get(f"font.{family}", [family]):
            try:
                found.append(font_manager.findfont(name, fallback_to_default=False))
            except ValueError:  # not installed
                continue
    return found or [font_manager.findfont("DejaVu Sans")]  # shipped with matplotlib


@cache
def _letters_of(font: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(font).get_charmap())
