"""The segmentation model and its inference, as a config describes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visionattn as va
from tests.tasks.segmentation.tiny import CLASSES, TINY
from visionattn.errors import UserError
from visionattn.heads.unet import SummaryExchange
from visionattn.models.segmenter_factory import PRESETS
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.segmentation.model import build_segmenter
from visionattn.tasks.segmentation.predictor import build_predictor
from visionattn.tasks.segmentation.settings import SegmentConfig

UNET = ("model.head.name=unet", "model.head.args={stem_channels: [4, 6], max_channels: 8, dropout: 0.2}")


def segment_config(*overrides: str) -> SegmentConfig:
    given = load_config(None, ["task=segment", *overrides])
    assert isinstance(given, SegmentConfig)
    return given


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        model: Any = va.create_segmenter(name, num_classes=2)
        assert model.head == preset.head and model(torch.empty(2, 3, 64, 64)).logits.shape == (2, 2, 64, 64)
        assert va.create_segmenter(name, "fcn", num_classes=2, width=8).head == "fcn"
        built = build_segmenter(segment_config(f"model.name={name}"), len(CLASSES))
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes
    assert va.create_model(preset.backbone, features_only=True).channels == model.backbone.channels


def test_a_preset_and_arguments_of_its_head() -> None:
    with torch.device("meta"):
        for given, expected in (({}, True), ({"summary": "none"}, False)):
            model: Any = va.create_segmenter("att_swin_unet", num_classes=2, **given)
            assert any(isinstance(part, SummaryExchange) for part in model.modules()) == expected
    with pytest.raises(ValueError, match="summary: expected"):
        va.create_segmenter("att_swin_unet", num_classes=2, summary="first")
    with pytest.raises(UserError, match=r"cannot be built with .* \{'summary': 'first'\}") as caught:
        build_segmenter(segment_config("model.name=att_swin_unet", "model.head.args={summary: first}"), 2)
    assert caught.value.code == "VA-M002"


def test_the_head_of_a_config_gets_its_settings() -> None:
    settings = ["model.head.aux.weight=0.7", "model.head.name=fcn", "model.head.args={width: 4}", "eval.mode=slide", "eval.tile=[40, 48]"]
    given = segment_config(*TINY, *settings, "eval.stride=20", "eval.flips=horizontal", "model.head.aux.enabled=true")
    model: Any = build_segmenter(given, len(CLASSES))
    assert model.train()(torch.randn(2, 3, 32, 32)).aux[0].weight == 0.7
    predictor = build_predictor(given, len(CLASSES), model, torch.device("cpu"))
    assert predictor.window == {"window": (40, 48), "stride": (20, 20), "overlap": 0.33, "blend": "constant", "batch": 1}
    assert predictor.flips == (-1,) and TASKS["segment"].monitor(given) == "miou"
    with pytest.raises(UserError, match="VA-M002"):
        build_segmenter(segment_config(*TINY, *UNET, "model.args={depth: 3}"), len(CLASSES))
