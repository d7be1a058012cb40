"""Scores against recorded figures of mmsegmentation, MONAI and medpy, and against slow, obvious versions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from visionattn.tasks.overlap import ConfusionMatrix, case_scores, inner_boundary, pooled_f1_counts, summarise, synapse_scores

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "fixtures" / "segmentation" / "metrics.json").read_text())


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*side) for side in sides)] = 1
    return mask


def ball(centre: tuple[int, ...], radius: float) -> np.ndarray:
    offsets = (np.indices((12, 16, 10)).transpose(1, 2, 3, 0) - centre) * (3.0, 1.5, 1.5)
    return ((offsets**2).sum(-1) <= radius**2).astype(np.uint8)


def binary_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prediction and truth of each recorded case, by the recorded rules."""
    plane, volume = (24, 20), (12, 16, 10)
    truth, shifted, nothing = box(plane, (4, 14), (5, 15)), box(plane, (6, 16), (5, 15)), np.zeros(plane, np.uint8)
    balls = ball((7, 8, 4), 7), ball((6, 8, 5), 8)
    two = box(volume, (2, 5), (3, 6), (2, 6)) | box(volume, (8, 10), (10, 14), (5, 9))
    return {
        "2d_shifted_box": (shifted, truth),
        "2d_shifted_box_aniso": (shifted, truth),
        "2d_outlier_pixel": (shifted | box(plane, (22, 23), (18, 19)), truth),
        "2d_perfect": (truth, truth),
        "2d_both_empty": (nothing, nothing),
        "2d_pred_empty": (nothing, truth),
        "2d_gt_empty": (truth, nothing),
        "2d_single_pixel": (box(plane, (6, 7), (7, 8)), box(plane, (3, 4), (3, 4))),
        "2d_touching_border": (box(plane, (0, 8), (0, 10)), box(plane, (0, 10), (0, 8))),
        "3d_balls_aniso": balls,
        "3d_balls_iso": balls,
        "3d_two_components": (two, box(volume, (2, 6), (3, 7), (2, 6))),
    }


def test_every_binary_record_is_tested() -> None:
    assert set(binary_cases()) == {name for name in RECORDS if name[:2] in ("2d", "3d")}


@pytest.mark.parametrize("name", sorted(binary_cases()))
def test_case_scores_are_those_of_monai_and_medpy(name: str) -> None:
    record, (pred, label) = RECORDS[name], binary_cases()[name]
    values = record["values"]
    assert (int(pred.sum()), int(label.sum())) == (record["pred_voxels"], record["gt_voxels"])
    (score,) = case_scores(pred, label, 2, record["spacing_mm"])
    (pooled,) = case_scores(pred, label, 2, record["spacing_mm"], variant="pooled")
    if name == "2d_both_empty":  # as nnU-Net: nothing to score
        assert (score.dice, score.iou, score.hd95, score.nsd, score.assd, score.missed) == (None, None, None, None, None, False)
        return
    # MONAI leaves an empty truth out unless told otherwise, which hides false positives; ours counts it as 0.
    assert score.dice == pytest.approx(values["monai_dice_ignore_empty_false"], abs=1e-6)
    assert score.dice == pytest.approx(values["medpy_dc"], abs=1e-12)
    assert score.iou == pytest.approx(values["monai_iou"], abs=1e-6)
    assert score.iou == pytest.approx(values["medpy_jc"], abs=1e-12)
    assert score.nsd == pytest.approx(values["monai_nsd_tol1"], abs=1e-6)
    if name in ("2d_pred_empty", "2d_gt_empty"):  # MONAI: NaN, then dropped; medpy: an error
        assert score.missed and score.hd95 == pooled.hd95 == score.assd == math.inf and values["monai_hd95"] == "nan"
        return
    assert score.hd95 == pytest.approx(values["monai_hd95"], rel=1e-6)
    assert pooled.hd95 == pytest.approx(values["medpy_hd95"], rel=1e-12)
    assert score.assd == pytest.approx(values["monai_assd"], rel=1e-6)
    assert score.assd == pytest.approx(values["medpy_assd"], rel=1e-12)
    (in_pixels,) = case_scores(pred, label, 2, variant="pooled")
    assert in_pixels.hd95 == pytest.approx(values["medpy_hd95_nospacing"], rel=1e-12)
    assert (score.unit, in_pixels.unit, score.variant, pooled.variant) == ("mm", "px", "max_directed", "pooled")


