"""What every registered backbone keeps to.

The registry is the list of cases. Depth is cut where it is an argument, and width with the number of heads, so
that a head keeps its size; parity and counts hold the whole networks. Names that are the same network then
(swin_tiny and swin_large) are one case that bears all their names.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

import visionattn as va
from tests.tiny import TINY, ZOO, cut, initialised
from visionattn.backbones.registry import get_variant
from visionattn.errors import ArgumentError, UserError

NAMES = va.list_models()
# Variants that differ from others of their family in numbers alone (width, size of the window or the image), tested by `make test-zoo`.
LARGER = {
    "davit_giant",
    "davit_large_384",
    "dinat_base",
    "dinat_large",
    "dinat_large_384",
    "dinat_large_384_11x11",
    "dinat_s_large_384",
    "eca_resnet101",
    "eca_resnet34",
    "nat_base",
    "swin_base_384",
    "swinv2_base_window12",
    "swinv2_base_window12to24",
    "transnext_base_384",
    "van_b5",
    "van_b6",
}


def short(name: str) -> dict[str, Any]:
    """Arguments that leave two blocks per stage (the second is the shifted or dilated one) and two heads in the first."""
    given = get_variant(name).args
    small: dict[str, Any] = {}
    if "depths" in given:
        small["depths"] = tuple(min(2, depth) for depth in given["depths"])
    if name.startswith("medvitv2"):
        return {"depths": (2, 2, 2, 1), "embed_dims": (32, 128, 128, 128)}  # at full depth they differ in width alone
    if get_variant(name).cls.__name__ in ZOO:
        tiny = TINY[get_variant(name).cls.__name__][1]
        return {key: tiny[key] for key in ("embed_dim", "embed_dims", "focus_depths", "num_heads") if key in tiny} | {
            "depths": small["depths"]
        }
    if "embed_dims" in given:
        small["embed_dims"] = tuple(width // 4 for width in given["embed_dims"])
    heads = given.get("num_heads")
    if isinstance(heads, int):
        small |= {"embed_dim": 2 * given["embed_dim"] // heads, "num_heads": 2}
    elif heads is not None:
        doubled = tuple(2 * 2**stage for stage in range(len(heads)))
        plain = all(count == heads[0] * 2**stage for stage, count in enumerate(heads))
        small |= {"embed_dim": 2 * given["embed_dim"] // heads[0], "num_heads": doubled if plain else (*doubled[:3], heads[3])}
    return small


def small(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return va.create_model(name, **{**short(name), **arguments})


def cases() -> list[Any]:
    """One name of each set that cut depth makes equal, under the names of all."""
    same: dict[str, list[str]] = {}
    for name in NAMES:
        variant = get_variant(name)
        arguments = {**variant.args, **short(name)}
        same.setdefault(f"{variant.cls.__name__} {sorted(arguments.items())}", []).append(name)
    assert {names[0] for names in same.values()} >= LARGER
    return [pytest.param(names[0], id="+".join(names), marks=marks(names)) for names in same.values()]


def marks(names: list[str]) -> list[pytest.MarkDecorator]:
    first = ZOO.get(get_variant(names[0]).cls.__name__)
    larger = names[0] in LARGER or (first is not None and first not in names)
    return [pytest.mark.slow, pytest.mark.zoo] if larger else []


@pytest.fixture(params=cases())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (65, 97)])
def test_maps_are_nchw_finest_first_at_any_size(name: str, size: tuple[int, int]) -> None:
    model = small(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    expected = [(1, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(model.channels, model.strides, strict=True)]
    assert [tuple(feature.shape) for feature in maps] == expected
    assert model.feature_info.channels() == list(model.channels)
    assert model.feature_info.reduction() == list(model.strides)
    assert all(torch.isfinite(feature).all() for feature in maps)


def test_out_indices_select_and_prune(name: str) -> None:
    whole, part = small(name, features_only=True).eval(), small(name, features_only=True, out_indices=(1, 2)).eval()
    part.load_state_dict(whole.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, chosen = whole(image), part(image)
    assert all(torch.equal(a, b) for a, b in zip(chosen, maps[1:3], strict=True))
    assert len(part.stages) == 3
    assert part.channels == whole.channels[1:3]
    with pytest.raises(ValueError, match="out_indices"):
        small(name, features_only=True, out_indices=(7,))


def test_dense_mode_norms_every_map_and_reads_a_classifiers_file(name: str) -> None:
    if "out_norm" not in inspect.signature(get_variant(name).cls).parameters:
        assert get_variant(name).cls.cnn or get_variant(name).family in (
            "agent_deit",
            "agent_pvt",
            "chada_vit",
            "inline_deit",
            "inline_pvt",
            "medvit",
            "nat_isotropic",
            "vit",
            "sgformer",
        )  # no norms of outputs in their dense code, or none at all, or those of the classifier
        return
    classifier, dense = small(name), small(name, features_only=True, out_norm=True, output_stride=32)
    report = va.load_checkpoint(dense, classifier.state_dict())
    assert len(report.skipped) == bool(dense.out_norms)
    with torch.no_grad():
        maps = dense.train()(torch.randn(2, 3, 65, 97))  # fresh batch norms have statistics of no image
    for feature in maps:  # the norms are fresh: each position has mean 0 and deviation 1
        assert torch.allclose(feature.mean(1), torch.zeros(()), atol=1e-4)
        assert torch.allclose(feature.std(1, correction=0), torch.ones(()), atol=1e-2)


@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans_and_num_classes(name: str, channels: int) -> None:
    model = small(name, in_chans=channels, num_classes=5).eval()
    image = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert model(image).shape == (2, 5)
        pooled = model.forward_head(model.forward_features(image), pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(image), pooled)
    assert pooled.shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), nn.Identity)
    weight = model.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight")
    assert weight.shape[1] == (1 if get_variant(name).cls.per_channel else channels)


def test_parts_of_the_classifier_agree(name: str) -> None:
    model = small(name, num_classes=5).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits, features = model(image), model.forward_features(image)
        final, maps = model.forward_intermediates(image)
        assert torch.equal(model.forward_head(features), logits)
        assert torch.equal(final, features) and features.shape[1] == model.num_features
        assert torch.equal(maps[-1], features)
        assert len(model.forward_intermediates(image, indices=2, intermediates_only=True)) == 2
    assert [info["num_chs"] for info in model.feature_info] == [feature.shape[1] for feature in maps]


def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(name: str) -> None:
    model = small(name, num_classes=5, drop_path_rate=0.0).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    image = torch.randn(2, 3, 96, 96)
    for net in (model, checkpointed):
        torch.manual_seed(0)  # for keys that are drawn
        net(image).square().sum().backward()
    for (key, one), two in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if not one.requires_grad:
            assert one.grad is None and not_trained(key), key
            continue
        assert one.grad is not None and (one.grad.abs().sum() > 0 or no_effect(key)), key
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-5 * float(one.grad.abs().max())), key
    for (key, one), two in zip(model.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5), key  # running statistics saw the batch once


def no_effect(key: str) -> bool:
    """Parameters in the authors' files that do not reach the logits.

    Biases that add the same to all scores of a softmax: of TransNeXt's last stage, of CrossFormer's positions, of MedViTV2's keys.
    The classifiers of Agent-DeiT and InLine-DeiT read the class token, for which the last block computes nothing of the patches.
    """
    of_patches = (".na_bias", ".ha_bias", ".wa_bias", ".dwc.weight", ".dwc.bias")
    if key.startswith("backbone.stages.3.1.attn.") and (key.endswith(of_patches) or ".attn.residual." in key):
        return True
    last = key.startswith("backbone.stages.3.") and key.endswith(".position_bias.fc2.bias")
    return last or key.endswith((".attn.k.bias", ".position.layers.2.2.bias"))


def not_trained(key: str) -> bool:
    """MedViTV2's knots, and a branch that its authors never run."""
    return key.endswith(".grid") or ".unused." in key


