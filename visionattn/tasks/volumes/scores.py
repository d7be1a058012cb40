"""Scores of volumes: overlap and surface distances of each class in each case, in mm, and their means."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from visionattn.spill import Rows, Table
from visionattn.tasks.base import Scores, Target
from visionattn.tasks.batch import Batch
from visionattn.tasks.overlap import SCORES, CaseScore, HausdorffVariant, case_scores, summarise, synapse_scores
from visionattn.tasks.volumes.objective import in_region
from visionattn.tasks.volumes.predictor import VolumePrediction, painted

# With fewer volumes, resampling does not estimate the spread.
LEAST_RESAMPLED = 10
PUBLISHED = ("synapse_dice", "synapse_hd95")
DRAWS = 1000


class Planes(NamedTuple):
    """Three canonical planes of a predicted label map, for the pictures of an evaluation.

    `places` are their positions along the axes; `data` the compressed planes, which have the shapes of the volume without that axis.
    """

    places: tuple[int, int, int]
    data: tuple[bytes, bytes, bytes]

    @classmethod
    def of(cls, labels: np.ndarray, places: tuple[int, int, int]) -> Planes:
        """Cut a canonical label map, uint8."""
        planes = [zlib.compress(np.ascontiguousarray(labels.take(place, axis)).tobytes()) for axis, place in enumerate(places)]
        return cls(places, (planes[0], planes[1], planes[2]))

    def plane(self, axis: int, shape: Sequence[int]) -> np.ndarray:
        """One of the planes of a volume of this shape."""
        sides = [side for other, side in enumerate(shape) if other != axis]
        return np.frombuffer(zlib.decompress(self.data[axis]), np.uint8).reshape(sides)


class VolumeMeter:
    """Score each volume on the grid of its file. Of many, scores lie on the disk.

    Args:
        target: classes, the background first, or regions.
        hausdorff: variant of the Hausdorff distance.
        tolerance: tolerance of the surface Dice in mm.
        protocol: "synapse" adds the scores of `synapse_scores`.
    """

    def __init__(
        self, target: Target, *, hausdorff: HausdorffVariant = "max_directed", tolerance: float = 1.0, protocol: str = "none"
    ) -> None:
        self.target, self.regions = target, target["regions"]
        self.names: list[str] = target["classes"] if self.regions else target["classes"][1:]
        self.distances: dict[str, Any] = {"variant": hausdorff, "tolerance": tolerance}
        self.published = Table() if protocol == "synapse" else None  # Dice and HD95 of each class in turn
        self.indices = array("q")
        self.rows: Rows[dict[str, Any]] = Rows()
        self.cases: Rows[list[CaseScore]] = Rows()
        self.planes: Rows[Planes] = Rows()
        self.values = Table()  # scores of each class in turn, NaN where they are not defined

    def update(self, predictions: VolumePrediction, batch: Batch) -> None:
        """Add one predicted volume and its labels on the grid of the file."""
        truth, grid, guess = batch["label"][0].cpu().numpy(), predictions.grid, predictions.labels()
        case = self._scores(guess, truth, spacing=grid.spacing, **self.distances)
        if self.published is not None:
            rows = synapse_scores(self._scores(guess, truth, variant="pooled"))
            self.published.append(np.array(rows, float).reshape(1, -1))
        means, _ = summarise([case], None)
        row = {"index": batch.indices[0], "id": batch.ids[0], "case": batch.cases[0]}
        self.indices.append(batch.indices[0])
        self.rows.append(row | {name: means[name] for name in (*SCORES, "n_missed")})
        self.cases.append(case)
        shown = shown_labels(guess, regions=bool(self.regions))
        true = (truth > 0) & (truth < 255)
        self.planes.append(Planes.of(grid.to_canonical(shown), fullest_planes(grid.to_canonical(true if true.any() else shown > 0))))
        scores = [[np.nan if (value := getattr(score, name)) is None else value for name in SCORES] for score in case]
        self.values.append(np.array(scores, float).reshape(1, -1))

    def _scores(self, guess: np.ndarray, truth: np.ndarray, **how: Any) -> list[CaseScore]:
        if not self.regions:
            return case_scores(guess, truth, len(self.names) + 1, **how)
        ignored = truth == 255
        found = []
        for number, places in enumerate(self.regions):
            inside = np.where(ignored, 255, in_region(truth, places)).astype(np.uint8)
            (score,) = case_scores(guess[number], inside, 2, **how)
            found.append(replace(score, label=number))
        return found

    def state(self) -> Any:
        return self.indices, self.rows, self.cases, self.planes, self.values, self.published

    def merge(self, states: list[Any]) -> None:
        for indices, rows, cases, planes, values, published in states:
            self.indices.extend(indices)
            self.rows.extend(rows)
            self.cases.extend(cases)
            self.planes.extend(planes)
            if len(rows):
                self.values.append(values.array())
                if self.published is not None:
                    self.published.append(published.array())

    def result(self) -> Scores:
        """Means over cases, then over classes, with the interval of `dice` over cases drawn with replacement."""
        order = np.argsort(self.indices, kind="stable")
        metrics, rows = summarise(self.cases.reordered(order), self.target["classes"])
        values = self.values.ordered(order)
        if self.published is not None:
            means = self.published.array().mean(0).reshape(-1, 2)
            for row, pair in zip(rows, means.tolist(), strict=True):
                row |= dict(zip(PUBLISHED, pair, strict=True))
            metrics |= dict(zip(PUBLISHED, means.mean(0).tolist(), strict=True))
        intervals = {} if len(order) < LEAST_RESAMPLED else _interval(values[:, :: len(SCORES)])
        columns = [f"{score} {name}" for name in self.names for score in SCORES]
        remarks = _remarks(rows, len(order), metrics)
        cases = self.rows.reordered(order)
        return Scores(metrics, rows, cases, intervals, remarks, (columns, values), details=self.planes.reordered(order))


def shown_labels(labels: np.ndarray, *, regions: bool) -> np.ndarray:
    """A label map to draw, uint8: classes as they are, of regions the number from 1 on of the last one that holds a voxel."""
    return painted(labels, range(1, len(labels) + 1), regions=True) if regions else labels


def fullest_planes(inside: np.ndarray) -> tuple[int, int, int]:
    """Place along each axis of the plane with the most voxels of a mask, of several the middle one; of an empty mask the middle."""
    places = []
    for axis in range(3):
        counts = inside.sum(tuple(other for other in range(3) if other != axis))
        fullest = np.flatnonzero(counts == counts.max())
        places.append(int(fullest[len(fullest) // 2]))
    return places[0], places[1], places[2]


def _remarks(rows: Sequence[dict[str, Any]], volumes: int, metrics: dict[str, float | None]) -> list[str]:
    """Describe the distances: variant, and the number of defined and missed pairs of case and class."""
    if not rows:
        return []
    defined, missed = (int(metrics[name] or 0) for name in ("n_defined", "n_missed"))
    pairs = volumes * len(rows)
    return [
        f"distances in mm (HD95 {rows[0]['hd95_variant']}): {defined} of {pairs} pairs of volume and class defined, "
        f"{pairs - defined} empty in both; {missed} missed, counted with the diagonal of the volume"
    ]


def _interval(dice: np.ndarray) -> dict[str, tuple[float, float]]:
    """2.5th to 97.5th percentile of the mean over classes of means over cases `[cases, classes]`, cases drawn with replacement."""
    draws = np.random.default_rng(0).integers(len(dice), size=(DRAWS, len(dice)))
    defined = ~np.isnan(dice)
    counts = defined[draws].sum(1)  # draws x classes
    means = np.nan_to_num(dice)[draws].sum(1) / np.where(counts, counts, np.nan)
    drawn = means[(counts > 0).any(1)]
    if not len(drawn):
        return {}
    low, high = np.percentile(np.nanmean(drawn, 1), (2.5, 97.5))
    return {"dice": (float(low), float(high))}
