"""The meter of segmentation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tests.tasks.segmentation.noise import CLASSES, batch, labels, noise, upsampled
from visionattn import spill
from visionattn.data.masks.settings import IGNORE
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.batch import Batch
from visionattn.tasks.segmentation.scores import SegmentationMeter


def scored(meter: SegmentationMeter, logits: torch.Tensor, label: torch.Tensor, first: int = 0) -> SegmentationMeter:
    meter.update(logits, batch(first, label=label))
    return meter


def test_meter_scores_at_the_size_of_the_label() -> None:
    logits, label = noise(2, 3, 5, 6), labels(2, 10, 12)
    scores = scored(SegmentationMeter(CLASSES), logits, label).result()
    guess = upsampled(logits, (10, 12)).argmax(1)
    keep = label != IGNORE
    ious = [float(((guess == k) & (label == k)).sum() / (((guess == k) | (label == k)) & keep).sum()) for k in range(3)]
    assert scores.metrics["miou"] == pytest.approx(np.mean(ious))
    assert scores.metrics["aacc"] == pytest.approx(float((guess == label)[keep].float().mean()))
    assert scores.metrics["ignored"] == pytest.approx(1 / 12)
    assert [row["class"] for row in scores.per_class] == CLASSES
    assert [row["iou"] for row in scores.per_class] == pytest.approx(ious)
    assert {"class", "iou", "acc", "dice", "pixel_share"} <= set(scores.per_class[0])
    assert sum(row["pixel_share"] for row in scores.per_class) == pytest.approx(1)
    assert [row["index"] for row in scores.per_case] == [0, 1] and [row["case"] for row in scores.per_case] == ["0.png", "1.png"]
    task = TASKS["segment"]
    assert {task.monitor(load_config(None, ["task=segment"])), "miou", "mdice", "aacc"} <= set(scores.metrics)
    assert scores.per_case[1]["aacc"] == pytest.approx(float((guess[1] == label[1])[keep[1]].float().mean()))


def test_states_of_several_processes_come_together() -> None:
    logits, label = noise(3, 3, 6, 6), labels(3, 6, 6)
    meters = [SegmentationMeter(CLASSES, per_case=True) for _ in range(4)]
    want = scored(meters[0], logits, label).result()
    parts = [scored(meters[1], logits[2:], label[2:], 2), scored(meters[2], logits[:2], label[:2])]
    whole = meters[3]
    whole.merge([pickle.loads(pickle.dumps(part.state())) for part in parts])
    assert whole.result() == want
    assert SegmentationMeter(CLASSES, per_case=True).result().metrics["miou"] is None


def test_cases() -> None:
    """Two images of two classes, told by one logit: a perfect one, and one whose cell is missed."""
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, 2:5, 2:5] = 1
    logits = torch.full((2, 1, 8, 8), -1.0)
    logits[0, 0, 2:5, 2:5] = 1.0
    scores = scored(SegmentationMeter(CLASSES[:2], per_case=True, spacing=(0.5, 0.5)), logits, label).result()
    assert scores.metrics["dice"] == 0.5 and scores.metrics["n_missed"] == 1 and scores.metrics["mdice"] is not None
    told = "HD95 in mm (max_directed): 2 of 2 cases defined, 0 empty in both; 1 missed, counted with the diagonal of the image"
    assert scores.remarks == [told]
    background, cell = scores.per_class
    assert background["case_dice"] is None and cell["case_dice"] == 0.5 and cell["hd95_unit"] == "mm" and set(background) == set(cell)
    assert cell["dice"] == pytest.approx(2 * 9 / (9 + 18))  # of all pixels together
    assert [row["dice"] for row in scores.per_case] == [1.0, 0.0]
    assert [row["hd95"] for row in scores.per_case] == [0.0, pytest.approx(4 * 2**0.5)]  # the diagonal, not infinity
    task = TASKS["segment"]
    assert task.monitor(load_config(None, ["task=segment", "eval.per_case=true"])) == "dice"
    assert set(task.display.metrics) <= set(scores.metrics)


def test_intervals_over_images() -> None:
    truth = torch.zeros(12, 8, 8, dtype=torch.int64)
    truth[:, :4] = 1
    truth[11] = IGNORE
    logits = torch.stack([truth == 0, truth == 1], 1).float()
    logits[0] = logits[0].flip(0)  # all wrong

    def intervals(indices: list[int]) -> dict[str, tuple[float, float]]:
        meter, scores = (SegmentationMeter(CLASSES[:2], per_case=True) for _ in range(2))
        names = [str(index) for index in indices]
        meter.update(logits[indices], Batch({"label": truth[indices]}, indices, names, names))
        scores.merge([pickle.loads(pickle.dumps(meter.state()))])
        result = scores.result()
        for name, (low, high) in result.intervals.items():
            value = result.metrics[name]
            assert value is not None and low <= value <= high
        return result.intervals

    assert intervals(list(range(1, 12))) == {"miou": (1.0, 1.0), "dice": (1.0, 1.0)}
    one_wrong = intervals(list(range(12)))
    assert one_wrong == intervals(list(reversed(range(12))))  # whatever process had which image
    assert one_wrong["dice"] == pytest.approx((8 / 11, 1.0), abs=0.08) and one_wrong["miou"][0] < one_wrong["dice"][0]
    assert intervals(list(range(5))) == {}


def test_the_pooled_f1_of_published_tables() -> None:
    """Over the pixels of all images, each class against the rest; of one and of several processes."""
    label = torch.zeros(2, 20, 24, dtype=torch.long)
    label[0, 2:14, 3:15], label[1, 5:15, 9:19] = 1, 1
    guess = label.clone()
    guess[0, 2:8, 3:15], guess[1, 0:3, 0:3] = 0, 1  # half of the first is missing, and a speck is in the second
    logits = torch.where(guess == 1, 1.0, -1.0)[:, None]
    meters = [SegmentationMeter(CLASSES[:2], protocol="pooled_f1") for _ in range(3)]
    scores = scored(meters[0], logits, label).result()
    want = 2 * (72 + 100) / (144 + 100 + 72 + 100)
    assert scores.metrics["pooled_f1"] == pytest.approx(want) and [row["pooled_f1"] for row in scores.per_class] == [
        None,
        pytest.approx(want),
    ]
    meters[2].merge([scored(meters[1], logits[1:], label[1:], 1).state(), scored(meters[1], logits[:1], label[:1]).state()][1:])
    assert meters[2].result().metrics == scores.metrics
    config = load_config(None, ["task=segment", "eval.protocol=pooled_f1"])
    meter = TASKS["segment"].meter(config, {"classes": CLASSES})
    assert isinstance(meter, SegmentationMeter) and meter.published is not None


def test_scores_of_many_images_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk and in small parts, also when processes come together out of order."""
    logits, label = noise(12, 3, 6, 6), labels(12, 6, 6)
    want = scored(SegmentationMeter(CLASSES, per_case=True), logits, label).result()
    monkeypatch.setattr(spill, "HELD_BYTES", 100)
    monkeypatch.setattr(spill, "BLOCK", 50)
    whole = SegmentationMeter(CLASSES, per_case=True)
    for part in (slice(5, 12), slice(0, 5)):
        whole.merge([scored(SegmentationMeter(CLASSES, per_case=True), logits[part], label[part], part.start).state()])
    got = whole.result()
    assert (got.metrics, got.per_class, got.per_case, got.details) == (want.metrics, want.per_class, want.per_case, want.details)
    assert got.intervals == {name: pytest.approx(bounds) for name, bounds in want.intervals.items()}
