"""Pictures of a run: TensorBoard panels, confusion matrix, learning curves, worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from visionattn.data.images import UnreadableImage
from visionattn.data.sets import ClassificationDataset, Data, ImageSet
from visionattn.tasks.classification import confusion_matrix
from visionattn.training.evaluation import Evaluation


class TensorBoard:
    """Scalars and pictures in the run's `tb/`.

    Args:
        folder: of the events.
        images: pictures per panel.
        purge_step: events from this step on are dropped from view, because the run goes on from there.
    """

    def __init__(self, folder: Path, images: int, purge_step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge_step or None)
        self.images = images

    def scalars(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def batch(self, tag: str, batch: dict[str, Any], classes: list[str], cfg: dict[str, Any]) -> None:
        """The first training batch as the network sees it."""
        pictures = [unnormalise(image, cfg) for image in batch["image"][: self.images]]
        titles = [label_text(label, classes) for label in batch["label"][: self.images].numpy()]
        if pictures:
            self.writer.add_figure(tag, picture_grid(pictures, titles), 0)

    def evaluation(
        self, evaluation: Evaluation, data: Data, dataset: Any, history: list[dict[str, Any]], step: int, *, pictures: bool
    ) -> None:
        """Metrics of the validation set; on a new best also predictions, confusion matrix and curves."""
        self.scalars("val", evaluation.metrics, step)
        if not pictures:
            return
        if self.images:
            self.writer.add_figure("val/predictions", predictions_figure(evaluation, dataset, data.classes, self.images), step)
        if evaluation.labels.ndim == 1:
            self.writer.add_figure("val/confusion_matrix", confusion_figure(evaluation, data.classes), step)
        self.writer.add_figure("learning_curves", curves_figure(history), step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def unnormalise(image: torch.Tensor, cfg: dict[str, Any]) -> np.ndarray:
    """A normalised CHW tensor as H x W x 3 in 0..1."""
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = (image.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def label_text(label: Any, classes: list[str]) -> str:
    """Class name of an index; names of all classes that are on in a vector."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return ", ".join(name for name, value in zip(classes, label, strict=True) if value > 0.5) or "none"


def picture_grid(pictures: Sequence[np.ndarray], titles: Sequence[str], colors: Sequence[str] | None = None) -> Figure:
    """Pictures in rows of at most eight, each with a title."""
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows), layout="constrained")
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype != np.uint8 else 255)
        lines = [line if len(line) <= 26 else line[:25] + "…" for line in title.split("\n")]
        axes.set_title("\n".join(lines), fontsize=7, color=colors[index] if colors else "black")
        axes.axis("off")
    return figure


def predictions_figure(evaluation: Evaluation, dataset: ClassificationDataset, classes: list[str], count: int) -> Figure:
    """Images spread over the split, titled truth -> guess; green where right, red where wrong."""
    rows = np.unique(np.linspace(0, evaluation.count - 1, min(count, evaluation.count)).astype(int))
    pictures, titles, colors = [], [], []
    for row in rows:
        picture = readable_picture(dataset.image_set, int(evaluation.indices[row]))
        if picture is None:
            continue
        probabilities, label = evaluation.probabilities[row], evaluation.labels[row]
        if np.ndim(label) == 0:
            guess = int(probabilities.argmax())
            right = guess == label
            text = f"{classes[guess]} {probabilities[guess]:.2f}"
        else:
            right = bool(((probabilities >= 0.5) == (label > 0.5)).all())
            text = label_text(probabilities, classes)
        pictures.append(picture)
        titles.append(text if right else f"{label_text(label, classes)} ->\n{text}")
        colors.append("green" if right else "firebrick")
    return picture_grid(pictures, titles, colors) if pictures else Figure()


def readable_picture(images: ImageSet, index: int) -> np.ndarray | None:
    """An image to show, H x W x 3 uint8, at most 256 px per side; None if it cannot be read."""
    try:
        pixels = images.images.read(index)
    except UnreadableImage:
        return None
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((256, 256))
    return np.asarray(picture)


def confusion_figure(evaluation: Evaluation, classes: list[str]) -> Figure:
    """Rows are true classes; colour is the share of the row, numbers are counts."""
    counts = confusion_matrix(evaluation.probabilities, evaluation.labels)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.42 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    top1 = evaluation.metrics["top1"]
    axes.set_title(f"{evaluation.split}: {evaluation.count} images, top-1 {100 * (top1 or 0):.2f} %", fontsize=10)
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def curves_figure(history: list[dict[str, Any]]) -> Figure:
    """Loss, metric and learning rate over the epochs, from the lines of metrics.jsonl."""
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
    for name in ("top1", "balanced_accuracy", "macro_f1", "auroc"):
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


def worst_rows(evaluation: Evaluation, count: int) -> list[int]:
    """Rows of an evaluation by how little probability the truth got, worst first; only wrong ones."""
    probabilities, labels = evaluation.probabilities, evaluation.labels
    if labels.ndim == 1:
        truth = probabilities[np.arange(len(labels)), labels]
        wrong = probabilities.argmax(1) != labels
    else:
        truth = 1 - np.abs(probabilities - labels).max(1)
        wrong = truth < 0.5
    order = np.argsort(truth, kind="stable")
    return [int(row) for row in order if wrong[row]][:count]
