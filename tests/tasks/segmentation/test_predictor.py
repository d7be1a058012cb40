"""Inference of segmentation: whole images, windows, flips, scales, class maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tasks.segmentation.noise import batch, noise
from visionattn.data.masks.transforms import mask_eval_transform
from visionattn.tasks import config_from_dict
from visionattn.tasks.segmentation import predictor as module
from visionattn.tasks.segmentation.decision import image_maps
from visionattn.tasks.segmentation.predictor import LogitPredictor, MapPredictor, build_predictor


class Pointwise(nn.Module):
    """Logits of each pixel from that pixel alone, so that windows and whole images must agree."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, classes, 1)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        return self.conv(image)


@torch.no_grad()
def test_prediction() -> None:
    torch.manual_seed(0)
    model, image = Pointwise().eval(), noise(2, 2, 9, 14)
    whole = LogitPredictor(model, 3)(batch(image=image))
    assert whole.equal(model(image))
    for extra in ({}, {"flips": (-1, -2)}, {"flips": (-1,), "scales": (1.0,)}, {"flips": (-1,), "average": "probabilities"}):
        model.sizes.clear()
        got = LogitPredictor(model, 3, window=(6, 6), overlap=0.34, blend="gaussian", window_batch=3, **extra)(batch(image=image))
        assert set(model.sizes) == {(6, 6)}
        assert torch.allclose(got.softmax(1), whole.softmax(1), atol=1e-5)
    model.sizes.clear()
    LogitPredictor(model, 3, scales=(0.5, 2.0))(batch(image=noise(1, 2, 8, 14)))
    assert model.sizes == [(4, 7), (16, 28)]


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 3])
def test_averages_of_flips(classes: int) -> None:
    """A model that sees only the left edge, so that flips disagree."""

    def model(image: torch.Tensor) -> torch.Tensor:
        return image[:, :classes, :, :1].expand(-1, -1, -1, image.shape[3]) * 3

    image = noise(1, 3, 4, 5)
    left, right = model(image), model(image.flip(-1))

    def predicted(**arguments: Any) -> torch.Tensor:
        return LogitPredictor(model, max(classes, 2), flips=(-1,), **arguments)(batch(image=image))  # type: ignore[arg-type]

    def shares(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(1) if classes > 1 else logits.sigmoid()

    assert torch.allclose(predicted(), (left + right) / 2)
    assert torch.allclose(shares(predicted(average="probabilities")), (shares(left) + shares(right)) / 2, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_class_map_is_that_of_the_logits(channels: int) -> None:
    torch.manual_seed(0)
    model, image = Pointwise(channels).eval(), noise(1, 2, 9, 14)
    predictor = LogitPredictor(model, max(2, channels), window=(6, 6), flips=(-1,))
    logits = predictor(batch(image=image))
    want = logits.argmax(1)[0] if channels > 1 else (logits > 0)[0, 0]
    assert 0 < want.float().mean() < 2
    found = image_maps(predictor.blocks(image), (9, 14), max(2, channels), None, ()).classes
    np.testing.assert_array_equal(found, want)
    for other in ({}, {"window": (6, 6), "scales": (1.0, 2.0)}):
        with pytest.raises(ValueError, match="windows"):
            LogitPredictor(model, 3, **other).blocks(image)  # type: ignore[arg-type]


class Layers(nn.Module):
    """Logits of each pixel of an 8-bit image: class k where its first channel is nearest to k * 100."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        levels = torch.tensor([0.0, 100.0, 200.0])[:, None, None] / 255
        return -((image[:, :1] - levels) ** 2)


def map_predictor(model: nn.Module, lines: list[str], **settings: object) -> MapPredictor:
    config = config_from_dict({"task": "segment", "model": {"img_size": 32}, "eval": settings})
    transform = mask_eval_transform(config.augment, config.model.size, (0.0,) * 3, (1.0,) * 3)
    whole, tiled = (build_predictor(config, 3, model, torch.device("cpu"), tiled=tiled) for tiled in (False, True))
    return MapPredictor(whole, tiled, transform, warn=lines.append)


@pytest.mark.parametrize("settings", [{}, {"mode": "slide"}, {"scales": [1.0, 2.0]}, {"mode": "slide", "scales": [1.0], "flips": "both"}])
def test_class_maps_of_files(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model, lines = Layers(), list[str]()
    predictor = map_predictor(model, lines, **settings)
    want = np.kron(np.random.default_rng(0).integers(0, 3, (5, 7)), np.ones((10, 10), int))
    image = np.repeat((want * 100)[:, :, None], 3, 2).astype(np.uint8)
    ((found, confidence, probabilities),) = predictor(batch(image=torch.from_numpy(image)[None]))
    assert confidence is None and probabilities is None
    assert found.dtype == np.uint8 and found.shape == want.shape and (found == want).mean() > 0.95 and lines == []
    if "scales" not in settings:
        np.testing.assert_array_equal(found, want)

    monkeypatch.setattr(module, "LARGE_PIXELS", 1000)
    model.sizes.clear()
    for _ in range(2):
        np.testing.assert_array_equal(predictor.maps(image).classes, want)
    assert set(model.sizes) == {(32, 32)}
    always_in_windows = settings.get("mode") == "slide" and "scales" not in settings
    told = "image of 70 x 50 pixels: too large to predict at once, predicted in windows of 32 x 32"
    assert lines == ([] if always_in_windows else [told])  # once
