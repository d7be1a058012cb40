"""The networks are those of the authors: recorded outputs, from the authors' key names."""

from __future__ import annotations

import pytest
import timm
import torch

import visionattn as va
from tests.parity import Record, record_names, relative_error

# Largest difference over the standard deviation, as stated with the records.
FP32 = {"swin": 1e-5, "eca": 3e-5}
STAGE = {"swin": 5e-5, "eca": 3e-4}
FP64 = 1e-6

NAMES = {
    "swin_tiny_patch4_window7_224": "swin_tiny",
    "swin_tiny_patch4_window7_224_22k": "swin_tiny",
    "swin_tiny_seg_backbone": "swin_tiny",
    "swin_base_patch4_window7_224": "swin_base",
    "swin_base_patch4_window12_384": "swin_base_384",
    "eca_resnet18": "eca_resnet18",
    "eca_resnet18_k3577": "eca_resnet18",
    "eca_resnet34_k3357": "eca_resnet34",
    "eca_resnet50": "eca_resnet50",
    "eca_resnet50_k3557": "eca_resnet50",
    "eca_resnet101_k3357": "eca_resnet101",
    "eca_mobilenet_v2": "eca_mobilenetv2",
}
# Recorded maps that ours returns: all, except those inside the stages of MobileNetV2.
STAGES = {"eca_mobilenet_v2": (1, 2, 3, 5)}
CASES = [(family, name) for family in ("swin", "eca") for name in record_names(family)]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[name for _, name in CASES])
def test_recorded_outputs(family: str, name: str) -> None:
    record = Record(family, name)
    variant = name.partition("__")[0]
    classifies = "logits" in record.arrays
    arguments = {"num_classes": record.facts["classes"]} if classifies else {"features_only": True, "out_norm": True}
    model = va.create_model(NAMES[variant], **arguments).eval()
    va.load_checkpoint(model, record.state(), allow=("position",))
    assert sum(parameter.numel() for parameter in model.parameters()) == record.facts["params"]
    image = record.image()
    with torch.no_grad():
        maps = model.backbone(image) if classifies else model(image)
        for feature, stage in zip(maps, STAGES.get(variant, range(4)), strict=True):
            assert record.stage_error(stage, feature) < STAGE[family]
        if classifies:
            stride = record.facts["logit_stride"]  # of 21,841 classes every 21st is kept
            assert relative_error(model(image)[:, ::stride], record.arrays["logits"]) < FP32[family]
            assert relative_error(model.double()(image.double())[:, ::stride], record.arrays["logits64"]) < FP64


def test_timm_swin_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.uniform_(-1, 1)
    ours = va.create_model("swin_tiny").eval()
    assert va.load_checkpoint(ours, theirs.state_dict()).reason == "173 of 173 tensors loaded"
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image).numpy()) < 1e-5


def test_larger_window_reads_resampled_tables() -> None:
    record = Record("swin", "swin_tiny_patch4_window7_224__224x224")
    model = va.create_model("swin_tiny", window_size=12)
    report = va.load_checkpoint(model, record.state())
    assert report.reshaped == ["relative position tables 13x13 -> 23x23, bicubic (12 tables)"]
    # Both grids have their centre (offset 0) in common: its bias is kept.
    table = model.backbone.stages[0].blocks[0].attn.relative_position_bias_table
    given = record.state()["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert torch.allclose(table.view(23, 23, -1)[11, 11], given.view(13, 13, -1)[6, 6], atol=1e-6)
