"""Several segmenters as one: the mean of their probabilities, each with its own normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import visionattn as va
from tests.commands import done
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.tasks import config_from_dict
from visionattn.tasks.base import Member
from visionattn.tasks.means import mean_logits
from visionattn.tasks.segmentation import Segmentation
from visionattn.tasks.segmentation.ensemble import EnsembleSegmenter
from visionattn.tasks.segmentation.predictor import LogitPredictor


class Pointwise(nn.Module):
    """Logits of each pixel from that pixel alone."""

    def __init__(self, num_classes: int, mean: float, std: float) -> None:
        super().__init__()
        self.conv, self.num_classes = nn.Conv2d(3, num_classes, 1), num_classes
        self.pretrained_cfg = {"mean": (mean,) * 3, "std": (std,) * 3}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image)


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 3])
def test_the_mean_of_the_probabilities(classes: int) -> None:
    torch.manual_seed(0)
    models = [Pointwise(classes, mean, std).eval() for mean, std in ((0.5, 0.5), (0.4, 0.2), (0.0, 1.0))]
    pixels = torch.rand(1, 3, 9, 14)
    wanted = torch.zeros(1, classes, 9, 14)
    for model in models:
        logits = model((pixels - model.pretrained_cfg["mean"][0]) / model.pretrained_cfg["std"][0])
        wanted += (logits.sigmoid() if classes == 1 else logits.softmax(1)) / 3
    ensemble, image = EnsembleSegmenter(models), (pixels - 0.5) / 0.5
    for windows in ({}, {"window": (6, 6), "overlap": 0.34, "flips": (-1,)}):
        found = LogitPredictor(ensemble, classes, **windows).logits(image)  # type: ignore[arg-type]
        assert torch.allclose(found.sigmoid() if classes == 1 else found.softmax(1), wanted, atol=1e-5)


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    sure = torch.tensor([[200.0, -200.0]])
    assert mean_logits([sure, sure], independent=False).isfinite().all() and mean_logits([sure], independent=True).isfinite().all()
    assert mean_logits([sure, -sure], independent=False).softmax(1).tolist() == [[0.5, 0.5]]


def test_a_run_with_itself_is_that_run(garden_run: Path, tmp_path: Path) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (33, 47, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    twice = [garden_run, str(garden_run)]
    alone, together = ([item.class_map() for item in va.predict(source, tmp_path)[0]] for source in (garden_run, twice))
    assert len(alone) == len(together) == 2 and all((one == two).mean() > 0.99 for one, two in zip(alone, together, strict=True))
    one, two = (va.evaluate(source, console=Console(quiet=True)).metrics for source in (garden_run, twice))
    assert one == pytest.approx(two, abs=1e-4)
    done("predict", *twice, tmp_path / "0.png", "--out", tmp_path / "out")
    assert (np.asarray(Image.open(tmp_path / "out/masks/0.png")) == together[0]).all()


def test_models_that_want_other_pixels_are_refused() -> None:
    plain = {"task": "segment", "model": {"name": "eca_resnet18"}, "data": {"root": "x"}}
    first = Member(config_from_dict(plain), Pointwise(3, 0.5, 0.5))
    for section, changes in (("model", {"in_chans": 1}), ("data", {"range": "percentile"}), ("augment", {"resize": 64})):
        other = config_from_dict({**plain, section: {**plain.get(section, {}), **changes}})  # type: ignore[dict-item]
        with pytest.raises(UserError) as caught:
            Segmentation().ensemble([first, first, Member(other, Pointwise(3, 0.5, 0.5))])
        assert caught.value.code == "VA-M004" and f"{section}.{next(iter(changes))}" in caught.value.what
    with pytest.raises(UserError, match="logits per pixel"):
        Segmentation().ensemble([first, Member(first.config, Pointwise(1, 0.5, 0.5))])
