"""Scores of label maps of any dimension: confusion matrix over a dataset; overlap and surface distances of single cases.

Definitions: IoU and accuracy as in `mmseg.evaluation.IoUMetric` 1.2.2; boundary IoU of Cheng et al. (arXiv 2103.16562); Hausdorff distance
(95th percentile), average symmetric and normalised surface distance (Nikolov et al., arXiv 1809.04430) on surface pixels, as in MONAI
1.6.1. Libraries differ in the last three (Podobnik & Vrtovec, arXiv 2410.02630): DeepMind's surface-distance weights each surface
element by its area, medpy takes the percentile of both directions together. Results therefore name the variant.

Undefined values are None; they are excluded from means and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.ndimage import binary_erosion, binary_fill_holes, binary_opening, maximum_filter1d, minimum_filter1d
from scipy.spatial import KDTree

from visionattn.data.masks.settings import IGNORE
from visionattn.tasks.base import Metrics
from visionattn.tasks.means import mean, ratio

HausdorffVariant = Literal["max_directed", "pooled"]

SCORES = ("dice", "iou", "hd95", "nsd", "assd")  # of a case and class
DISTANCES = ("hd95", "assd")  # those of them that a missed case has none of


class ConfusionMatrix:
    """Pixels of each pair of true and predicted class, summed over a dataset.

    Args:
        num_classes: classes, including the background if it is one.
        boundary: width of the inner boundary of boundary IoU, as a fraction of the image diagonal; 0 disables boundary IoU.
    """

    def __init__(self, num_classes: int, *, boundary: float = 0.02) -> None:
        self.num_classes, self.boundary = num_classes, boundary
        self.counts = np.zeros((num_classes, num_classes), np.int64)  # true class, predicted class
        self.ignored = 0
        self.boundary_hits, self.boundary_union = np.zeros((2, num_classes), np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray) -> None:
        """Add an image.

        Args:
            pred: `[H, W]` classes.
            label: `[H, W]` classes; pixels of 255 are excluded, whatever the prediction.

        Raises:
            ValueError: sizes differ, or a class is out of range.
        """
        valid = _checked(pred, label, self.num_classes)
        truth, guess = label[valid].astype(np.int64), pred[valid].astype(np.int64)
        size = self.num_classes
        self.counts += np.bincount(truth * size + guess, minlength=size**2).reshape(size, size)
        self.ignored += int(valid.size - len(truth))
        if self.boundary:
            width = max(1, round(self.boundary * float(np.hypot(*label.shape))))
            true_edge = inner_boundary(label, width)[valid]
            # Ignored pixels belong to no class in either map, so that their rim is a boundary in both.
            guessed_edge = inner_boundary(np.where(valid, pred, IGNORE), width)[valid]
            hits = np.bincount(truth[true_edge & guessed_edge & (truth == guess)], minlength=size)
            self.boundary_hits += hits
            self.boundary_union += np.bincount(truth[true_edge], minlength=size) + np.bincount(guess[guessed_edge], minlength=size) - hits

    def add(self, other: ConfusionMatrix) -> None:
        """Add the images of another matrix of the same classes."""
        self.counts += other.counts
        self.ignored += other.ignored
        self.boundary_hits += other.boundary_hits
        self.boundary_union += other.boundary_union

    def scores(self, classes: Sequence[str] | None = None) -> tuple[Metrics, list[dict[str, Any]]]:
        """Compute metrics and a row per class (`class`, `iou`, `acc`, `dice`, `boundary_iou`, `pixel_share`), fractions from 0 to 1.

        Values of a class in neither prediction nor truth are None; a class that is only predicted has IoU and Dice 0 and no accuracy.
        Means are over the classes with a value. `ignored` is the share of ignored pixels, `pixel_share` the share of the class in the
        others. `boundary_iou` is missing without `boundary`.

        Args:
            classes: names of the classes; None uses their numbers.
        """
        names = [str(index) for index in range(self.num_classes)] if classes is None else classes
        hits, truth, guess = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        total = int(truth.sum())
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(names):
            row = {
                "class": name,
                "iou": ratio(hits[index], truth[index] + guess[index] - hits[index]),
                "acc": ratio(hits[index], truth[index]),
                "dice": ratio(2 * hits[index], truth[index] + guess[index]),
                "pixel_share": ratio(truth[index], total),
            }
            if self.boundary:
                row["boundary_iou"] = ratio(self.boundary_hits[index], self.boundary_union[index])
            rows.append(row)
        metrics: Metrics = {f"m{key}": mean([row[key] for row in rows]) for key in ("iou", "acc", "dice")}
        metrics["aacc"] = ratio(hits.sum(), total)
        if self.boundary:
            metrics["boundary_iou"] = mean([row["boundary_iou"] for row in rows])
        metrics["ignored"] = ratio(self.ignored, self.ignored + total)
        return metrics, rows


@dataclass(frozen=True)
class CaseScore:
    """One class of one case.

    Attributes:
        label: number of the class.
        dice: 2 TP / (2 TP + FP + FN); None if the class is in neither prediction nor truth, 0 if in one only.
        iou: TP / (TP + FP + FN), likewise.
        hd95: 95th percentile of the distances between the surfaces; None if the class is in neither, infinite if in one only.
        nsd: share of both surfaces within the tolerance of the other; None if the class is in neither, 0 if in one only.
        assd: mean distance of both surfaces from the other; None if the class is in neither, infinite if in one only.
        true_positives: number of pixels.
        false_positives: number of pixels.
        false_negatives: number of pixels.
        missed: whether the class is in one only, so that no distance is defined.
        diagonal: diagonal of the image, in the unit of `hd95`.
        variant: variant of `hd95`.
        unit: unit of `hd95` and `assd`: "mm", or "px" without a spacing.
    """

    label: int
    dice: float | None
    iou: float | None
    hd95: float | None
    nsd: float | None
    assd: float | None
    true_positives: int
    false_positives: int
    false_negatives: int
    missed: bool
    diagonal: float
    variant: HausdorffVariant
    unit: Literal["mm", "px"]


class _Total:
    """Sums over the cases of one class."""

    def __init__(self, first: CaseScore) -> None:
        self.label, self.kind = first.label, (first.variant, first.unit)
        self.sums = dict.fromkeys(SCORES, 0.0)  # over the cases where they are defined
        self.defined = self.missed = self.hits = self.wrong = 0

    def add(self, score: CaseScore) -> None:
        if (score.variant, score.unit) != self.kind:
            raise ValueError(f"cases with different kinds of HD95: {sorted({self.kind, (score.variant, score.unit)})}")
        self.hits += score.true_positives
        self.wrong += score.false_positives + score.false_negatives
        self.missed += score.missed
        if score.dice is None:
            return
        self.defined += 1
        for name in SCORES:
            self.sums[name] += score.diagonal if score.missed and name in DISTANCES else getattr(score, name)

    def row(self, name: str) -> dict[str, Any]:
        """Means and counts of the class."""
        means = {key: ratio(total, self.defined) for key, total in self.sums.items()}
        pooled = ratio(2 * self.hits, 2 * self.hits + self.wrong)
        counts = {"n_defined": self.defined, "n_missed": self.missed}
        variant, unit = self.kind
        return {"class": name, **means, "dice_pooled": pooled, **counts, "hd95_variant": variant, "hd95_unit": unit}


def case_scores(
    pred: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    spacing: Sequence[float] | None = None,
    *,
    variant: HausdorffVariant = "max_directed",
    tolerance: float = 1.0,
) -> list[CaseScore]:
    """Score one case for each class from 1 on; class 0 is the background.

    Args:
        pred: classes of any shape.
        label: classes; pixels of 255 become background in both.
        num_classes: classes including the background: 2 for one structure.
        spacing: size of a pixel in mm along each axis of the arrays; None measures in pixels.
        variant: "max_directed" takes the larger of the percentiles of the two directions (as MONAI), "pooled" the percentile of the
            distances of both together (as medpy).
        tolerance: tolerance of `nsd` in mm, or in pixels without a spacing.

    Raises:
        ValueError: shapes differ, a class is out of range, or the variant is unknown.
    """
    if variant not in ("max_directed", "pooled"):
        raise ValueError(f'variant: expected "max_directed" or "pooled", got {variant!r}')
    valid = _checked(pred, label, num_classes)
    pixel = np.ones(label.ndim) if spacing is None else np.asarray(spacing, float)
    if len(pixel) != label.ndim:
        raise ValueError(f"spacing: expected {label.ndim} numbers, one per axis, got {len(pixel)}")
    diagonal = float(np.linalg.norm(pixel * label.shape))
    scores = []
    for index in range(1, num_classes):
        truth, guess = (label == index) & valid, (pred == index) & valid
        true_positives = int((truth & guess).sum())
        false_positives, false_negatives = int(guess.sum()) - true_positives, int(truth.sum()) - true_positives
        wrong = false_positives + false_negatives
        in_truth, in_guess = true_positives + false_negatives > 0, true_positives + false_positives > 0
        hd95, nsd, assd = None, None, None
        if in_truth and in_guess:
            hd95, nsd, assd = _surface_scores(guess, truth, pixel, variant, tolerance)
        elif in_truth or in_guess:
            hd95, nsd, assd = float("inf"), 0.0, float("inf")
        scores.append(
            CaseScore(
                label=index,
                dice=ratio(2 * true_positives, 2 * true_positives + wrong),
                iou=ratio(true_positives, true_positives + wrong),
                hd95=hd95,
                nsd=nsd,
                assd=assd,
                true_positives=true_positives,
                false_positives=false_positives,
                false_negatives=false_negatives,
                missed=in_truth != in_guess,
                diagonal=diagonal,
                variant=variant,
                unit="px" if spacing is None else "mm",
            )
        )
    return scores


def synapse_scores(case: Sequence[CaseScore]) -> list[tuple[float, float]]:
    """Dice and HD95 of each class by the rule behind published tables on the Synapse multi-organ set, to compare with those only.

    A class that is only predicted counts as Dice 1 and distance 0, one that is not predicted as 0 and 0, present or not.

    Args:
        case: `case_scores` without spacing and of the variant "pooled": these tables measure in voxels, whatever their size.
    """
    rows = []
    for score in case:
        in_guess = score.true_positives + score.false_positives > 0
        if in_guess and not score.missed:
            rows.append((float(score.dice or 0), float(score.hd95 or 0)))
        else:
            rows.append((1.0 if in_guess else 0.0, 0.0))
    return rows


def pooled_f1_counts(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class from 1 on, `[classes - 1, 3]`: true positives, those of the truth, and those of the prediction.

    Summed over a data set, 2 TP / (truth + prediction) is the F1 that published tables on skin lesions call Dice, to compare with those
    only. The prediction of each class is opened by a square of 6 x 6 pixels and its holes are filled with the same square, as in the
    evaluation of Att-SwinU-Net.

    Args:
        pred: `[H, W]` classes.
        label: `[H, W]` classes; pixels of 255 are excluded.
    """
    valid, square = _checked(pred, label, num_classes), np.ones((6, 6), bool)
    counts = np.zeros((num_classes - 1, 3), np.int64)
    for index in range(1, num_classes):
        guess = binary_fill_holes(binary_opening(pred == index, square), square) & valid
        truth = (label == index) & valid
        counts[index - 1] = (guess & truth).sum(), truth.sum(), guess.sum()
    return counts


