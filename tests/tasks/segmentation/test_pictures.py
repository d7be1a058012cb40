"""How segmentation results are drawn: pictures of a run, tables and legends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import visionattn as va
from tests.tasks.segmentation.garden import CLASSES, PALETTE, picture
from visionattn.console import Console
from visionattn.data.masks.palettes import overlay
from visionattn.data.masks.settings import IGNORE
from visionattn.report.tables import print_evaluation
from visionattn.runs.load import load_model
from visionattn.tasks import TASKS
from visionattn.tasks.segmentation.pictures import legend_entries, with_legend
from visionattn.tasks.segmentation.scores import SmallMap


def test_tensorboard(garden_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(garden_run / "tb"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    pictures = {"train/augmented_batch", "val/predictions", "val/iou_per_class", "val/confusion_matrix", "learning_curves"}
    assert pictures <= set(tags["images"])
    assert {"val/miou", "val/dice", *(f"val_iou/{name}" for name in CLASSES)} <= set(tags["scalars"])


def test_evaluation_folder(garden_run: Path) -> None:
    folder = garden_run / "eval" / "val"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "segment" and metrics["count"] == 5 and 0 <= metrics["metrics"]["miou"] <= 1
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["class"] for row in rows] == CLASSES and {"iou", "dice", "pixel_share", "case_dice"} <= set(rows[0])
    images = list(csv.DictReader((folder / "per_image.csv").open()))
    assert len(images) == 5 and {"id", "miou", "dice"} <= set(images[0])
    assert (folder / "confusion.png").is_file() and (folder / "per_class.png").is_file()
    worst = sorted((folder / "worst").glob("*.png"))
    order = [name for name, _ in sorted(((Path(row["id"]).stem, float(row["dice"])) for row in images), key=lambda item: item[1])]
    assert [path.stem[-1] for path in worst] == order[: len(worst)] and worst, "worst first"
    with Image.open(worst[0]) as shown:
        assert shown.width == 3 * 256 + 12 and shown.height > 20 + 192, "three pictures, their names and a legend"


def test_report_and_console(garden_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (garden_run / "report.html").read_text()
    assert ">IoU</th>" in page and "Worst images" in page and all(f"<td>{name}</td>" in page for name in CLASSES)
    task = TASKS["segment"]
    print_evaluation(va.evaluate(garden_run, console=Console(quiet=True)), task.display, task.unit, Console())
    text = capsys.readouterr().out
    assert "leaf" in text and "pixels" in text and "mIoU" in text


def test_checkpoints_carry_the_palette(garden_run: Path) -> None:
    loaded = load_model(garden_run / "checkpoints" / "best")
    assert [tuple(colour) for colour in loaded.target["palette"]] == PALETTE and loaded.target["classes"] == CLASSES


def test_small_maps() -> None:
    large = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 300, 0), 300, 1)
    small = SmallMap.of(large).array()
    assert small.shape == (170, 256) and (cv2.resize(small, (3, 2), interpolation=cv2.INTER_NEAREST_EXACT) == [[0, 1, 2], [3, 4, 5]]).all()
    assert (SmallMap.of(large[:7, :9]).array() == large[:7, :9]).all()


def test_overlay_of_many_rows_equals_that_of_one() -> None:
    image, label = picture(3, (150, 30))
    label[100] = IGNORE
    shown = overlay(image, label, PALETTE, 0.25)
    wanted = np.where(
        ((label != IGNORE) & (label != 0))[:, :, None], 0.75 * image + 0.25 * np.array([*PALETTE, *[(0, 0, 0)] * 253])[label], image
    )
    assert shown.dtype == np.uint8 and np.abs(shown - wanted).max() <= 0.5


def test_legend() -> None:
    counts = np.array([5, 0, 9, 7])
    names, palette = ["a", "b", "c", "d"], [(number, 0, 0) for number in range(4)]
    assert legend_entries(counts, names, palette) == [("a", (0, 0, 0)), ("c", (2, 0, 0)), ("d", (3, 0, 0))]
    assert legend_entries(counts, names, palette, 2) == [("c", (2, 0, 0)), ("d", (3, 0, 0)), ("and 1 more", None)]
    plain = np.full((30, 400, 3), 7, np.uint8)
    shown = with_legend(plain, [("first", (250, 0, 0)), ("second", (0, 250, 0))])
    assert (shown[:30] == plain).all() and {(250, 0, 0), (0, 250, 0)} <= {tuple(pixel) for pixel in shown[30:].reshape(-1, 3).tolist()}