def test_images_do_not_see_each_other_and_eval_repeats(name: str) -> None:
    model = small(name, num_classes=5, drop_path_rate=0.2, drop_rate=0.1).eval()
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = model(image)
        assert torch.equal(model(image), together)
        alone = torch.cat([model(one[None]) for one in image])
    assert torch.allclose(alone, together, atol=1e-4 * float(together.abs().max()))


def test_bfloat16(name: str) -> None:
    model = small(name, num_classes=5).eval()
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        exact = model(image)
        low = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max().clamp(min=0.1)


def test_meta_construction_and_init_leave_no_nan(name: str) -> None:
    with torch.device("meta"):
        model = small(name, num_classes=5)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model = initialised(model)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 64, 64))).all()


@pytest.mark.parametrize(
    ("name", "part", "std"),
    [
        ("casvit_xsmall", "backbone.stages.1.blocks.0.mlp.0.weight", (3 * 16) ** -0.5),  # torch's own, of 16 channels
        ("overlock_xtiny", "backbone.stages.1.downsample.0.weight", 0.02),
        ("overlock_xtiny", "backbone.stages.2.blocks.0.rpb2", 0.0),
    ],
)
def test_initialisation_is_that_of_the_authors(name: str, part: str, std: float) -> None:
    assert float(small(name).get_parameter(part).detach().std()) == pytest.approx(std, rel=0.1)