def summarise(cases: Iterable[Sequence[CaseScore]], classes: Sequence[str] | None = None) -> tuple[Metrics, list[dict[str, Any]]]:
    """Average over cases, then over classes; returns metrics and a row per class.

    `dice`, `iou`, `hd95`, `nsd` and `assd` of a class are means over the cases where they are defined: all except those with the class in
    neither prediction nor truth. A missed case (the class in one only) counts as Dice, IoU and NSD 0, with the diagonal of its image
    as distance. `dice_pooled` is the Dice over the pixels of all cases. `n_defined` and `n_missed` count pairs of case and class.
    Rows also contain `hd95_variant` and `hd95_unit`.

    Args:
        cases: `case_scores` of each case.
        classes: names of all classes, the background first; None uses their numbers.

    Raises:
        ValueError: variants or units are mixed.
    """
    totals: list[_Total] = []
    for case in cases:
        totals = totals or [_Total(score) for score in case]
        for total, score in zip(totals, case, strict=True):
            total.add(score)
    rows = [total.row(str(total.label) if classes is None else classes[total.label]) for total in totals]
    metrics: Metrics = {key: mean([row[key] for row in rows]) for key in (*SCORES, "dice_pooled")}
    metrics |= {key: float(sum(row[key] for row in rows)) for key in ("n_defined", "n_missed")}
    return metrics, rows


