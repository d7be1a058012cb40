"""Our models as encoders of segmentation_models_pytorch, with its own defaults. tools/smp_acceptance.py trains a step with whole models."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from tests.tiny import TINY
from visionattn.backbones import Backbone
from visionattn.backbones.registry import get_variant
from visionattn.integrations.timm import register

# Its decoders, with what they need beside their defaults: our classifiers have no class token that DPT could read.
DECODERS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "UPerNet", "Segformer")},
    **{name: {} for name in ("DeepLabV3", "DeepLabV3Plus", "PAN")},
    "DPT": {"decoder_readout": "ignore", "num_classes": 0},
}
# Those that ask for an output stride of 8 or 16, with what the error of other families names.
DILATED: dict[str, dict[str, Any]] = {
    "DeepLabV3": {"encoder_depth": 4, "encoder_output_stride": 16},
    "DeepLabV3Plus": {"encoder_depth": 4, "encoder_output_stride": 16},
    "PAN": {"encoder_output_stride": 32},
}
# One map, maps at other strides, or three of them.
NO_PYRAMID = {"AgentDeiT", "ChAdaViT", "DAEFormer", "InLineDeiT", "NATIsotropic", "ViT", "ViTRPB"}
PYRAMIDS = [family for family in TINY if family not in NO_PYRAMID]
DILATING = [family for family in PYRAMIDS if get_variant(TINY[family][0]).cls.dilate_stage is not Backbone.dilate_stage]
STRIDED = [family for family in PYRAMIDS if family not in DILATING]
# The default run: one family without dilation with every decoder, and the dilating ones with those that ask for it.
SOME = [("Swin", decoder) for decoder in DECODERS] + [(family, decoder) for family in DILATING for decoder in DILATED]
REST = [(family, decoder) for family in PYRAMIDS for decoder in DECODERS if (family, decoder) not in SOME]


@pytest.fixture(scope="module", autouse=True)
def registered() -> list[str]:
    return register()


def network(family: str, decoder: str, **more: Any) -> torch.nn.Module:
    name, args = TINY[family]
    return getattr(smp, decoder)(f"tu-va_{name}", encoder_weights=None, classes=2, **DECODERS[decoder], **more, **args).eval()


@pytest.mark.parametrize(("family", "decoder"), [*SOME, *(pytest.param(*case, marks=pytest.mark.zoo) for case in REST)])
def test_every_decoder_takes_every_pyramid(family: str, decoder: str) -> None:
    size, more = 128 if decoder == "PAN" else 64, {}
    if family in STRIDED and decoder in DILATED:
        with pytest.raises(ValueError, match="encoder_output_stride=32, or encoder_depth=4, encoder_output_stride=16"):
            network(family, decoder)
        size, more = 256 if decoder == "PAN" else 64, DILATED[decoder]  # PAN halves the last map three times
    with torch.no_grad():
        logits = network(family, decoder, **more)(torch.randn(1, 3, size, size))
    assert logits.shape == (1, 2, size, size) and torch.isfinite(logits).all()


@pytest.mark.parametrize("family", [family for family in STRIDED if family != "Swin"])
def test_families_that_do_not_dilate_name_what_works(family: str) -> None:
    with pytest.raises(ValueError, match=r"output_stride: .* encoder_output_stride=32"):
        network(family, "PAN")
