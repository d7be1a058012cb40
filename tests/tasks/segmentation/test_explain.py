"""Subject of an explanation of a segmentation model: a class at a pixel, or over a region."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.commands import done, refused
from visionattn.errors import UserError
from visionattn.runs.load import LoadedModel, load_model
from visionattn.tasks import CHANGEABLE, change_config
from visionattn.tasks.base import Question, Subject

CPU = torch.device("cpu")


def subject(loaded: LoadedModel, question: Question, *changes: str, model: Any = None) -> Subject:
    config = change_config(loaded.config, changes, CHANGEABLE)
    return loaded.task.subject(config, loaded.target, model or loaded.model, question, CPU)


@pytest.fixture
def loaded(garden_run: Path) -> LoadedModel:
    return load_model(garden_run)


def test_a_pixel(loaded: LoadedModel, photos: Path) -> None:
    found = subject(loaded, Question(photos / "odd.png", (60, 40)))
    assert found.picture.shape == (50, 71, 3) and found.image.shape == (1, 3, 50, 71) and found.point == (40, 60)
    with torch.no_grad():
        outputs = loaded.model(found.image)
    classes = loaded.target["classes"]
    number = int(outputs[0, :, 40, 60].argmax())
    assert found.class_name == classes[number] and "column 60, row 40" in found.where
    assert torch.allclose(found.logit(outputs), outputs[:, number, 40, 60])
    assert torch.allclose(found.probability(outputs), outputs.softmax(1)[:, number, 40, 60])
    other = classes[(number + 1) % len(classes)]
    assert subject(loaded, Question(photos / "odd.png", (60, 40), other)).class_name == other


def test_the_region_that_is_predicted(loaded: LoadedModel, photos: Path) -> None:
    found = subject(loaded, Question(photos / "odd.png"))
    with torch.no_grad():
        outputs = loaded.model(found.image)
    predicted = outputs[0].argmax(0)
    number = loaded.target["classes"].index(found.class_name)
    inside = predicted == number
    counts = torch.bincount(predicted.flatten(), minlength=len(loaded.target["classes"]))
    assert counts[number] == counts.max()  # of classes none of which is a background
    assert found.region is not None and torch.equal(found.region > 0, inside) and bool(inside[found.point])
    assert torch.allclose(found.logit(outputs), outputs[:, number, inside].mean(1), atol=1e-5)
    assert torch.allclose(found.probability(outputs), outputs.softmax(1)[:, number, inside].mean(1), atol=1e-5)
    missing = [name for name, count in zip(loaded.target["classes"], counts, strict=True) if not count]
    if missing:
        with pytest.raises(UserError, match="no pixel is predicted"):
            subject(loaded, Question(photos / "odd.png", None, missing[0]))


def test_the_place_follows_the_size_and_the_window(loaded: LoadedModel, photos: Path) -> None:
    resized = subject(loaded, Question(photos / "odd.png", (70, 0)), "augment.resize=[142,100]")
    assert resized.image.shape[2:] == (100, 142) and resized.point == (1, 141)
    window = subject(loaded, Question(photos / "odd.png", (60, 10)), "eval.mode=slide", "eval.tile=32")
    assert window.picture.shape == (32, 32, 3) and "window of 32 x 32" in window.where
    whole = subject(loaded, Question(photos / "odd.png", (60, 10)))
    top, left = 0, 39  # the window ends at the right border
    assert window.point == (10 - top, 60 - left)
    np.testing.assert_array_equal(window.picture, whole.picture[top : top + 32, left : left + 32])


class OneLogit(nn.Module):
    """A logit that separates two classes: 2 in the left half, -1 in the right."""

    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.arange(x.shape[3]) < x.shape[3] // 2
        return torch.where(left, 2.0, -1.0).expand(len(x), 1, *x.shape[2:])


def test_one_logit_of_two_classes(loaded: LoadedModel, photos: Path) -> None:
    loaded = LoadedModel(loaded.task, loaded.config, OneLogit(), {"classes": ["background", "thing"]})
    found = subject(loaded, Question(photos / "odd.png"))
    outputs = OneLogit()(found.image)
    assert found.class_name == "thing" and found.point[1] < 35
    assert float(found.logit(outputs)) == pytest.approx(2) and float(found.probability(outputs)) == pytest.approx(0.8808, abs=1e-4)
    right = subject(loaded, Question(photos / "odd.png", (60, 10)))
    assert right.class_name == "background" and float(right.logit(outputs)) == pytest.approx(1)
    assert float(right.probability(outputs)) == pytest.approx(0.7311, abs=1e-4)


def test_the_command(garden_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("explain", garden_run, "--image", photos / "odd.png", "--query", "60,40", "--steps", 2, "--out", out)
    facts = json.loads((out / "explain.json").read_text())
    assert facts["input"] == "71 x 50 px" and "at the pixel" in facts["probability"] and set(facts["scores"]) == {"gradcam", "random maps"}
    assert "explained pixels</figcaption>" in (out / "explain.html").read_text()
    text = refused(tmp_path, "VA-C002", 2, "explain", garden_run, "--image", photos / "odd.png", "--query", "71,0", "--out", tmp_path / "b")
    assert "--query 35,25" in text
    done("explain", garden_run, "--image", photos / "odd.png", "--query", "35,25", "--method", "attention", "--out", tmp_path / "b")