def inner_boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Find pixels at most `width` rows and columns away from another class or the outside of the image.

    For each class this is the mask minus its erosion by `width` steps of a 3 x 3 square, computed for all classes at once.
    """
    low = high = labels.astype(np.int16)
    for axis in range(labels.ndim):
        low = minimum_filter1d(low, 2 * width + 1, axis, mode="constant", cval=-1)
        high = maximum_filter1d(high, 2 * width + 1, axis, mode="nearest")
    return low != high


def _checked(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Check both maps and return the labelled pixels."""
    if pred.shape != label.shape:
        raise ValueError(f"prediction and label differ in size: {list(pred.shape)} and {list(label.shape)}")
    valid: np.ndarray = label != IGNORE
    for name, values in (("prediction", pred), ("label", label)):
        counted = values[valid]
        if counted.size and not 0 <= counted.min() <= counted.max() < num_classes:
            raise ValueError(f"{name}: expected classes 0 to {num_classes - 1}, got {counted.min()} to {counted.max()}")
    return valid


def _surface_scores(
    guess: np.ndarray, truth: np.ndarray, pixel: np.ndarray, variant: HausdorffVariant, tolerance: float
) -> tuple[float, float, float]:
    """HD95, NSD and ASSD of two non-empty masks."""
    box = _bounding_box(guess | truth)
    guess_points, truth_points = (_surface(mask[box]) * pixel for mask in (guess, truth))
    outward, inward = KDTree(truth_points).query(guess_points)[0], KDTree(guess_points).query(truth_points)[0]
    both = np.concatenate([outward, inward])
    hd95 = np.percentile(both, 95) if variant == "pooled" else max(np.percentile(outward, 95), np.percentile(inward, 95))
    return float(hd95), float((both <= tolerance).mean()), float(both.mean())


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices `[N, axes]` of the pixels of a mask that share a side with the outside of the mask or image."""
    return np.argwhere(mask & ~binary_erosion(mask))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)
