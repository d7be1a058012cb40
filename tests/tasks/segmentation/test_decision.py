"""Thresholds, probabilities and confidence of pixels, against slow, obvious versions and through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import visionattn as va
from tests.tasks.segmentation.garden import CLASSES
from tests.tasks.segmentation.noise import noise
from tests.tasks.segmentation.test_output import Levels
from visionattn import spill
from visionattn.cli import app
from visionattn.errors import UserError
from visionattn.runs.load import load_model
from visionattn.tasks import TASKS
from visionattn.tasks.segmentation import predictor
from visionattn.tasks.segmentation.decision import image_maps, pixel_thresholds, thresholded
from visionattn.tasks.windows import resized_blocks


def slow(found: np.ndarray, limits: list[float | None]) -> int:
    """Compute the class of one pixel by the documented rule."""
    reached = [number for number, limit in enumerate(limits) if limit is not None and found[number] >= limit]
    pool = reached or [number for number, limit in enumerate(limits) if limit is None]
    return max(pool, key=lambda number: found[number])


@pytest.mark.parametrize("given", [{"leaf": 0.2}, {"leaf": 0.8}, {"leaf": 0.3, "stone": 0.6}, {"ground": 0.9, "stone": 0.1}])
def test_thresholds_of_pixels(given: dict[str, float]) -> None:
    logits = noise(3, 6, 9) * 2
    thresholds = pixel_thresholds(given, CLASSES)
    assert thresholds is not None
    got = thresholded(logits, thresholds).numpy()
    found, limits = logits.softmax(0).numpy(), [given.get(name) for name in CLASSES]
    want = [[slow(found[:, row, column], limits) for column in range(9)] for row in range(6)]
    np.testing.assert_array_equal(got, want)
    assert (got != found.argmax(0)).any()


def test_one_logit_is_two_classes() -> None:
    logits = torch.tensor([[[-1.0, 0.1, 2.0]]])
    thresholds = pixel_thresholds({"crack": 0.8}, ["background", "crack"])
    assert thresholds is not None and thresholded(logits, thresholds).tolist() == [[0, 0, 1]]
    maps = image_maps([((slice(0, 1), slice(0, 3)), logits)], (1, 3), 2, None, ("probs", "confidence"))
    assert maps.probabilities is not None and maps.confidence is not None and maps.classes.tolist() == [[0, 1, 1]]
    np.testing.assert_allclose(maps.probabilities[1, 0], torch.sigmoid(logits[0, 0]), atol=1e-3)
    assert maps.confidence[0].tolist() == [186, 134, 225]


def test_which_classes_have_thresholds() -> None:
    found = pixel_thresholds(0.7, ["background", "cat", "dog"])
    assert found is not None and found.tolist() == pytest.approx([np.inf, 0.7, 0.7])
    assert pixel_thresholds(None, ["cat"]) is None
    for given, classes in ((0.7, ["cat", "dog"]), ({"cat": 0.1, "dog": 0.1}, ["cat", "dog"])):
        with pytest.raises(UserError, match="every class has a threshold"):
            pixel_thresholds(given, classes)
    with pytest.raises(UserError, match=r"is not a class[\s\S]*Did you mean cat"):
        pixel_thresholds({"kat": 0.1}, ["cat", "dog"])


def test_maps_are_those_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = noise(1, 3, 9, 14) * 2
    size = (23, 31)
    whole = torch.nn.functional.interpolate(logits, size, mode="bilinear")[0].softmax(0).numpy()
    monkeypatch.setattr(spill, "HELD_BYTES", 100)
    maps = image_maps(resized_blocks(logits, size, held_bytes=4 * 3 * 31 * 5), size, 3, None, ("probs", "confidence"))
    assert isinstance(maps.probabilities, np.memmap) and maps.probabilities.dtype == np.float16 and maps.confidence is not None
    np.testing.assert_allclose(maps.probabilities, whole, atol=1e-3)
    np.testing.assert_array_equal(maps.classes, whole.argmax(0))
    np.testing.assert_allclose(maps.confidence / 255, whole.max(0), atol=0.0021)
    half = maps.resized((11, 15))
    assert half.probabilities is not None and half.confidence is not None and half.probabilities.shape == (3, 11, 15)
    assert ((half.probabilities.argmax(0) == half.classes).mean(), half.confidence.shape) == (1.0, (11, 15))


def test_saved_maps(garden_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["predict", garden_run, photos, "--out", out, "--save", "mask,probs,confidence,json"]
    answer = CliRunner().invoke(app, list(map(str, words)))
    assert answer.exit_code == 0, answer.output
    assert f"{out / 'probabilities'}: 4 files" in answer.stdout and f"{out / 'classes.txt'}\n" in answer.stdout
    assert (out / "classes.txt").read_text() == "ground\nleaf\nstone\n"
    for item in json.loads((out / "predictions.json").read_text())["predictions"]:
        mask, confidence = (np.asarray(Image.open(item[kind])) for kind in ("mask", "confidence"))
        found = np.load(item["probabilities"], allow_pickle=False)
        assert found.dtype == np.float16 and found.shape == (3, item["height"], item["width"]) and confidence.dtype == np.uint8
        np.testing.assert_allclose(found.astype(float).sum(0), 1, atol=2e-3)
        chosen = np.take_along_axis(found, mask[None].astype(int), 0)[0].astype(float)
        np.testing.assert_allclose(chosen, found.max(0), atol=1e-3)
        np.testing.assert_allclose(confidence / 255, chosen, atol=3e-3)
    with pytest.raises(UserError, match="VA-R007"):
        va.predict(garden_run, photos, out=out, save=["probs"])
    assert va.predict(garden_run, photos / "odd.png", save=["probs"])[0][0].as_dict().keys() == {"path", "height", "width", "shares"}


def test_a_large_image_has_the_same_maps(garden_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(garden_run)
    levels = Levels()
    levels.pretrained_cfg = loaded.model.pretrained_cfg
    kinds, place = ("probs", "confidence"), torch.device("cpu")
    mapper: Any = TASKS["segment"].file_predictor(loaded.config, loaded.target, levels, place, kinds, lambda text: None)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    whole = mapper.maps(image)
    monkeypatch.setattr(predictor, "LARGE_PIXELS", 70 * 90 - 1)
    for found, want in zip(mapper.maps(image), whole, strict=True):
        np.testing.assert_allclose(found, want, atol=1.1 if want.dtype == np.uint8 else 1e-3)
    np.testing.assert_array_equal(mapper.maps(image).classes, whole.classes)


def test_thresholds_of_commands(garden_run: Path, photos: Path) -> None:
    shares = [va.predict(garden_run, photos / "odd.png", settings=settings)[0][0].shares for settings in ([], ["eval.threshold={leaf: 0}"])]
    assert shares[0] != shares[1] == {"leaf": 1.0}
    before = json.loads((garden_run / "eval/val/metrics.json").read_text())["metrics"]
    result = CliRunner().invoke(app, ["eval", str(garden_run), "--threshold", "leaf=0", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["metrics"]["aacc"] < before["aacc"]
    for command in (["eval"], ["predict", str(photos / "odd.png")]):
        refused = CliRunner().invoke(app, [command[0], str(garden_run), *command[1:], "--threshold", "laef=0.5"])
        assert refused.exit_code == 2 and "Did you mean leaf?" in refused.stderr
    refused = CliRunner().invoke(app, ["eval", str(garden_run), "--calibrate"])
    assert refused.exit_code == 2 and "task segment has nothing to fit" in refused.stderr


def test_features(garden_run: Path, photos: Path) -> None:
    """The last map of the backbone, averaged."""
    found = va.extract_features(garden_run, photos, settings=["train.precision=fp32"])
    loaded = load_model(garden_run)
    dataset = TASKS["segment"].feature_dataset(loaded.config, loaded.model, [Path(found.paths[0])])
    with torch.inference_mode():
        want = loaded.model.backbone(dataset[0]["image"][None])[-1].mean((2, 3))[0]
    assert found.values.shape == (4, 64) and found.labels is None
    np.testing.assert_allclose(found.values[0], want, atol=1e-4)
    split = va.extract_features(garden_run, split="val")
    assert len(split.ids) == 5 and split.labels is None
    assert va.find_neighbors(garden_run, photos, k=2).rows.shape == (4, 2)
    with pytest.raises(UserError, match="no labels to compare"):
        va.find_neighbors(garden_run, split="val")
