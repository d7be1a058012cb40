"""Our models in other people's registries. timm's own tests of them are run by tools/timm_acceptance.py."""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, is_notrace_module

import visionattn as va
from tests.tiny import TINY
from visionattn.backbones.registry import get_variant
from visionattn.backbones.swin import Swin
from visionattn.integrations import timm as integration
from visionattn.layers import SwinBlock

SMALL = {"depths": (1, 1, 1, 1), "embed_dim": 24}


@pytest.fixture(scope="module", autouse=True)
def registered() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # timm warns when a name is overwritten
        names = integration.register()
    assert {name for name in timm.list_models() if name.startswith("va_")} == set(names)
    return names


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, two = model.state_dict(), other.state_dict()
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_nothing_is_registered_by_import() -> None:
    code = "import timm, visionattn, visionattn.models, visionattn.integrations.timm; print(timm.list_models('va_*'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_name_is_there_once(registered: list[str]) -> None:
    assert sorted(registered) == sorted(timm.list_models("va_*")) == [f"va_{name}" for name in va.list_models()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert integration.register() == registered
    # A module of its own: timm has modules named like our families.
    assert sorted(timm.list_models(module="timm")) == sorted(registered)


@pytest.mark.parametrize("name", va.list_models())
def test_configuration_is_that_of_the_registry(name: str) -> None:
    cfg = get_pretrained_cfg(f"va_{name}").to_dict()
    assert {key: cfg[key] for key in get_variant(name).cfg} == dict(get_variant(name).cfg)


def test_models_are_ours() -> None:
    torch.manual_seed(0)
    ours = va.create_model("swin_tiny", num_classes=5, in_chans=1, **SMALL).eval()
    torch.manual_seed(0)
    model = timm.create_model("va_swin_tiny", num_classes=5, in_chans=1, drop_path_rate=None, **SMALL).eval()
    assert type(model) is type(ours) and same(model, ours)
    image = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(image), ours(image))
    assert {key: model.default_cfg[key] for key in ("pool_size", "first_conv", "classifier")} == {
        "pool_size": (7, 7),
        "first_conv": "backbone.patch_embed.proj",
        "classifier": "head.fc",
    }
    with pytest.raises(TypeError, match="windowsize"):
        timm.create_model("va_swin_tiny", windowsize=7)


def test_transforms_follow_the_image_size() -> None:
    model = timm.create_model("va_swin_tiny", img_size=256, **SMALL)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 256, 256)
    assert model.pretrained_cfg["pool_size"] == (8, 8)
    model.set_input_size((384, 320))
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 384, 320)


def test_features_only_gives_the_backbone() -> None:
    model = timm.create_model("va_swin_tiny", features_only=True, out_indices=(1, 2), output_stride=32, **SMALL).eval()
    assert isinstance(model, Swin) and len(model.stages) == 3
    assert model.feature_info.channels() == [48, 96] and model.feature_info.reduction() == [8, 16]
    with torch.no_grad():
        assert [tuple(feature.shape) for feature in model(torch.randn(1, 3, 64, 96))] == [(1, 48, 8, 12), (1, 96, 4, 6)]
    with pytest.raises(ValueError, match="output_stride"):
        timm.create_model("va_swin_tiny", features_only=True, output_stride=16, **SMALL)
    assert timm.create_model("va_swin_tiny", features_only=True, output_stride=16, out_indices=(0, 1, 2), **SMALL).strides == (4, 8, 16)


def test_getter_gives_the_same_maps() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("va_swin_tiny", features_only=True, **SMALL).eval()
    torch.manual_seed(0)
    getter = timm.create_model("va_swin_tiny", features_only=True, feature_cls="getter", **SMALL).eval()
    assert getter.feature_info.channels() == backbone.feature_info.channels()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(one, two) for one, two in zip(getter(image), backbone(image), strict=True))


