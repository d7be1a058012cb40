"""The networks are those of the authors: recorded outputs, from the authors' key names."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import timm
import torch

import visionattn as va
from tests.parity import FAMILIES, Record, record_names, relative_error
from visionattn.kernels.dispatch import use_backend

pytestmark = pytest.mark.usefixtures("undrawn")

# Largest difference over the standard deviation, as stated with the records.
FP32 = {"eca": 3e-5, "medvit": 1e-4, "overlock": 2e-4, "ravlt": 2e-5, "transnext": 2e-4}  # the others 1e-5
# Of maps; the others 5e-5.
STAGE = {
    "biformer": 1e-4,
    "crossformer": 1e-4,
    "eca": 3e-4,
    "litv2": 1e-4,
    "medvit": 5e-4,
    "overlock": 5e-4,
    "ravlt": 1e-4,
    "transnext": 5e-4,
}
FP64 = {"transnext": 1e-5}  # the others 1e-6
CASES = [(family, name) for family in FAMILIES for name in record_names(family)]
SLOW = {"MedViT_tiny__224x224"}
# In the default run one record of each network of these families, the smallest.
ZOO = ("agent_attention", "casvit", "crossformer", "inline", "litv2", "overlock", "ravlt", "rmt", "sgformer")
FIRST = (
    "RAVLT_T__96x96",
    "RMT_T3__96x96",
    "agent_deit_t__224x224",
    "agent_pvt_t__128x128",
    "agent_swin_t__128x128",
    "crossformer_tiny__128x128",
    "inline_deit_tiny__224x224",
    "inline_pvt_tiny__224x224",
    "inline_swin_tiny__224x224",
    "litv2_s__128x128",
    "overlock_xt_reparam__96x96",
    "rcvit_xs__96x128",
    "sgformer_s__224x224",
)
# Networks that the default run has at a smaller size of images, or in a smaller variant.
LARGE = re.compile(r"_base|_large|(?<!isotropic)_small|van_b[1245]|(nat_tiny|transnext_tiny|resnet(34|101)_k3357)__224x")


def check_record(record: Record) -> None:
    family = record.family
    classifies, exact = "logits" in record.arrays, "logits64" in record.arrays
    model = va.create_model(record.facts["model"], **record.facts["args"]).eval()
    va.load_checkpoint(model, record.state(), allow=("position",))
    assert sum(parameter.numel() for parameter in model.parameters()) == record.facts["params"]
    image = record.image()
    if exact and not classifies:  # SG-Former sorts positions, in float32 in another order
        check_in_float64(record, model.double(), image.double())
        return
    with torch.no_grad():
        maps = model.backbone(image) if classifies else model(image)
        assert len(maps) == len(record.facts["stages"])
        for index, feature in enumerate(maps):
            if record.facts["stages"][index]["std"] is None:  # it carries a class token, or is in two parts upstream
                continue
            assert record.stage_error(index, feature) < STAGE.get(family, 5e-5)
        if classifies:
            stride = record.facts["logit_stride"]  # of 21,841 classes every 21st is kept
            assert relative_error(model(image)[:, ::stride], record.arrays["logits"]) < FP32.get(family, 1e-5)
            assert relative_error(model.double()(image.double())[:, ::stride], record.arrays["logits64"]) < FP64.get(family, 1e-6)


def check_in_float64(record: Record, model: Any, image: torch.Tensor) -> None:
    with torch.no_grad():
        maps = model.backbone(image)
        assert max(record.stage_error(index, feature) for index, feature in enumerate(maps)) < 1e-6
        assert relative_error(model.forward_head(maps[-1]), record.arrays["logits64"]) < 1e-6


def marks(family: str, name: str) -> list[pytest.MarkDecorator]:
    if (family in ZOO and name not in FIRST) or LARGE.search(name):
        return [pytest.mark.slow, pytest.mark.zoo]
    return [pytest.mark.slow] if name in SLOW else []


@pytest.mark.parametrize(
    ("family", "name"), [pytest.param(family, name, id=f"{family}-{name}", marks=marks(family, name)) for family, name in CASES]
)
def test_recorded_outputs(family: str, name: str) -> None:
    check_record(Record(family, name))


def smallest(family: str) -> Record:
    """The record of the fewest parameters times pixels."""
    return min(
        (Record(family, name) for name in record_names(family)), key=lambda it: it.facts["params"] * math.prod(it.facts["input"]["shape"])
    )


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.slow, pytest.mark.zoo] if family in ZOO else []) for family in FAMILIES]
)
def test_recorded_outputs_by_the_definitions(family: str) -> None:
    """Those of the fast forms are above: a CPU chooses them."""
    with use_backend("reference"):
        check_record(smallest(family))


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
