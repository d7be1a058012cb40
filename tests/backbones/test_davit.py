"""DaViT: sizes of all variants, the layouts of its files, the head's order, padding, dense mode; timm as outside judge."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.davit import checkpoint_filter_fn
from torch import nn

import visionattn as va
from tests.parity import Record, relative_error

# Of models.json; the large model with window 12 has no other tensors than that with window 7.
PARAMETERS = {
    "davit_tiny": 28_360_168,
    "davit_small": 49_745_896,
    "davit_base": 87_954_408,
    "davit_large": 196_811_752,
    "davit_large_384": 196_811_752,
    "davit_huge": 348_922_856,
    "davit_giant": 1_406_470_120,
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return va.create_model("davit_tiny", **{"embed_dim": 16, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), **arguments}).eval()


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's own state with norms and biases that do something."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, value in model.state_dict().items():
        noise = torch.rand(value.shape, generator=generator) - 0.5
        state[key] = value + 0.4 * noise if value.dim() == 1 else value
    return state


# Ours to the authors', written down by hand and not by inverting `from_upstream`.
TO_AUTHORS = [
    (r"^backbone\.patch_embed\.", "patch_embeds.0."),
    (r"^backbone\.stages\.(\d)\.downsample\.", r"patch_embeds.\1."),
    (r"^backbone\.stages\.(\d)\.blocks\.(\d)\.spatial\.", r"main_blocks.\1.\2.0."),
    (r"^backbone\.stages\.(\d)\.blocks\.(\d)\.channel\.", r"main_blocks.\1.\2.1."),
    (r"^backbone\.out_norms\.", "norm"),
    (r"\.cpe1\.", ".cpe.0."),
    (r"\.cpe2\.", ".cpe.1."),
    (r"^head\.norm\.", "norms."),
    (r"^head\.fc\.", "head."),
]
# The authors' to mmpretrain's classifier, whose stages end with the downsampling.
TO_MMPRETRAIN = [
    (r"^patch_embeds\.0\.", "backbone.patch_embed."),
    *[(rf"^patch_embeds\.{index + 1}\.", f"backbone.stages.{index}.downsample.") for index in range(3)],
    (r"^(backbone\.(?:patch_embed|stages\.\d\.downsample))\.proj\.", r"\1.projection."),
    (r"^main_blocks\.(\d)\.(\d)\.0\.", r"backbone.stages.\1.blocks.\2.spatial_block."),
    (r"^main_blocks\.(\d)\.(\d)\.1\.", r"backbone.stages.\1.blocks.\2.channel_block."),
    (r"\.cpe\.0\.", ".cpe1."),
    (r"\.cpe\.1\.", ".cpe2."),
    (r"spatial_block\.attn\.", "spatial_block.attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^norms\.", "backbone.norm3."),
    (r"^head\.", "head.fc."),
]


def renamed(state: dict[str, torch.Tensor], rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """All rules in turn on every key."""
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_all_variants(name: str) -> None:
    with torch.device("meta"):
        model = va.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert sorted(PARAMETERS) == va.list_models(family="davit")


@pytest.mark.parametrize("size", [(224, 224), (96, 130)])
def test_timm_gives_the_same_logits_both_ways(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    authors = Record("davit", "DaViT_tiny__96x96").state()
    ours, theirs = va.create_model("davit_tiny").eval(), timm.create_model("davit_tiny").eval()
    # Ours to timm, by way of the authors' layout and timm's own conversion.
    va.load_checkpoint(ours, authors, allow=())
    given_back = renamed(ours.state_dict(), TO_AUTHORS)
    assert given_back.keys() == authors.keys()
    theirs.load_state_dict(checkpoint_filter_fn(given_back, theirs), strict=True)
    # timm's to another of ours.
    again = va.create_model("davit_tiny").eval()
    assert va.load_checkpoint(again, theirs.state_dict(), allow=()).matched == len(authors)
    with torch.no_grad():
        want = theirs(image)
        assert want.std() > 0.5
        assert relative_error(ours(image), want.numpy()) < 1e-5
        assert torch.equal(again(image), ours(image))
        pooled = ours.forward_head(ours.forward_features(image), pre_logits=True)
        assert relative_error(pooled, theirs.forward_head(theirs.forward_features(image), pre_logits=True).numpy()) < 1e-5
        final, maps = theirs.forward_intermediates(image, norm=True)
        our_final, our_maps = ours.forward_intermediates(image, norm=True)
    for got, feature in zip([our_final, *our_maps], [final, *maps], strict=True):
        assert relative_error(got, feature.numpy()) < 1e-5


def test_layouts_of_files_hold_the_same_weights() -> None:
    source = small(num_classes=7)
    state = random_state(source)
    source.load_state_dict(state)
    authors = renamed(state, TO_AUTHORS)
    mmpretrain = renamed(authors, TO_MMPRETRAIN)
    assert {"patch_embeds.3.norm.weight", "main_blocks.2.1.0.cpe.0.proj.bias", "norms.weight", "head.weight"} <= authors.keys()
    assert {
        "backbone.stages.2.downsample.projection.bias",
        "backbone.stages.0.blocks.0.spatial_block.attn.w_msa.qkv.bias",
        "backbone.stages.3.blocks.0.channel_block.ffn.layers.0.0.weight",
        "backbone.norm3.weight",
        "head.fc.weight",
    } <= mmpretrain.keys()
    for layout in (authors, mmpretrain, {f"module.{key}": value for key, value in authors.items()}):
        model = small(num_classes=7)
        va.load_checkpoint(model, {"state_dict": layout}, allow=())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_segmentation_backbone_norms_every_map() -> None:
    plain, dense = small(features_only=True), small(features_only=True, out_norm=True)
    assert {key for key in dense.state_dict() if key not in plain.state_dict()} == {
        f"out_norms.{index}.{name}" for index in range(4) for name in ("weight", "bias")
    }
    state = {f"backbone.{key}": value for key, value in random_state(dense).items()}
    authors = renamed(state, TO_AUTHORS)
    assert "norm0.weight" in authors
    # A whole segmentor's file calls it backbone; what its heads hold is not the backbone's.
    va.load_checkpoint(dense, {"state_dict": {f"backbone.{key}": value for key, value in authors.items()}}, allow=())
    plain.load_state_dict({key: value for key, value in dense.state_dict().items() if not key.startswith("out_norms")})
    image = torch.randn(2, 3, 72, 100)
    with torch.no_grad():
        for index, (bare, normed) in enumerate(zip(plain(image), dense(image), strict=True)):
            norm = dense.out_norms[str(index)]
            assert torch.allclose(norm(bare.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed, atol=1e-6)


def test_classifier_pools_then_norms() -> None:
    model = small(num_classes=5)
    model.load_state_dict(random_state(model))
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(image)
        pooled = features.mean((2, 3))
        norm = model.head.norm
        features_normed = nn.functional.layer_norm(pooled, pooled.shape[1:], norm.weight, norm.bias, 1e-5)
        assert torch.allclose(model.forward_head(features, pre_logits=True), features_normed, atol=1e-6)
        assert torch.allclose(model(image), model.head.fc(features_normed), atol=1e-6)
        assert not torch.allclose(norm(features).mean((2, 3)), features_normed, atol=1e-2)
        assert torch.equal(model.forward_intermediates(image, norm=True)[1][-1], features)  # maps are not normed


def test_padding_of_windows_is_attended_to() -> None:
    """The zeros that fill up a window stand after the norm, so that their keys and values are the biases."""
    attn = small(window_size=5).backbone.stages[1].blocks[0].spatial.attn
    with torch.no_grad():
        attn.qkv.bias.normal_()
    dim, heads = attn.proj.in_features, attn.num_heads
    x = torch.randn(1, 3, 7, dim)
    with torch.no_grad():
        padded = torch.zeros(5, 10, dim)
        padded[:3, :7] = x[0]
        q, k, v = (part.view(5, 10, heads, -1) for part in attn.qkv(padded).chunk(3, -1))
        want = torch.zeros(3, 7, dim)
        for row in range(3):
            for col in range(7):
                keys, values = (part[:, col // 5 * 5 : col // 5 * 5 + 5].reshape(25, heads, -1) for part in (k, v))
                weights = (torch.einsum("hd,nhd->hn", q[row, col], keys) * (dim // heads) ** -0.5).softmax(-1)
                want[row, col] = torch.einsum("hn,nhd->hd", weights, values).flatten()
        assert torch.allclose(attn(x)[0], attn.proj(want), atol=1e-5)


def test_stochastic_depth_grows_over_single_blocks() -> None:
    model = small(drop_path_rate=0.9)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1 * index for index in range(1, 10)])  # the first of ten blocks has none