@pytest.mark.parametrize("name", sorted(binary_cases()))
def test_the_synapse_rule_is_that_of_the_recorded_code(name: str) -> None:
    (found,) = synapse_scores(case_scores(*binary_cases()[name], 2, variant="pooled"))
    assert found == pytest.approx(RECORDS[name]["values"]["transunet_rule_dice_hd95"], rel=1e-12)


def test_pooled_f1_takes_the_smoothed_prediction() -> None:
    """Specks and thin lines of a prediction go, holes are filled, and the truth stays as it is."""
    plane = (40, 34)
    lesion = box(plane, (6, 28), (5, 25))
    guess = lesion.copy()
    guess[14:18, 12:16] = 0  # a hole
    guess[32:37, 3:9] = 1  # five rows are too few for a square of six
    guess[10, 25:34] = 1  # a line
    truth = lesion.copy()
    truth[6:8], truth[30, 30] = 0, 1
    area = 22 * 20
    assert pooled_f1_counts(guess, truth, 2).tolist() == [[area - 40, area - 40 + 1, area]]
    ignored = truth.copy()
    ignored[:, :10] = 255
    assert pooled_f1_counts(guess, ignored, 2).tolist() == [[20 * 15, 20 * 15 + 1, 22 * 15]]
    wide = box(plane, (0, 6), (28, 34)) * 2  # a second class, which is no larger than the square
    assert pooled_f1_counts(guess + wide, truth + wide, 3).tolist() == [[area - 40, area - 39, area], [36, 36, 36]]


def test_summary_of_the_recorded_batch_by_our_rule() -> None:
    plane, record = (24, 20), RECORDS["monai_aggregation"]["values"]
    first = box(plane, (4, 14), (5, 15)), box(plane, (6, 16), (5, 15)) + 2 * box(plane, (0, 3), (0, 3))
    second = (
        box(plane, (2, 9), (2, 9)) + 2 * box(plane, (12, 20), (10, 16)),
        box(plane, (2, 9), (2, 9)) + 2 * box(plane, (12, 20), (10, 14)),
    )
    cases = [case_scores(pred, label, 3) for label, pred in (first, second)]
    metrics, rows = summarise(cases, ["background", "liver", "tumour"])
    # The case with a false positive counts, as with MONAI's ignore_empty=False.
    assert [row["dice"] for row in rows] == pytest.approx(record["dice_mean_batch_ignore_empty_False"]["v"], abs=1e-6)
    assert metrics["dice"] == pytest.approx(record["dice_mean_ignore_empty_False"], abs=1e-6)
    # MONAI drops its distance (2.0 remains for the tumour); ours counts it with the diagonal.
    assert [[None if isinstance(value, str) else value for value in row] for row in record["hd95_none"]] == [
        [None if math.isinf(score.hd95 or 0) else score.hd95 for score in case] for case in cases
    ]
    diagonal = math.hypot(*plane)
    assert [row["hd95"] for row in rows] == pytest.approx([record["hd95_mean_batch"][0], (diagonal + 2) / 2])
    assert metrics["hd95"] == pytest.approx((1 + (diagonal + 2) / 2) / 2)
    assert [(row["class"], row["n_defined"], row["n_missed"]) for row in rows] == [("liver", 2, 0), ("tumour", 2, 1)]
    assert (metrics["n_defined"], metrics["n_missed"]) == (4, 1)
    assert metrics["dice_pooled"] == pytest.approx((2 * (80 + 49) / (200 + 98) + 2 * 32 / (9 + 32 + 48)) / 2)
    assert {(row["hd95_variant"], row["hd95_unit"]) for row in rows} == {("max_directed", "px")}


