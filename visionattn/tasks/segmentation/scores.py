"""Segmentation scores: one confusion matrix per split, a row per image and, optionally, scores per case."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from visionattn.tasks.base import Scores
from visionattn.tasks.batch import Batch
from visionattn.tasks.segmentation.overlap import CaseScore, ConfusionMatrix, HausdorffVariant, case_scores, summarise
from visionattn.tasks.windows import resized_classes

# With fewer images, resampling does not estimate the spread.
LEAST_RESAMPLED = 10

# Per-class columns of case scores, and their names in a summary of cases.
CASE_COLUMNS = {"case_dice": "dice", "case_iou": "iou"} | {
    key: key for key in ("hd95", "nsd", "n_defined", "n_missed", "hd95_variant", "hd95_unit")
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
        small: prediction of each image by its position in the split.
    """

    confusion: list[list[int]]
    small: dict[int, SmallMap]


class ImageScores(NamedTuple):
    """Scores of one image: its row, its case scores, the correct, true and predicted pixels per class, and the predicted map."""

    row: dict[str, Any]
    case: list[CaseScore]
    areas: np.ndarray
    small: SmallMap


class SegmentationMeter:
    """Count pixels over the split and score each image; predictions are resized to the label.

    Args:
        classes: class names; the background, if there is one, comes first.
        per_case: score each image as a case.
        spacing: pixel size in mm (rows, columns) for distances; None measures in pixels.
        hausdorff: variant of the Hausdorff distance.
        tolerance: tolerance of the surface Dice, in mm or pixels.
    """

    def __init__(
        self,
        classes: list[str],
        *,
        per_case: bool = False,
        spacing: tuple[float, float] | None = None,
        hausdorff: HausdorffVariant = "max_directed",
        tolerance: float = 1.0,
    ) -> None:
        self.classes, self.per_case = classes, per_case
        self.distances: dict[str, Any] = {"spacing": spacing, "variant": hausdorff, "tolerance": tolerance}
        self.matrix = ConfusionMatrix(len(classes))
        self.images: list[ImageScores] = []

    def update(self, predictions: torch.Tensor, batch: Batch) -> None:
        """Add logits `[B, K, h, w]` and labels `[B, H, W]`."""
        for position, (logits, label) in enumerate(zip(predictions, batch["label"], strict=True)):
            guess = resized_classes(logits[None], (label.shape[0], label.shape[1])).numpy()
            truth = label.cpu().numpy()
            self.matrix.update(guess, truth)
            alone = ConfusionMatrix(len(self.classes), boundary=0)
            alone.update(guess, truth)
            scores, _ = alone.scores()
            row = {"index": batch.indices[position], "id": batch.ids[position], "case": batch.cases[position]}
            row |= {"miou": scores["miou"], "aacc": scores["aacc"]}
            case: list[CaseScore] = []
            if self.per_case:
                case = case_scores(guess, truth, len(self.classes), **self.distances)
                scores, _ = summarise([case])
                row |= {name: scores[name] for name in ("dice", "iou", "hd95", "nsd", "n_missed")}
            areas = np.stack([alone.counts.diagonal(), alone.counts.sum(1), alone.counts.sum(0)])
            self.images.append(ImageScores(row, case, areas, SmallMap.of(guess)))

    def state(self) -> Any:
        return self.matrix, self.images

    def merge(self, states: list[Any]) -> None:
        for matrix, images in states:
            self.matrix.add(matrix)
            self.images += images

    def result(self) -> Scores:
        """Compute metrics of pixels and cases; in rows of classes, means over cases are `case_dice`, `case_iou`, `hd95` and so on.

        Intervals (of `miou`, and of `dice` over cases) are the 2.5th to 97.5th percentile over images drawn with replacement.
        """
        images = sorted(self.images, key=lambda image: int(image.row["index"]))
        metrics, rows = self.matrix.scores(self.classes)
        if self.per_case:
            case_metrics, case_rows = summarise([image.case for image in images], self.classes)
            metrics |= case_metrics
            for row, case in zip(rows, [{}, *case_rows], strict=False):  # the background has no case scores; without cases no class has
                row |= {name: case.get(key) for name, key in CASE_COLUMNS.items()}
        maps = Maps(self.matrix.counts.tolist(), {image.row["index"]: image.small for image in images})
        remarks = _distance_remarks(rows, len(images), metrics)
        return Scores(metrics, rows, [image.row for image in images], _intervals(images, self.per_case), remarks, details=maps)


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


def _intervals(images: list[ImageScores], per_case: bool) -> dict[str, tuple[float, float]]:
    if len(images) < LEAST_RESAMPLED:
        return {}
    draws = np.random.default_rng(0).multinomial(len(images), np.full(len(images), 1 / len(images)), size=1000).astype(float)
    areas = np.stack([image.areas for image in images]).astype(float)  # images, 3, classes
    hits, truth, guess = (draws @ areas[:, kind] for kind in range(3))
    intervals: dict[str, tuple[float, float] | None] = {"miou": _percentiles(hits, truth + guess - hits)}
    if per_case:
        dice = np.array([[np.nan if score.dice is None else score.dice for score in image.case] for image in images])
        intervals["dice"] = _percentiles(draws @ np.nan_to_num(dice), draws @ np.isfinite(dice).astype(float))
    return {name: bounds for name, bounds in intervals.items() if bounds is not None}


def _percentiles(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float] | None:
    """Percentiles of the mean over classes of parts / wholes `[draws, classes]`; classes empty in a draw are excluded from its mean."""
    defined = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=defined)
    drawn = defined.any(1)
    if not drawn.any():
        return None
    low, high = np.percentile(ratios[drawn].sum(1) / defined[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)