def test_layer_groups_and_weight_decay_cover_the_parameters(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    model = small(name, num_classes=5)
    names = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.no_weight_decay() <= set(names)
    groups = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {key: group["lr_scale"] for group in groups for key, value in names.items() if any(value is p for p in group["params"])}
    assert len(scale) == len(names)
    first = scale[f"{model.pretrained_cfg['first_conv']}.weight"]
    assert first == min(scale.values()) < scale["head.fc.weight"] == 1.0
    decayed = {key for group in groups if group["weight_decay"] for key, value in names.items() if any(value is p for p in group["params"])}
    assert not decayed & model.no_weight_decay()
    assert all(names[key].ndim > 1 for key in decayed)


def test_state_dict_round_trip_and_parameter_names(name: str) -> None:
    model, other = small(name, num_classes=5).eval(), small(name, num_classes=5).eval()
    assert all(key.startswith(("backbone.", "head.")) for key in model.state_dict())
    report = va.load_checkpoint(other, model.state_dict(), allow=())
    assert report.reshaped == report.skipped == []
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(image), model(image))


# ELA's MobileNetV2 is that of ECA, with the gates of ELA's ResNet.
COMPILED_IN_ZOO = {*ZOO, "ELAMobileNetV2"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[pytest.mark.slow, pytest.mark.zoo] if family in COMPILED_IN_ZOO else []) for family in sorted(TINY)],
)
def test_compile_and_export(family: str) -> None:
    torch._dynamo.reset()  # the families share code, and a function is compiled a limited number of times
    model = cut(family)
    image = torch.randn(2, 3, 64, 96)
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        exported = torch.export.export(model, (image,), dynamic_shapes=({0: batch},)).module()
        compiled = torch.compile(model, fullgraph=True, backend="eager")  # that its operations can be lowered, the program shows
        for count in (2, 3):
            image = torch.randn(count, 3, 64, 96)
            torch._dynamo.mark_dynamic(image, 0)  # compiled once, for any batch
            assert torch.allclose(exported(image), model(image), atol=1e-5)
            assert torch.allclose(compiled(image), model(image), atol=1e-5)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("family", sorted(TINY))
def test_a_compiled_network_trains(family: str) -> None:
    torch._dynamo.reset()
    model = cut(family).train()
    image = torch.randn(2, 3, 64, 96)
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        call(image).square().mean().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in results[0].items():
        found = results[1][name]
        assert (found is None) == (wanted is None), name
        if wanted is not None:
            assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-7, name


def test_wrong_names_and_arguments() -> None:
    with pytest.raises(UserError) as caught:
        va.create_model("swin_tinny")
    assert caught.value.code == "VA-M001" and "swin_tiny" in caught.value.fix and caught.value.exit_code == 2
    with pytest.raises(ArgumentError) as caught:
        va.create_model("swin_tiny", windowsize=7)
    assert caught.value.code == "VA-M002" and "Did you mean window_size?" in caught.value.fix
    assert isinstance(caught.value, TypeError)
    with pytest.raises(ValueError, match="output_stride"):
        va.create_model("swin_tiny", output_stride=16)
    with pytest.raises(UserError) as caught:
        va.create_model("swin_tiny", pretrained=True)
    assert caught.value.code == "VA-W001" and caught.value.exit_code == 4


def test_a_name_is_registered_once() -> None:
    from visionattn.backbones.eca import ECAResNet

    with pytest.raises(ValueError, match="registered already"):
        va.register_backbone(ECAResNet, {"eca_resnet18": {}})


def test_listing() -> None:
    assert va.list_models("swin_*_384") == ["swin_base_384", "swin_large_384"]
    assert "eca_mobilenetv2" in va.list_models(family="eca")
    info = va.model_info("swin_tiny")
    assert info["params"] == 28_288_354
    assert info["channels"] == [96, 192, 384, 768]
    assert info["gmacs"] == pytest.approx(4.5, rel=0.04)  # the paper counts 4.5 G