def test_a_class_without_cases_is_undefined_and_counted() -> None:
    nothing, one = np.zeros((8, 8), np.uint8), box((8, 8), (2, 4), (2, 4))
    metrics, rows = summarise([case_scores(nothing, nothing, 3), case_scores(one, one, 3)])
    assert (rows[0]["dice"], rows[0]["hd95"], rows[0]["n_defined"]) == (1.0, 0.0, 1)
    assert (rows[1]["class"], rows[1]["dice"], rows[1]["hd95"], rows[1]["dice_pooled"], rows[1]["n_defined"]) == ("2", None, None, None, 0)
    assert (metrics["dice"], metrics["n_defined"], metrics["n_missed"]) == (1.0, 1, 0)
    empty, no_rows = summarise([])
    assert empty["dice"] is None and empty["n_defined"] == 0 and no_rows == []


def test_ignored_pixels_are_removed_from_a_case() -> None:
    pred, label = box((10, 10), (2, 8), (2, 8)), box((10, 10), (2, 8), (2, 8))
    label[:, 5:], pred[:, 6] = 255, 0
    (score,) = case_scores(pred, label, 2)
    assert (score.dice, score.hd95, score.true_positives, score.false_positives) == (1.0, 0.0, 18, 0)


def test_kinds_of_distances_are_not_mixed() -> None:
    mask = box((8, 8), (2, 4), (2, 4))
    with pytest.raises(ValueError, match="different kinds"):
        summarise([case_scores(mask, mask, 2), case_scores(mask, mask, 2, (1, 1))])
    with pytest.raises(ValueError, match="variant"):
        case_scores(mask, mask, 2, variant="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spacing"):
        case_scores(mask, mask, 2, (1.0, 1.0, 3.0))


def test_distances_of_random_masks_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for shape, spacing in (((13, 9), (0.7, 1.9)), ((6, 7, 5), (2.0, 1.0, 0.5))):
        pred, label = (rng.random((2, *shape)) < 0.4).astype(np.uint8)
        points = [np.argwhere(mask.astype(bool) & ~binary_erosion(mask)) * spacing for mask in (pred, label)]
        pairs = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
        there, back = pairs.min(1), pairs.min(0)
        (score,) = case_scores(pred, label, 2, spacing, tolerance=0.8)
        assert score.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
        assert score.nsd == pytest.approx(((there <= 0.8).sum() + (back <= 0.8).sum()) / (len(there) + len(back)))
        assert score.diagonal == pytest.approx(math.sqrt(sum((n * size) ** 2 for n, size in zip(shape, spacing, strict=True))))


def recorded_matrix(*pairs: tuple[str, str]) -> ConfusionMatrix:
    record = {**RECORDS["mmseg_multiclass"], **RECORDS["mmseg_two_images"]}
    matrix = ConfusionMatrix(6)
    for pred, label in pairs:
        matrix.update(np.array(record[pred]), np.array(record[label]))
    return matrix


def undefined(values: list[Any]) -> list[Any]:
    return [None if value == "nan" else pytest.approx(value, abs=1e-6) for value in values]


@pytest.mark.parametrize(
    ("name", "pairs"), [("mmseg_multiclass", [("pred", "gt")]), ("mmseg_two_images", [("pred", "gt"), ("pred2", "gt2")])]
)
def test_matrix_gives_the_figures_of_mmseg(name: str, pairs: list[tuple[str, str]]) -> None:
    values = RECORDS[name]["values"]
    metrics, rows = recorded_matrix(*pairs).scores()
    for column in ("IoU", "Acc", "Dice"):
        if column in values["per_class"]:
            assert [row[column.lower()] for row in rows] == undefined(values["per_class"][column])
            assert metrics[f"m{column.lower()}"] == pytest.approx(
                values["summary"][column] / 100, abs=5.1e-5
            )  # two decimals of a percentage
    assert metrics["aacc"] == pytest.approx(values["per_class"]["aAcc"][0], abs=1e-6)
    assert metrics["ignored"] == pytest.approx(10 / 80)
    if name == "mmseg_multiclass":
        truth = values["areas"][3]
        assert [row["pixel_share"] for row in rows] == pytest.approx([area / sum(truth) for area in truth])
        assert (rows[3]["iou"], rows[3]["acc"], rows[4]["iou"]) == (0.0, None, None)


