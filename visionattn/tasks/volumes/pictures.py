"""Pictures of volumes: three planes through the labelled part, with the contours of truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from visionattn.data.masks.palettes import Colour, default_palette
from visionattn.data.readers import UnreadableFile
from visionattn.data.volumes.grid import Grid
from visionattn.figures import drawn, fonts, picture_grid
from visionattn.names import shown
from visionattn.tasks.base import Evaluation, Example, Panel, Pictures, Target, Verdict
from visionattn.tasks.batch import Batch
from visionattn.tasks.volumes.data import WholeVolumes, as_grey, grey_range, rule_of, slice_picture
from visionattn.tasks.volumes.objective import in_region
from visionattn.tasks.volumes.scores import fullest_planes, shown_labels

_SIDE = 200  # height of a plane in pixels
_GAP = 4
_NAMED = 8  # most classes in a legend


class VolumePictures(Pictures):
    """Pictures with the classes of a target."""

    worst_caption = "three planes, with the contours of the truth above and of the prediction below, and the score of the volume"
    worst_columns = 2

    def __init__(self, target: Target) -> None:
        self.target = target

    def batch_figure(self, model: Any, batch: Batch, count: int) -> Figure | None:
        """Draw the middle slices of augmented patches with the colours of their labels."""
        if not len(batch) or not count:
            return None
        images, labels = batch["image"].flatten(0, 1)[:count], batch["label"].flatten(0, 1)[:count]
        pictures = [slice_picture(image, label, len(self.target["values"])) for image, label in zip(images, labels, strict=True)]
        return picture_grid(pictures, [""] * len(pictures))

    def predictions_figure(self, evaluation: Evaluation, dataset: WholeVolumes, count: int) -> Figure | None:
        """Draw volumes spread over the split, at most four."""
        rows = evaluation.scores.per_case
        spread = np.unique(np.linspace(0, len(rows) - 1, min(count, 4, len(rows))).astype(int)).tolist()
        found = [(picture, _title(rows[row])) for row in spread if (picture := self._planes(evaluation, dataset, row)) is not None]
        return picture_grid([picture for picture, _ in found], [title for _, title in found], columns=2) if found else None

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        """Draw the scores of all volumes by class."""
        scores = evaluation.scores
        if scores.case_values is None:
            return []
        names, values = scores.case_values
        chosen = (("Dice", "dice "), ("HD95 in mm", "hd95 "), ("ASSD in mm", "assd "))
        figure = Figure(figsize=(9, 1.4 + 0.3 * len(scores.per_class)), layout="constrained")
        for number, (title, begin) in enumerate(chosen, 1):
            columns = [place for place, name in enumerate(names) if name.startswith(begin)]
            axes = figure.add_subplot(1, len(chosen), number, title=title)
            boxes = [column[np.isfinite(column)] for column in values[:, columns].T]
            known = signature(axes.boxplot).parameters
            sideways: dict[str, Any] = {"orientation": "horizontal"} if "orientation" in known else {"vert": False}  # matplotlib 3.9
            axes.boxplot(boxes, **sideways)
            if missed := int(np.isinf(values[:, columns]).sum()):
                axes.set_xlabel(f"without {missed} missed", fontsize=7)
            if number == 1:
                axes.set_xlim(-0.02, 1.02)
            labels = [drawn(names[place].removeprefix(begin), 28) for place in columns] if number == 1 else [""] * len(columns)
            axes.set_yticks(range(1, len(columns) + 1), labels, fontsize=7)
            axes.invert_yaxis()
            axes.grid(axis="x", alpha=0.3)
        note = "Each box holds the middle half of the volumes, the line in it is the median; circles are volumes far from the others."
        return [Panel("per_class", "Scores of volumes", figure, note)]

    def worst(self, evaluation: Evaluation, dataset: WholeVolumes, count: int) -> list[Example]:
        """Rank volumes by their mean Dice."""
        rows = evaluation.scores.per_case
        ranked = sorted((row["dice"], place) for place, row in enumerate(rows) if row["dice"] is not None and row["dice"] < 1)
        return self._examples(evaluation, dataset, [place for _, place in ranked[:count]])

    def best(self, evaluation: Evaluation, dataset: WholeVolumes, count: int) -> list[Example]:
        """Rank volumes as `worst`, the best first: at most half of them."""
        rows = evaluation.scores.per_case
        ranked = sorted(((row["dice"], -place) for place, row in enumerate(rows) if row["dice"] is not None), reverse=True)
        return self._examples(evaluation, dataset, [-place for _, place in ranked[: min(count, -(-len(ranked) // 2))]])

    def verdicts(self, evaluation: Evaluation) -> list[Verdict]:
        """Name the classes that are hardly found, and how often one is missed altogether."""
        scores, found = evaluation.scores, []
        weak = sorted((row["dice"], row["class"]) for row in scores.per_class if row["dice"] is not None and row["dice"] < 0.5)
        if weak:
            named = ", ".join(f"{shown(name)} ({100 * dice:.0f} %)" for dice, name in weak[:4])
            more = f" and {len(weak) - 4} more" if len(weak) > 4 else ""
            found.append(Verdict(False, f"the overlap (Dice) of these classes is below 50 %: {named}{more}"))
        elif scores.per_class:
            found.append(Verdict(True, "the overlap (Dice) of every class is 50 % or more"))
        missed, defined = (int(evaluation.metrics.get(name) or 0) for name in ("n_missed", "n_defined"))
        if missed:
            found.append(Verdict(False, f"{missed} of {defined} times a class is only in the prediction, or only in the truth"))
        return found

    def _examples(self, evaluation: Evaluation, dataset: WholeVolumes, places: Sequence[int]) -> list[Example]:
        rows = evaluation.scores.per_case
        cases = []
        for rank, place in enumerate(places, 1):
            if (picture := self._planes(evaluation, dataset, place)) is not None:
                name = rows[place]["id"].rpartition("/")[2].partition(".")[0]
                cases.append(Example(f"{rank:02d}_{name}", _title(rows[place]), picture))
        return cases

    def _planes(self, evaluation: Evaluation, dataset: WholeVolumes, row: int) -> np.ndarray | None:
        """Draw a volume of the evaluation; None if its files cannot be read any more."""
        index, planes = evaluation.scores.per_case[row]["index"], evaluation.scores.details[row]
        try:
            voxels, grid = dataset.part.image(index)
            truth = dataset.part.label(index, grid)
        except UnreadableFile:
            return None
        rule = rule_of(self.target)
        if rule.regions:
            inside = np.stack([in_region(truth, places) & (truth < 255) for places in rule.regions])
            truth = shown_labels(inside, regions=True)
        image, labels, shape = grid.to_canonical(voxels[0]), grid.to_canonical(truth), grid.canonical_shape
        limits = grey_range(voxels[0])
        greys = [as_grey(image.take(place, axis), limits) for axis, place in enumerate(planes.places)]
        true = [labels.take(place, axis) for axis, place in enumerate(planes.places)]
        upper = [plane_picture(greys[axis], true[axis], grid, axis) for axis in range(3)]
        lower = [plane_picture(greys[axis], planes.plane(axis, shape), grid, axis) for axis in range(3)]
        names = self.target["classes"] if not rule.regions else ["", *self.target["classes"]]
        return _stacked({"truth": upper, "prediction": lower}, _legend(names))


def three_planes(voxels: np.ndarray, labels: np.ndarray, grid: Grid, names: Sequence[str]) -> np.ndarray:
    """Draw a volume `[x, y, z]` of a file with the contours of labels, in the planes with the most of them; uint8 `[H, W, 3]`.

    Args:
        names: of the labels from 0 on.
    """
    image, labels = grid.to_canonical(voxels), grid.to_canonical(labels)
    limits = grey_range(voxels)
    pictures = [
        plane_picture(as_grey(image.take(place, axis), limits), labels.take(place, axis), grid, axis)
        for axis, place in enumerate(fullest_planes(labels > 0))
    ]
    return _stacked({"": pictures}, _legend(names))


def plane_picture(plane: np.ndarray, labels: np.ndarray, grid: Grid, axis: int) -> np.ndarray:
    """A canonical plane across an axis, uint8, with the contours of its labels and square pixels; the front, or up, is at the top."""
    across, along = (size for other, size in enumerate(grid.canonical_spacing) if other != axis)
    height = _SIDE
    width = max(8, min(3 * _SIDE, round(height * plane.shape[0] * across / (plane.shape[1] * along))))
    grey, classes = np.rot90(plane), np.rot90(labels)
    picture = np.repeat(cv2.resize(np.ascontiguousarray(grey), (width, height), interpolation=cv2.INTER_LINEAR)[..., None], 3, 2)
    large = cv2.resize(np.ascontiguousarray(classes.astype(np.uint8)), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    picture = np.ascontiguousarray(picture)
    for value in np.unique(large).tolist():
        if 0 < value < 255:
            outlines, _ = cv2.findContours((large == value).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, _colour(value), 1)
    return picture


def _colour(value: int) -> Colour:
    red, green, blue = default_palette(value + 1)[value]
    return min(255, 2 * red), min(255, 2 * green), min(255, 2 * blue)  # bright, because a contour is thin


def _legend(names: Sequence[str]) -> list[tuple[str, Colour]]:
    entries = [(shown(name)[:20], _colour(value)) for value, name in enumerate(names) if value]
    return entries[:_NAMED]


def _stacked(rows: dict[str, list[np.ndarray]], legend: Sequence[tuple[str, Colour]]) -> np.ndarray:
    """Rows of planes below each other, each with its name, and the legend below."""
    font = ImageFont.truetype(fonts()[0], 13)
    width = max(240, *(sum(plane.shape[1] + _GAP for plane in planes) for planes in rows.values()))
    height = sum(_SIDE + _GAP + (18 if name else 0) for name in rows) + 22
    canvas = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for name, planes in rows.items():
        if name:
            draw.text((_GAP, top + 9), name, fill="white", font=font, anchor="lm")
            top += 18
        left = 0
        for plane in planes:
            canvas.paste(Image.fromarray(plane), (left, top))
            left += plane.shape[1] + _GAP
        top += _SIDE + _GAP
    left = _GAP
    for name, colour in legend:
        draw.text((left, top + 11), name, fill=colour, font=font, anchor="lm")
        left += int(font.getlength(name)) + 12
    return np.asarray(canvas)


def _title(row: dict[str, Any]) -> str:
    value = row["dice"]
    return f"{shown(row['id'])}  Dice {'n/a' if value is None else f'{100 * value:.1f} %'}"
