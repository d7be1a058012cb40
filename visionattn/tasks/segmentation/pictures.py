"""Pictures of segmentation results.

Each image is shown as a strip: the image, its true classes, the predicted ones, and a legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from visionattn.data.masks.palettes import Colour, overlay
from visionattn.data.masks.sets import resize_labels
from visionattn.data.masks.settings import IGNORE
from visionattn.data.readers import UnreadableFile
from visionattn.figures import confusion_figure, drawn, fonts, picture_grid, shortened
from visionattn.names import shown
from visionattn.tasks.base import Confusion, Evaluation, Example, Panel, Pictures, Verdict
from visionattn.tasks.batch import Batch
from visionattn.tasks.images import as_picture, unnormalise
from visionattn.tasks.segmentation.data import MaskedImages
from visionattn.tasks.segmentation.scores import Maps

# Name and colour of a class in a legend; None is the colour of the entry that counts omitted classes.
Entry = tuple[str, Colour | None]

_SIDE = 256  # longer side of a picture in a strip, in pixels
_NAMED = 12  # most classes in a legend; the largest are shown
_LETTERS = 28  # most letters of a name in a legend
_TICK = 40  # and beside an axis


class SegmentationPictures(Pictures):
    """Pictures with the given classes and colours."""

    worst_caption = "image, truth and prediction, with the score of the image"
    worst_columns = 2

    def __init__(self, classes: list[str], palette: Sequence[Colour]) -> None:
        self.classes, self.palette = classes, palette

    def batch_figure(self, model: Any, batch: Batch, count: int) -> Figure | None:
        """Draw augmented images with the colours of their masks; None if there are none."""
        if not len(batch) or not count:
            return None
        pictures, seen = [], np.zeros(len(self.classes), np.int64)
        for image, label in zip(batch["image"][:count], batch["label"][:count].numpy(), strict=True):
            pixels = np.rint(unnormalise(image, model.pretrained_cfg) * 255).astype(np.uint8)
            pictures.append(_resized(overlay(pixels, label, self.palette)))
            seen += np.bincount(label.ravel(), minlength=256)[: len(self.classes)]
        figure = picture_grid(pictures, [""] * len(pictures))
        entries = legend_entries(seen, self.classes, self.palette, 24)
        labels = [f" {drawn(name, _LETTERS)}" for name, _ in entries]  # matplotlib leaves out those that begin with an underscore
        columns = max(1, int(figure.get_figwidth() / max(1.4, 0.5 + 0.06 * max(map(len, labels)))))  # inches
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(entries) // columns) + 0.1)
        handles = [
            Patch(
                facecolor=np.array(colour) / 255 if colour and any(colour) else "none",
                edgecolor="grey" if colour else "none",
                label=label,
            )
            for label, (_, colour) in zip(labels, entries, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
        return figure

    def predictions_figure(self, evaluation: Evaluation, dataset: MaskedImages, count: int) -> Figure | None:
        """Draw fixed images spread over the split, then the worst ones, up to half of `count` each."""
        rows = evaluation.scores.per_case
        spread = np.unique(np.linspace(0, len(rows) - 1, min(-(-count // 2), len(rows))).astype(int)).tolist()
        worst_rows = [row for row in _worst_rows(evaluation) if row not in spread][: count // 2]
        pictures, titles = [], []
        for row in [*spread, *worst_rows]:
            strip = self._strip(evaluation, dataset, row)
            if strip is not None:
                pictures.append(strip)
                titles.append(("worst: " if row in worst_rows else "") + _title(evaluation, row))
        return picture_grid(pictures, titles, columns=self.worst_columns) if pictures else None

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        """Draw scores per class and the confusion matrix."""
        return [
            # The report has the bars in its table of classes.
            Panel("per_class", "IoU per class", _class_figure(evaluation, self.palette), in_report=False),
            Panel(
                "confusion",
                "Confusion matrix",
                _confusion(evaluation, self.classes),
                "Each row is a true class: how many percent of its pixels are predicted as which class. Right ones are on the diagonal.",
                Confusion(np.array(evaluation.scores.details.confusion), self.classes, "pixels", counted=False),
            ),
        ]

    def worst(self, evaluation: Evaluation, dataset: MaskedImages, count: int) -> list[Example]:
        """Rank images by Dice if cases are scored, otherwise by mean IoU."""
        return self._examples(evaluation, dataset, _worst_rows(evaluation)[:count])

    def best(self, evaluation: Evaluation, dataset: MaskedImages, count: int) -> list[Example]:
        """Rank images as `worst`, the best first: at most half of them."""
        scores = [(score, -row) for row, facts in enumerate(evaluation.scores.per_case) if (score := _score(facts)[1]) is not None]
        rows = [-row for _, row in sorted(scores, reverse=True)][: min(count, -(-len(scores) // 2))]
        return self._examples(evaluation, dataset, rows)

    def verdicts(self, evaluation: Evaluation) -> list[Verdict]:
        """Compare with always predicting one class, and name the classes that are hardly found or not there at all."""
        scores, found = evaluation.scores, []
        shares = [row["pixel_share"] or 0.0 for row in scores.per_class]
        largest, right = int(np.argmax(shares)), evaluation.metrics.get("aacc")
        if right is not None:
            constant = f'calling every pixel "{shown(self.classes[largest])}" would be right for {100 * shares[largest]:.1f} %'
            found.append(Verdict(right > shares[largest], f"{100 * right:.1f} % of the pixels are right; {constant}"))
        weak = sorted((row["iou"], row["class"]) for row in scores.per_class if row["iou"] is not None and row["iou"] < 0.5)
        if weak:
            named = ", ".join(f"{shown(name)} ({100 * iou:.0f} %)" for iou, name in weak[:4])
            more = f" and {len(weak) - 4} more" if len(weak) > 4 else ""
            found.append(Verdict(False, f"the overlap (IoU) of these classes is below 50 %: {named}{more}"))
        else:
            found.append(Verdict(True, "the overlap (IoU) of every class is 50 % or more"))
        absent = [shown(row["class"]) for row in scores.per_class if not row["pixel_share"]]
        if absent:
            named = ", ".join(absent[:4]) + (" ..." if len(absent) > 4 else "")
            found.append(Verdict(False, f"nothing is known about {len(absent)} classes, of which the split has no pixel: {named}"))
        return found

    def _examples(self, evaluation: Evaluation, dataset: MaskedImages, rows: Sequence[int]) -> list[Example]:
        cases = []
        for rank, row in enumerate(rows):
            strip = self._strip(evaluation, dataset, row)
            if strip is not None:
                name = evaluation.scores.per_case[row]["id"]
                cases.append(Example(f"{rank + 1:02d}_{name.rpartition('.')[0] or name}", _title(evaluation, row), strip))
        return cases

    def _strip(self, evaluation: Evaluation, dataset: MaskedImages, row: int) -> np.ndarray | None:
        """Draw image, truth and prediction of a row of the evaluation; None if a file is no longer readable."""
        maps: Maps = evaluation.scores.details
        index = evaluation.scores.per_case[row]["index"]
        try:
            image = dataset.mask_set.images.read(index)
            truth = dataset.mask_set.label(index, (image.shape[0], image.shape[1]))
        except UnreadableFile:
            return None
        picture = _resized(as_picture(image, dataset.mask_set.images.settings.preview))
        size = (picture.shape[0], picture.shape[1])
        truth, guess = resize_labels(truth, size), resize_labels(maps.small[row].array(), size)
        counts = np.bincount(truth.ravel(), minlength=256) + np.bincount(guess.ravel(), minlength=256)
        counts[IGNORE] = 0
        parts = {"image": picture, "truth": overlay(picture, truth, self.palette), "prediction": overlay(picture, guess, self.palette)}
        return with_legend(_side_by_side(parts), legend_entries(counts[: len(self.classes)], self.classes, self.palette))


# ---------------------------------------------------------------- legends


def legend_entries(counts: np.ndarray, classes: Sequence[str], palette: Sequence[Colour], limit: int = _NAMED) -> list[Entry]:
    """List names and colours of the classes with pixels, in class order; only the largest if there are more than `limit`.

    Args:
        counts: pixels of each class.
    """
    largest = sorted(np.argsort(-counts, kind="stable")[:limit].tolist())
    entries: list[Entry] = [(classes[number], palette[number]) for number in largest if counts[number]]
    left_out = int(np.count_nonzero(counts)) - len(entries)
    return [*entries, (f"and {left_out} more", None)] if left_out else entries


def with_legend(picture: np.ndarray, entries: Sequence[Entry], size: int = 14) -> np.ndarray:
    """Add a legend below the picture, in rows as wide as the picture but at least 240 pixels.

    Black means no colour, as in overlays.

    Args:
        size: size of the letters in pixels.
    """
    font, gap, width = _font(size), size // 2, max(picture.shape[1], 240)
    places, left, top = [], gap, gap
    for name, colour in entries:
        name = shortened(name, _LETTERS, fonts()[:1])
        needed = int(size + gap + font.getlength(name))
        if left > gap and left + needed > width:
            left, top = gap, top + size + gap
        places.append((left, top, name, colour))
        left += needed + 2 * gap
    height = top + size + 2 * gap
    canvas = Image.new("RGB", (width, picture.shape[0] + height), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for x, y, name, colour in places:
        y += picture.shape[0]
        if colour is not None:
            draw.rectangle((x, y, x + size, y + size), fill=colour if any(colour) else None, outline="grey")
        draw.text((x + size + gap, y + size / 2), name, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(fonts()[0], size)


# ---------------------------------------------------------------- strips


def _side_by_side(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Join pictures of equal size, each below its name."""
    height, width = next(iter(parts.values())).shape[:2]
    cell, top, gap = max(width, 96), 20, 6
    canvas = Image.new("RGB", (len(parts) * (cell + gap) - gap, top + height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, picture) in enumerate(parts.items()):
        left = number * (cell + gap)
        canvas.paste(Image.fromarray(picture), (left + (cell - width) // 2, top))
        draw.text((left + cell / 2, top / 2), name, fill="black", font=_font(13), anchor="mm")
    return np.asarray(canvas)


def _resized(picture: np.ndarray) -> np.ndarray:
    """Resize so that the longer side is _SIDE."""
    factor = _SIDE / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    resized: np.ndarray = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return resized


def _score(row: dict[str, Any]) -> tuple[str, float | None]:
    return ("Dice", row["dice"]) if "dice" in row else ("mIoU", row["miou"])


def _worst_rows(evaluation: Evaluation) -> list[int]:
    """Sort rows of the evaluation by score, worst first, without perfect ones."""
    scores = [(score, row) for row, facts in enumerate(evaluation.scores.per_case) if (score := _score(facts)[1]) is not None]
    return [row for score, row in sorted(scores) if score < 1]


def _title(evaluation: Evaluation, row: int) -> str:
    facts = evaluation.scores.per_case[row]
    name, value = _score(facts)
    return f"{shown(facts['id'])}  {name} {'n/a' if value is None else f'{100 * value:.1f} %'}"


# ---------------------------------------------------------------- figures of the split


def _class_figure(evaluation: Evaluation, palette: Sequence[Colour]) -> Figure:
    """Draw a bar per class in its colour."""
    rows = evaluation.scores.per_class
    figure = Figure(figsize=(7.5, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    values = [row["iou"] or 0.0 for row in rows]
    axes.barh(range(len(rows)), values, color=[np.array(colour) / 255 for colour in palette], edgecolor="grey", linewidth=0.6)
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        text = "n/a" if row["iou"] is None else f"{100 * value:.1f}"
        axes.text(value + 0.01, number, text, va="center", fontsize=7)
    share = [f"{drawn(row['class'], _TICK)} ({100 * (row['pixel_share'] or 0):.1f} % of pixels)" for row in rows]
    axes.set_yticks(range(len(rows)), share, fontsize=7)
    axes.set(xlim=(0, 1.08), ylim=(len(rows) - 0.4, -0.6), xlabel="IoU")
    axes.set_title(f"{evaluation.split}: {evaluation.count} images, mean IoU {100 * (evaluation.metrics['miou'] or 0):.2f} %", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _confusion(evaluation: Evaluation, classes: list[str]) -> Figure:
    """Draw the confusion matrix in percent of the pixels of each true class."""
    maps: Maps = evaluation.scores.details
    counts = np.array(maps.confusion)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
    title = f"{evaluation.split}: {evaluation.count} images, {100 * (evaluation.metrics['aacc'] or 0):.2f} % of pixels correct"
    return confusion_figure(counts, classes, title, texts)