def test_matrix_gives_the_jaccard_index_of_torchmetrics() -> None:
    """Its values by class are 0 where ours are undefined; both means leave these out."""
    metrics, rows = recorded_matrix(("pred", "gt")).scores()
    values = RECORDS["torchmetrics_multiclass"]["values"]
    assert [row["iou"] or 0.0 for row in rows] == pytest.approx(values["jaccard_none"], abs=1e-6)
    assert [row["iou"] is None for row in rows] == [False] * 4 + [True] * 2
    assert metrics["miou"] == pytest.approx(values["jaccard_macro"], abs=1e-6)


def test_matrices_add_up() -> None:
    whole = recorded_matrix(("pred", "gt"), ("pred2", "gt2"))
    part = recorded_matrix(("pred", "gt"))
    part.add(recorded_matrix(("pred2", "gt2")))
    assert part.scores() == whole.scores()


def test_nothing_to_score() -> None:
    metrics, rows = ConfusionMatrix(2).scores(["a", "b"])
    assert set(metrics.values()) == {None} and [row["class"] for row in rows] == ["a", "b"]
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((4, 4), 7), np.full((4, 4), 255))
    assert matrix.scores()[0]["miou"] is None and matrix.scores()[0]["ignored"] == 1.0


def test_classes_that_do_not_exist_are_errors() -> None:
    label = np.array([[0, 1], [255, 1]])
    ConfusionMatrix(2).update(np.array([[0, 1], [9, 1]]), label)  # what is predicted where the truth is unknown is of no concern
    for pred, truth, message in (
        (np.array([[0, 2], [0, 1]]), label, "prediction: expected classes 0 to 1, got 0 to 2"),
        (np.array([[0, -1], [0, 1]]), label, "prediction"),
        (np.array([[0, 1], [0, 1]]), label + 2, "label"),
        (np.array([[0, 1]]), label, "size"),
    ):
        with pytest.raises(ValueError, match=message):
            ConfusionMatrix(2).update(pred, truth)
        with pytest.raises(ValueError, match=message):
            case_scores(pred, truth, 2)


def slow_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width)


def test_boundary_is_the_mask_minus_its_erosion() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (5, 6)).repeat(9, 0).repeat(8, 1)
    for width in (1, 3):
        boundary = inner_boundary(labels, width)
        for index in range(3):
            assert np.array_equal(boundary & (labels == index), slow_boundary(labels == index, width))


def test_boundary_iou_sums_areas_over_the_images() -> None:
    rng = np.random.default_rng(2)
    matrix, areas = ConfusionMatrix(4), np.zeros((2, 4))
    for height, width in ((90, 120), (60, 70)):
        label = rng.integers(0, 3, (height // 30, width // 10)).repeat(30, 0).repeat(10, 1)
        pred = np.roll(label, 2, axis=1)
        label[:7] = 255
        matrix.update(pred, label)
        d = round(0.02 * math.hypot(height, width))
        for index in range(4):
            truth, guess = (slow_boundary((values == index) & (label != 255), d) for values in (label, pred))
            areas[:, index] += (truth & guess).sum(), (truth | guess).sum()
    metrics, rows = matrix.scores()
    expected = areas[0, :3] / areas[1, :3]
    assert [row["boundary_iou"] for row in rows] == [*(pytest.approx(value) for value in expected), None]
    assert metrics["boundary_iou"] == pytest.approx(expected.mean())
    assert expected.min() > 0.1 and expected.mean() < (metrics["miou"] or 0)
    without = ConfusionMatrix(4, boundary=0)
    without.update(pred, label)
    assert "boundary_iou" not in without.scores()[0] and "boundary_iou" not in without.scores()[1][0]
