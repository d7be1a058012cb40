"""Figures that every task can use: grids of pictures, a confusion matrix, learning curves; and how names are drawn in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

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
