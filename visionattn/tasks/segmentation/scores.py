"""Segmentation scores: one confusion matrix per split, a row per image and, optionally, scores per case."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from visionattn.spill import Rows, Table, blocks
from visionattn.tasks.base import Scores
from visionattn.tasks.batch import Batch
from visionattn.tasks.means import mean, ratio
from visionattn.tasks.overlap import SCORES, CaseScore, ConfusionMatrix, HausdorffVariant, case_scores, pooled_f1_counts, summarise
from visionattn.tasks.segmentation.decision import thresholded
from visionattn.tasks.windows import resized_classes

# With fewer images, resampling does not estimate the spread.
LEAST_RESAMPLED = 10
DRAWS = 1000

# Per-class columns of case scores, and their names in a summary of cases.
CASE_COLUMNS = {"case_dice": "dice", "case_iou": "iou"} | {
    key: key for key in ("hd95", "nsd", "assd", "n_defined", "n_missed", "hd95_variant", "hd95_unit")
}

# Longest side of the small class maps kept for the pictures of an evaluation.
SMALL_SIDE = 256


class SmallMap(NamedTuple):
    """A compressed class map with at most SMALL_SIDE pixels per side: a few kilobytes per image."""

    height: int
    width: int
    data: bytes

    @classmethod
    def of(cls, class_map: np.ndarray) -> SmallMap:
        """Subsample the nearest pixels of a class map with at most 255 classes."""
        factor = max(1.0, max(class_map.shape) / SMALL_SIDE)
        rows, columns = (((np.arange(max(1, int(side / factor))) + 0.5) * factor).astype(int) for side in class_map.shape)
        small = class_map[rows][:, columns].astype(np.uint8)
        return cls(small.shape[0], small.shape[1], zlib.compress(small.tobytes()))

    def array(self) -> np.ndarray:
        """Decompress to uint8 (height, width)."""
        return np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.height, self.width)


@dataclass(frozen=True)
class Maps:
    """Data for the pictures of an evaluation.

    Attributes:
        confusion: pixel counts, true class x predicted class.
        small: prediction of each image, in the order of the split.
    """

    confusion: list[list[int]]
    small: Sequence[SmallMap]


class SegmentationMeter:
    """Count pixels over the split and score each image; predictions are resized to the label. Of many images, scores lie on the disk.

    Args:
        classes: class names; the background, if there is one, comes first.
        thresholds: of each class, see `pixel_thresholds`.
        per_case: score each image as a case.
        spacing: pixel size in mm (rows, columns) for distances; None measures in pixels.
        hausdorff: variant of the Hausdorff distance.
        tolerance: tolerance of the surface Dice, in mm or pixels.
        protocol: "pooled_f1" adds the score of `pooled_f1_counts`.
    """

    def __init__(
        self,
        classes: list[str],
        *,
        thresholds: torch.Tensor | None = None,
        per_case: bool = False,
        spacing: tuple[float, float] | None = None,
        hausdorff: HausdorffVariant = "max_directed",
        tolerance: float = 1.0,
        protocol: str = "none",
    ) -> None:
        self.classes, self.per_case = classes, per_case
        self.decide = None if thresholds is None else partial(thresholded, thresholds=thresholds)
        self.distances: dict[str, Any] = {"spacing": spacing, "variant": hausdorff, "tolerance": tolerance}
        self.matrix = ConfusionMatrix(len(classes))
        self.published = np.zeros((len(classes) - 1, 3), np.int64) if protocol == "pooled_f1" else None
        self.indices = array("q")
        self.rows: Rows[dict[str, Any]] = Rows()
        self.cases: Rows[list[CaseScore]] = Rows()
        self.small: Rows[SmallMap] = Rows()
        # Per image what intervals are resampled from: correct, true and predicted pixels of each class, Dice of each class from 1 on
        # (0 where it is not defined), and where it is defined.
        self.parts = Table()

    def update(self, predictions: torch.Tensor, batch: Batch) -> None:
        """Add logits `[B, K, h, w]` and labels `[B, H, W]`."""
        for position, (logits, label) in enumerate(zip(predictions, batch["label"], strict=True)):
            guess = resized_classes(logits[None], (label.shape[0], label.shape[1]), decide=self.decide).numpy()
            truth = label.cpu().numpy()
            self.matrix.update(guess, truth)
            if self.published is not None:
                self.published += pooled_f1_counts(guess, truth, len(self.classes))
            alone = ConfusionMatrix(len(self.classes), boundary=0)
            alone.update(guess, truth)
            scores, _ = alone.scores()
            row = {"index": batch.indices[position], "id": batch.ids[position], "case": batch.cases[position]}
            row |= {"miou": scores["miou"], "aacc": scores["aacc"]}
            case: list[CaseScore] = []
            if self.per_case:
                case = case_scores(guess, truth, len(self.classes), **self.distances)
                scores, _ = summarise([case])
                row |= {name: scores[name] for name in (*SCORES, "n_missed")}
            areas = [alone.counts.diagonal(), alone.counts.sum(1), alone.counts.sum(0)]
            dice = np.array([np.nan if score.dice is None else score.dice for score in case])
            self.indices.append(batch.indices[position])
            self.rows.append(row)
            self.cases.append(case)
            self.small.append(SmallMap.of(guess))
            self.parts.append(np.concatenate([*areas, np.nan_to_num(dice), np.isfinite(dice)])[None].astype(float))

    def state(self) -> Any:
        return self.matrix, self.published, self.indices, self.rows, self.cases, self.small, self.parts

    def merge(self, states: list[Any]) -> None:
        for matrix, published, indices, rows, cases, small, parts in states:
            self.matrix.add(matrix)
            if self.published is not None:
                self.published += published
            self.indices.extend(indices)
            self.rows.extend(rows)
            self.cases.extend(cases)
            self.small.extend(small)
            if len(rows):
                self.parts.append(parts.array())

    def result(self) -> Scores:
        """Compute metrics of pixels and cases; in rows of classes, means over cases are `case_dice`, `case_iou`, `hd95` and so on.

        Intervals (of `miou`, and of `dice` over cases) are the 2.5th to 97.5th percentile over images drawn with replacement.
        """
        order = np.argsort(self.indices, kind="stable")
        metrics, rows = self.matrix.scores(self.classes)
        if self.per_case:
            case_metrics, case_rows = summarise(self.cases.reordered(order), self.classes)
            metrics |= case_metrics
            for row, case in zip(rows, [{}, *case_rows], strict=False):  # the background has no case scores; without cases no class has
                row |= {name: case.get(key) for name, key in CASE_COLUMNS.items()}
        if self.published is not None:
            pooled = [ratio(2 * hits, truth + guess) for hits, truth, guess in self.published.tolist()]
            rows = [row | {"pooled_f1": value} for row, value in zip(rows, [None, *pooled], strict=True)]
            metrics["pooled_f1"] = mean(pooled)
        maps = Maps(self.matrix.counts.tolist(), self.small.reordered(order))
        intervals = {} if len(order) < LEAST_RESAMPLED else _intervals(self.parts.ordered(order), len(self.classes))
        remarks = _distance_remarks(rows, len(order), metrics)
        return Scores(metrics, rows, self.rows.reordered(order), intervals, remarks, details=maps)


def _distance_remarks(rows: list[dict[str, Any]], images: int, metrics: dict[str, float | None]) -> list[str]:
    """Describe the mean HD95: unit, variant, and the number of defined and missed pairs of case and class."""
    row = next((row for row in rows if row.get("hd95_unit")), None)
    if row is None:
        return []
    defined, missed = (int(metrics[name] or 0) for name in ("n_defined", "n_missed"))
    pairs = images * (len(rows) - 1)
    return [
        f"HD95 in {row['hd95_unit']} ({row['hd95_variant']}): {defined} of {pairs} cases defined, {pairs - defined} empty in both; "
        f"{missed} missed, counted with the diagonal of the image"
    ]


def _intervals(parts: np.ndarray, num_classes: int) -> dict[str, tuple[float, float]]:
    """Intervals of the values that can be computed from sums over images of `SegmentationMeter.parts`."""
    hits, truth, guess, *cases = np.split(_resampled(parts), [num_classes, 2 * num_classes, 3 * num_classes], axis=1)
    intervals = {"miou": _percentiles(hits, truth + guess - hits), "dice": _percentiles(*np.split(cases[0], 2, axis=1))}
    return {name: bounds for name, bounds in intervals.items() if bounds is not None}


def _resampled(values: np.ndarray) -> np.ndarray:
    """Sums of values `[images, columns]` over images drawn with replacement, `[draws, columns]`; equal for equal values."""
    count = len(values)
    generator, sums = np.random.default_rng(0), np.zeros((DRAWS, values.shape[1]))
    for draws in blocks(DRAWS, count):
        times = generator.multinomial(count, np.full(count, 1 / count), size=draws.stop - draws.start).astype(float)
        for images in blocks(count, values.shape[1]):
            sums[draws] += times[:, images] @ values[images]
    return sums


def _percentiles(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float] | None:
    """Percentiles of the mean over classes of parts / wholes `[draws, classes]`; classes empty in a draw are excluded from its mean."""
    defined = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=defined)
    drawn = defined.any(1)
    if not drawn.any():
        return None
    low, high = np.percentile(ratios[drawn].sum(1) / defined[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)
