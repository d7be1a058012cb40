"""Pictures of a run that every task has: TensorBoard, curves, grids. What a task adds is in its own module, see `training/view.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from visionattn.data.images import UnreadableImage
from visionattn.data.sets import Images


class Panel(NamedTuple):
    """A figure of an evaluation: `<name>.png`, `val/<title>` in TensorBoard, a chapter of the report."""

    name: str
    title: str
    figure: Figure


class Shown(NamedTuple):
    """An image of the report: name of its file, title and picture (H x W x 3 uint8)."""

    name: str
    title: str
    picture: np.ndarray


class TensorBoard:
    """Scalars and pictures in the run's `tb/`.

    Args:
        folder: of the events.
        purge_step: events from this step on are dropped from view, because the run goes on from there.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge_step or None)

    def scalars(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        self.writer.add_figure(tag, figure, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def unnormalise(image: torch.Tensor, cfg: dict[str, Any]) -> np.ndarray:
    """A normalised CHW tensor as H x W x 3 in 0..1."""
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = (image.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def picture_grid(pictures: Sequence[np.ndarray], titles: Sequence[str], colors: Sequence[str] | None = None, *, columns: int = 8) -> Figure:
    """Pictures in rows of at most `columns`, each with a title."""
    width, letters = 13.6 / columns, 208 // columns
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    steepest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    figure = Figure(figsize=(width * columns, (width * min(steepest, 1.0) + 0.3) * rows), layout="constrained")
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype != np.uint8 else 255)
        lines = [line if len(line) <= letters else line[: letters - 1] + "…" for line in title.split("\n")]
        axes.set_title("\n".join(lines), fontsize=7, color=colors[index] if colors else "black")
        axes.axis("off")
    return figure


def readable_picture(images: Images, index: int) -> np.ndarray | None:
    """An image to show, H x W x 3 uint8, at most 256 px per side; None if it cannot be read."""
    try:
        pixels = images.read(index)
    except UnreadableImage:
        return None
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((256, 256))
    return np.asarray(picture)


def confusion_figure(counts: np.ndarray, classes: list[str], title: str, texts: np.ndarray) -> Figure:
    """Rows are true classes; colour is the share of the row, `texts` are written into cells that count."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.42 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, texts[row, column], ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
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
    loss.plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], color="tab:blue", label="train, epoch")
    evaluated = [line for line in epochs if "val_loss" in line]
    loss.plot([line["epoch"] for line in evaluated], [line["val_loss"] for line in evaluated], color="tab:orange", label="val")
    loss.set(xlabel="epoch", ylabel="loss")
    for name in metrics:
        points = [(line["epoch"], line[f"val_{name}"]) for line in evaluated if line.get(f"val_{name}") is not None]
        if points:
            metric.plot(*zip(*points, strict=True), label=name)
    metric.set(xlabel="epoch", ylabel="val metric")
    rate.plot([line["step"] / per_epoch for line in steps], [line["lr"] for line in steps], color="tab:green", label="lr")
    rate.set(xlabel="epoch", ylabel="learning rate")
    for axes in (loss, metric, rate):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return figure