def test_device_and_dtype() -> None:
    model = timm.create_model("va_eca_resnet18", device="meta", dtype=torch.float64)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_the_classifier_is_replaced_and_pooling_removed() -> None:
    model = timm.create_model("va_swin_tiny", num_classes=5, **SMALL).eval().to(torch.float64)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(image), pre_logits=True)
        model.reset_classifier(7)
        assert model(image).shape == (2, 7)
        logits = model(image)
        model.head.global_pool = ""
        positions = model(image)
        assert positions.shape == (2, 7, 2, 3) and torch.allclose(positions.mean((2, 3)), logits)
        model.reset_classifier(0, "")
        features = model(image)
        assert features.shape == (2, 192, 2, 3) and torch.allclose(features.mean((2, 3)), pooled)
        model.reset_classifier(3)
        assert model(image).shape == (2, 3, 2, 3)  # the pooling stays as it was
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "max")
    with torch.no_grad():
        unpooled = timm.create_model("va_swin_tiny", num_classes=0, global_pool="", **SMALL).eval()
        assert unpooled(image.float()).shape == (2, 192, 2, 3)


def test_pruned_models_take_a_new_classifier() -> None:
    model = va.create_model("swin_tiny", num_classes=5, **SMALL).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True)
        assert model.prune_intermediate_layers([-3, 2]) == [1, 2]
        assert torch.equal(model(image), maps[2].mean((2, 3)))
        model.reset_classifier(3)
        assert model(image).shape == (1, 3)
    assert model.num_features == model.head_hidden_size == 96
    for indices in (4, 0, [3], []):
        with pytest.raises(ValueError, match="indices"):
            model.forward_intermediates(image, indices=indices)


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("layout", ["ours", "timm"])
def test_weights_from_a_file(tmp_path: Path, layout: str, features_only: bool) -> None:
    """Any layout that we read, with what official files carry beside the tensors, other channels and classes."""
    if layout == "ours":
        model = va.create_model("swin_tiny", **SMALL)
        state: dict[str, Any] = model.state_dict()
    else:
        model = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
        state = model.state_dict()
    torch.save({"model": state, "config": argparse.Namespace(epochs=1)}, tmp_path / "file.pth")
    args: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": 5}
    loaded = timm.create_model(
        "va_swin_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "file.pth")}, in_chans=1, **args, **SMALL
    )
    expected = va.create_model("swin_tiny", in_chans=1, **args, **SMALL)
    va.load_checkpoint(expected, state)
    for key, value in expected.state_dict().items():
        assert key.startswith("head.fc.") or torch.equal(loaded.state_dict()[key], value), key


TAGS = """
import timm, torch, visionattn as va
from pathlib import Path
from visionattn.integrations.timm import register
from visionattn.models.weights.download import store
torch.save(va.create_model("eca_resnet18").state_dict(), "file.pth")
store(Path("file.pth"), "eca_resnet18.in1k", report=lambda text: None)
register()
assert timm.list_models("va_swin_tiny*", include_tags=True)[:3] == ["va_swin_tiny.in1k", "va_swin_tiny.in22k", "va_swin_tiny.in22k_ft_in1k"]
assert timm.list_pretrained("va_eca_resnet18*") == ["va_eca_resnet18.in1k"] and not timm.list_pretrained("va_ela_*")
assert timm.get_pretrained_cfg("va_swin_tiny.in22k").num_classes == 21841
model = timm.create_model("va_eca_resnet18", pretrained=True)
assert all(torch.equal(model.state_dict()[key], value) for key, value in torch.load("file.pth").items() if "batches" not in key)
"""


def test_tags(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TAGS], cwd=tmp_path, check=True)


def test_fx_sees_layers_as_a_whole() -> None:
    assert is_notrace_module(SwinBlock) and not is_notrace_module(Swin)
    model = timm.create_model("va_swin_tiny", **SMALL).eval()
    extractor = timm.models.create_feature_extractor(model, ["backbone.stages.2.blocks.0"])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (block,) = extractor(image).values()
        _, (expected,) = model.forward_intermediates(image, indices=[2])
    assert torch.equal(block.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("family", TINY)
def test_fx_traces_every_family(family: str) -> None:
    name, args = TINY[family]
    model = timm.create_model(f"va_{name}", **args).eval()
    extractor = timm.models.create_feature_extractor(model, ["head"])
    for size in ((64, 64), (72, 40)):  # a graph holds for other sizes than that of the position tables
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(extractor(image)["head"], model(image))


def test_a_model_saved_by_timm_is_read_by_timm(tmp_path: Path) -> None:
    from timm.models import save_for_hf
    from timm.models._hub import has_hf_hub

    if not has_hf_hub():
        pytest.skip("this timm does not work with the installed huggingface_hub")
    model = timm.create_model("va_eca_resnet18", num_classes=5, in_chans=1).eval()
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert same(model, loaded)
