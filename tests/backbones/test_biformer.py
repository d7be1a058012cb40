"""BiFormer: what the records do not reach, and the layouts of its files."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import visionattn as va
from tests.parity import Record, fill, image_batch
from visionattn.backbones.biformer import BiFormer
from visionattn.errors import UserError

State = dict[str, torch.Tensor]


def upstream(record: str) -> State:
    """The authors' state dict of a record."""
    return Record("biformer", record).state()


def channels_first(state: State) -> State:
    """BiFormer-STL's state dict as its channels-first rewrite names and shapes it, filled by the rule."""
    renamed = {}
    for key, value in state.items():
        key = key.replace(".attn.qkv.qkv.", ".attn.qkv_linear.").replace(".attn.wo.", ".attn.output_linear.")
        pointwise = re.search(r"\.(attn\.(qkv|proj|qkv_linear|output_linear)|mlp\.\d)\.weight$", key)
        renamed[key] = torch.from_numpy(fill(key, (*value.shape, 1, 1) if pointwise else tuple(value.shape)))
    return renamed


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("biformer_tiny", 13_142_760, 2.2),
        ("biformer_small", 25_536_232, 4.5),
        ("biformer_base", 56_804_968, 9.8),
        ("biformer_stl", 28_372_552, 4.6),
        ("biformer_stl_nchw", 28_372_552, 4.6),
    ],
)
def test_size_and_cost(name: str, params: int, gmacs: float) -> None:
    info = va.model_info(name)
    assert info["params"] == params
    assert round(info["gmacs"], 1) == gmacs
    assert info["cfg"]["crop_pct"] == 0.875 and info["cfg"]["interpolation"] == "bicubic"


# Every 125th logit of the authors' code in float64, weights and image by the rule of tests/parity.py (salt 0).
RECORDED: list[tuple[str, dict[str, Any], tuple[int, int], list[float]]] = [
    # auto_pad=True
    ("biformer_tiny", {}, (96, 130), [13.727443, 2.269484, 12.240419, -3.872154, 2.694227, 2.69473, 19.379375, -8.588158]),
    # auto_pad=True, n_win=8 as in their dense models
    ("biformer_tiny", {"n_win": 8}, (128, 72), [13.922298, -5.861601, -5.809641, 11.042282, 5.193929, 4.745739, 10.405326, 0.139899]),
    ("biformer_stl", {}, (224, 448), [0.888194, -10.380757, -6.092535, -11.009999, 6.483005, 6.747738, 5.119959, -5.50148]),
    ("biformer_stl_nchw", {}, (224, 448), [0.60022, -6.145626, 6.396287, 4.468915, 5.194837, 1.499141, 5.639379, 0.309298]),
]


@pytest.mark.parametrize(("name", "args", "size", "logits"), RECORDED)
def test_padding_other_grids_and_the_channels_first_rewrite(name, args, size, logits) -> None:
    state = upstream("biformer_tiny__112x112" if name == "biformer_tiny" else "biformer_stl__224x224")
    model = va.create_model(name, **args).eval()
    report = va.load_checkpoint(model, channels_first(state) if name == "biformer_stl_nchw" else state)
    assert report.reshaped == report.skipped == []
    image = torch.from_numpy(image_batch((1, 3, *size), 0))
    with torch.no_grad():
        got = model.double()(image.double())[0, ::125]
    assert torch.allclose(got, torch.tensor(logits, dtype=torch.float64), atol=2e-6, rtol=0)


@pytest.mark.slow  # every registered model is tried
def test_the_two_kinds_of_stl_files_are_told_apart() -> None:
    """Their shapes are equal; plain attention reads another tensor."""
    state = upstream("biformer_stl__224x224")
    with pytest.raises(UserError, match=r"looks like biformer_stl_nchw .* you asked for biformer_stl "):
        va.load_checkpoint(va.create_model("biformer_stl"), channels_first(state))
    with torch.device("meta"):
        other = va.create_model("biformer_stl_nchw")
    assert set(BiFormer.from_upstream(state)) ^ set(other.state_dict()) == {
        f"backbone.stages.3.blocks.{block}.attn.{name}.{kind}"
        for block in range(2)
        for name in ("input_lepe", "lepe")
        for kind in ("weight", "bias")
    }


def test_dense_backbone_of_the_authors() -> None:
    state = upstream("biformer_tiny__112x112")
    dense = {f"backbone.{key}": value for key, value in state.items() if not re.match(r"(norm|head)\.", key)}
    for index, channels in enumerate((64, 128, 256, 512)):
        dense[f"backbone.extra_norms.{index}.weight"] = torch.full((channels,), 2.0)
        dense[f"backbone.extra_norms.{index}.bias"] = torch.full((channels,), 3.0)
    model = va.create_model("biformer_tiny", features_only=True, out_norm=True).eval()
    assert va.load_checkpoint(model, {"state_dict": dense}, allow=()).reason == "260 of 260 tensors loaded"
    plain = va.create_model("biformer_tiny", features_only=True).eval()
    va.load_checkpoint(plain, {"model": state}, allow=())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for normed, feature in zip(model(image), plain(image), strict=True):
            want = 2 * (feature - feature.mean(1, keepdim=True)) / (feature.var(1, correction=0, keepdim=True) + 1e-6).sqrt() + 3
            assert torch.allclose(normed, want, atol=1e-4)


def test_padded_positions_are_attended_and_cropped() -> None:
    model = va.create_model("biformer_tiny", depths=(1, 1, 1, 1), features_only=True).eval()
    attention = model.stages[2].blocks[0].attn
    x = torch.randn(2, 5, 9, 256)
    padded = torch.zeros(2, 7, 14, 256)
    padded[:, :5, :9] = x
    with torch.no_grad():
        assert torch.allclose(attention(x), attention(padded)[:, :5, :9], atol=1e-6)


def test_any_stage_can_be_routed_and_too_few_regions_are_named() -> None:
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        routed = va.create_model("biformer_tiny", depths=(1, 1, 1, 1), topks=(None, 1, 2, 49), features_only=True).eval()
        assert [feature.shape[1] for feature in routed(image)] == [64, 128, 256, 512]
        with pytest.raises(ValueError, match="number of regions, 9, got 16"):
            va.create_model("biformer_tiny", depths=(1, 1, 1, 1), n_win=3)(image)


@pytest.mark.slow
def test_swin_layout_compiles_and_exports() -> None:
    """The other layout is covered by the contract, which takes one variant of each class."""
    model = va.create_model("biformer_stl_nchw", depths=(1, 1, 1, 1), num_classes=5).eval()
    image = torch.randn(2, 3, 65, 32)
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        exported = torch.export.export(model, (image,), dynamic_shapes=({0: batch},)).module()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        image = torch.randn(3, 3, 65, 32)
        assert torch.allclose(exported(image), model(image), atol=1e-5)
        assert torch.allclose(compiled(image), model(image), atol=1e-5)
