"""Scores of volumes against MONAI, of regions, of empty cases, and of several processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from tests.data.volumes.made import balls, oblique
from visionattn.data.masks.settings import IGNORE
from visionattn.data.volumes.grid import Grid
from visionattn.tasks.batch import Batch
from visionattn.tasks.overlap import case_scores
from visionattn.tasks.volumes.predictor import VolumePrediction
from visionattn.tasks.volumes.scores import VolumeMeter, fullest_planes

GRID = Grid((24, 20, 12), oblique())
TARGET: dict[str, Any] = {"classes": ["background", "front", "back"], "regions": []}


def predicted(labels: np.ndarray, classes: int = 3) -> VolumePrediction:
    """Certain probabilities of a label map on GRID."""
    turned = torch.from_numpy(np.ascontiguousarray(GRID.to_canonical(labels))).long()
    return VolumePrediction([torch.nn.functional.one_hot(turned, classes).movedim(-1, 0).float()], GRID, False)


def batch(labels: np.ndarray, index: int = 0) -> Batch:
    return Batch({"label": torch.from_numpy(labels)[None]}, [index], [f"c{index}"], [f"c{index}"])


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask]))[None].float()


@pytest.mark.parametrize("seed", range(3))
def test_case_scores_are_monais(seed: int) -> None:
    random = np.random.default_rng(seed)
    spacing = random.uniform(0.5, 3, 3).tolist()
    _, truth = balls(seed)
    guess = np.roll(truth, tuple(random.integers(-2, 3, 3)), (0, 1, 2))
    for score in case_scores(guess, truth, 3, spacing, tolerance=1.5):
        masks = one_hot(guess == score.label), one_hot(truth == score.label)
        kind: dict[str, Any] = {"include_background": False, "spacing": spacing}
        assert score.dice == pytest.approx(float(compute_dice(*masks, include_background=False)), abs=1e-6)
        assert score.iou == pytest.approx(float(compute_iou(*masks, include_background=False)), abs=1e-6)
        assert score.hd95 == pytest.approx(float(compute_hausdorff_distance(*masks, percentile=95, **kind)), rel=1e-5)
        assert score.assd == pytest.approx(float(compute_average_surface_distance(*masks, symmetric=True, **kind)), rel=1e-5)
        assert score.nsd == pytest.approx(float(compute_surface_dice(*masks, class_thresholds=[1.5], **kind)), abs=1e-6)


def test_a_perfect_prediction_an_empty_one_and_one_that_misses() -> None:
    _, label = balls()
    ignored = label.copy()
    ignored[0] = IGNORE
    meter = VolumeMeter(TARGET, protocol="synapse")
    meter.update(predicted(label), batch(ignored))
    meter.update(predicted(0 * label), batch(0 * label, 1))
    meter.update(predicted(0 * label), batch(np.where(label == 1, label, 0), 2))
    scores = meter.result()
    front, back = scores.per_class
    diagonal = float(np.linalg.norm(np.array(GRID.spacing) * GRID.shape))
    assert (front["dice"], front["n_defined"], front["n_missed"]) == (0.5, 2, 1) and front["hd95"] == pytest.approx(diagonal / 2)
    assert (back["dice"], back["n_defined"], back["n_missed"], back["assd"]) == (1.0, 1, 0, 0.0)
    assert scores.metrics["dice"] == 0.75 and scores.intervals == {}
    assert "3 of 6 pairs of volume and class defined, 3 empty in both; 1 missed" in scores.remarks[0]
    assert [row["dice"] for row in scores.per_case] == [1.0, None, 0.0]
    # Published tables count an empty case as 0 and forget the distance of a missed one.
    assert [row["synapse_dice"] for row in scores.per_class] == pytest.approx([1 / 3, 1 / 3]) and scores.metrics["synapse_hd95"] == 0
    assert scores.case_values is not None and np.isnan(scores.case_values[1][1]).all()


def test_planes_go_through_the_most_of_a_mask() -> None:
    inside = np.zeros((12, 10, 8), bool)
    inside[1, 4, 2] = inside[9:12, 6:9, 5] = True  # between the two there is nothing
    inside[10, 7, 4:7] = True
    assert fullest_planes(inside) == (10, 7, 5) and fullest_planes(np.zeros((12, 10, 8), bool)) == (6, 5, 4)
    meter = VolumeMeter(TARGET)
    label = np.zeros(GRID.shape, np.uint8)
    label[20:23, 3:6, 8] = 2
    meter.update(predicted(np.roll(label, 5, 1)), batch(label))
    (planes,) = meter.result().details
    assert planes.places == fullest_planes(GRID.to_canonical(label > 0)), "those of the truth, where there is one"
    assert planes.plane(2, GRID.canonical_shape).sum() == 2 * 9


def test_regions_overlap() -> None:
    _, label = balls()
    inside = np.stack([label > 0, label == 2])
    parts = torch.from_numpy(np.ascontiguousarray(GRID.to_canonical(inside))).float()
    meter = VolumeMeter({"classes": ["whole", "core"], "regions": [[1, 2], [2]]})
    meter.update(VolumePrediction([parts], GRID, True), batch(label))
    meter.update(VolumePrediction([parts * torch.tensor([1.0, 0])[:, None, None, None]], GRID, True), batch(label, 1))
    assert [(row["class"], row["dice"]) for row in meter.result().per_class] == [("whole", 1.0), ("core", 0.5)]


def test_processes_and_models_together() -> None:
    labels = [balls(number)[1] for number in range(12)]
    guesses = [np.roll(label, number % 3, 0) for number, label in enumerate(labels)]
    whole, first, second = (VolumeMeter(TARGET) for _ in range(3))
    for number, (guess, label) in enumerate(zip(guesses, labels, strict=True)):
        for meter in (whole, second if number % 2 else first):
            meter.update(predicted(guess), batch(label, number))
    merged = VolumeMeter(TARGET)
    merged.merge([second.state(), first.state()])
    assert merged.result().metrics == whole.result().metrics and list(merged.result().per_case) == list(whole.result().per_case)
    low, high = whole.result().intervals["dice"]
    assert low < (whole.result().metrics["dice"] or 0) < high
    parts = predicted(labels[0]).parts + predicted(labels[1]).parts + predicted(labels[1]).parts
    np.testing.assert_array_equal(VolumePrediction(parts, GRID, False).labels(), labels[1])
