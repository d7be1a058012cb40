"""Inference of classification: flips, scales, their averages, temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks.segmentation.noise import batch, noise
from visionattn.errors import UserError
from visionattn.heads import resize_to
from visionattn.tasks import load_config
from visionattn.tasks.classification.predictor import ClassPredictor


class Corner(nn.Module):
    """Logits that depend on the upper left corner, so that views disagree."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([image[:, 0, 0, 0], image[:, 1, 0, 0], image.mean((1, 2, 3))], 1) * 3


def predicted(image: torch.Tensor, *settings: str) -> torch.Tensor:
    config: Any = load_config(None, ["model.img_size=32", *settings])
    found: torch.Tensor = ClassPredictor(config, Corner(), torch.device("cpu"))(batch(image=image))
    return found


def test_views_are_averaged() -> None:
    image, model = noise(2, 3, 32, 32), Corner()
    assert predicted(image).equal(model(image))
    turned = [image, image.flip(-2), image.flip(-1), image.flip((-1, -2))]
    both = torch.stack([model(view) for view in turned])
    assert torch.allclose(predicted(image, "eval.flips=horizontal"), both[[0, 2]].mean(0))
    assert torch.allclose(predicted(image, "eval.flips=both"), both.mean(0), atol=1e-6)
    large = torch.stack([model(resize_to(view, (48, 48))) for view in turned])
    views = torch.cat([both, large])
    found = predicted(image, "eval.flips=both", "eval.scales=[1, 1.5]")
    assert torch.allclose(found, views.mean(0), atol=1e-5)
    shares = predicted(image, "eval.flips=both", "eval.scales=[1, 1.5]", "eval.average=probabilities")
    assert torch.allclose(shares.softmax(1), views.softmax(2).mean(0), atol=1e-5)
    several = predicted(image, "eval.flips=horizontal", "eval.average=probabilities", "data.multi_label=true")
    assert torch.allclose(several.sigmoid(), both[[0, 2]].sigmoid().mean(0), atol=1e-5)


def test_temperature_divides_the_logits_of_each_view() -> None:
    image, model = noise(2, 3, 32, 32), Corner()
    assert torch.allclose(predicted(image, "eval.temperature=2"), model(image) / 2)
    views = torch.stack([model(image), model(image.flip(-1))]) / 2
    found = predicted(image, "eval.temperature=2", "eval.flips=horizontal", "eval.average=probabilities")
    assert torch.allclose(found.softmax(1), views.softmax(2).mean(0), atol=1e-5)


def test_scales_that_leave_too_little() -> None:
    for wrong in ("[0]", "[1, 0.5]"):
        with pytest.raises(UserError, match=r"VA-C002.*eval\.scales"):
            load_config(None, ["model.img_size=48", f"eval.scales={wrong}"])
    load_config(None, ["model.img_size=64", "eval.scales=[0.5]"])
