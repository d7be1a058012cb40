"""NAT, DiNAT, DiNAT_s and the isotropic models: what is theirs alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import visionattn as va
from tests.parity import Record, fill
from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError
from visionattn.kernels import neighborhood_attention
from visionattn.layers import NeighborhoodAttention, block_dilations

PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
    "nat_isotropic_small": 21_999_736,
    "nat_isotropic_base": 86_465_800,
    "dinat_isotropic_small": 21_999_736,
    "dinat_isotropic_base": 86_465_800,
    "vitrpb_small": 22_080_376,
    "vitrpb_base": 86_627_080,
}


@pytest.fixture
def no_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisation takes most of the time of a construction on the meta device."""
    for name in PARAMETERS:
        monkeypatch.setattr(get_variant(name).cls, "init_weights", lambda self: None)


@pytest.mark.usefixtures("no_init")
def test_every_variant_has_the_published_number_of_parameters() -> None:
    assert {name for family in ("nat", "dinat_s", "nat_isotropic") for name in va.list_models(family=family)} == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        with torch.device("meta"):
            model = va.create_model(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name
        assert model.pretrained_cfg["input_size"] == ((3, 384, 384) if "384" in name else (3, 224, 224))


def dilations_of(name: str, **arguments: Any) -> list[list[int]]:
    with torch.device("meta"):
        model = va.create_model(name, features_only=True, **arguments)
    return [[module.dilation for module in stage.modules() if isinstance(module, NeighborhoodAttention)] for stage in model.stages]


@pytest.mark.usefixtures("no_init")
def test_published_dilations() -> None:
    assert dilations_of("dinat_mini") == [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]
    assert dilations_of("dinat_large_384") == [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1, 1, 1, 1, 1]]
    assert dilations_of("dinat_large_384_11x11") == [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1, 1, 1, 1, 1]]
    assert dilations_of("dinat_s_tiny") == [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]
    assert dilations_of("dinat_s_large_384") == [[1, 13], [1, 6], [1, 3] * 9, [1, 1]]
    assert dilations_of("dinat_isotropic_small") == [[1, 2, 1], [2, 1, 2], [1, 2, 1], [2, 1, 2]]
    assert {step for name in ("nat_tiny", "nat_isotropic_base") for stage in dilations_of(name) for step in stage} == {1}


def test_dilations_are_an_argument_and_the_weights_stay() -> None:
    dense = [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4], 2]
    assert dilations_of("dinat_mini", dilations=dense) == [*dense[:3], [1, 2, 1, 2, 1]]
    torch.manual_seed(0)
    one = va.create_model("dinat_mini", depths=(2, 1, 1, 1), num_classes=5).eval()
    other = va.create_model("dinat_mini", depths=(2, 1, 1, 1), num_classes=5, dilations=[[1, 2], [1], [1], 1]).eval()
    assert va.load_checkpoint(other, one.state_dict(), allow=()).reshaped == []
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.uniform_(-0.2, 0.2)
        other.load_state_dict(one.state_dict())
        image = torch.randn(1, 3, 64, 64)
        assert not torch.allclose(one(image), other(image))


def test_dilations_that_do_not_fit_are_refused() -> None:
    assert block_dilations([3, [1, 5]], (4, 2)) == [[1, 3, 1, 3], [1, 5]]
    with pytest.raises(ValueError, match="stage 1 has 4 blocks, got 3"):
        va.create_model("dinat_mini", dilations=[[1, 8, 1], [1, 4, 1], [1, 2] * 3, 1])
    with pytest.raises(ValueError, match="stage 0 has 3 blocks, got 4"):
        va.create_model("dinat_mini", dilations=[[1, 8, 1, 8], 4, 2, 1])
    with pytest.raises(ValueError, match="each of the 4 stages, got 3"):
        va.create_model("dinat_s_tiny", dilations=[8, 4, 2])
    with pytest.raises(ValueError, match="has 12 blocks, got 3"):
        va.create_model("dinat_isotropic_small", dilations=[1, 2, 1])


def test_small_maps_are_padded_before_the_projection() -> None:
    """Zeros become keys and values (the bias of the projection), and the padded rows are cut off again."""
    torch.manual_seed(0)
    attn = NeighborhoodAttention(8, 2, kernel_size=3, dilation=3).double()
    torch.nn.init.normal_(attn.rpb)
    x = torch.randn(2, 4, 10, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 0, 0, 5))  # 9 rows are needed; 10 columns are enough
    q, k, v = attn.qkv(padded).view(2, 9, 10, 3, 2, 4).unbind(3)
    assert torch.equal(k[:, 4:].flatten(3), attn.qkv.bias[8:16].expand(2, 5, 10, 8))
    want = attn.proj(neighborhood_attention(q, k, v, 3, 3, bias=attn.rpb).flatten(3)[:, :4])
    assert torch.allclose(attn(x), want, atol=1e-12)


@pytest.mark.parametrize("name", ["dinat_base", "dinat_s_tiny"])
def test_maps_for_dense_prediction_are_normed(name: str) -> None:
    arguments: dict[str, Any] = {"features_only": True, "depths": (1, 1, 1, 1)}
    torch.manual_seed(0)
    plain = va.create_model(name, **arguments).eval()
    dense = va.create_model(name, out_norm=True, out_indices=(1, 3), **arguments).eval()
    state = plain.state_dict()
    for index in (1, 3):
        channels = plain.channels[index]
        state |= {f"norm{index}.weight": torch.full((channels,), 2.0), f"norm{index}.bias": torch.ones(channels)}
    va.load_checkpoint(dense, to_upstream(state, name), allow=())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for index, normed in zip((1, 3), dense(image), strict=True):
            feature = plain(image)[index].permute(0, 2, 3, 1)
            want = 2 * F.layer_norm(feature, feature.shape[-1:]) + 1
            assert torch.allclose(normed.permute(0, 2, 3, 1), want, atol=1e-4)


def to_upstream(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The authors' keys of a hierarchical backbone's state dict."""
    level = "layers" if name.startswith("dinat_s_") else "levels"
    renamed = {}
    for key, value in state.items():
        if key.startswith("stages.") and ".downsample." in key:
            stage, rest = key.split(".", 2)[1:]
            key = f"{level}.{int(stage) - 1}.{rest}"
        renamed[key.replace("stages.", f"{level}.")] = value
    return renamed


def to_transformers(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The authors' state dict as transformers' `NatForImageClassification` and `DinatForImageClassification` name it."""
    names = {
        "norm1": "layernorm_before",
        "attn.rpb": "attention.self.rpb",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    theirs = {}
    for key, value in state.items():
        if key.startswith("head."):
            theirs[key.replace("head", "classifier")] = value
        elif key.startswith("norm."):
            theirs[f"{prefix}.layernorm.{key[5:]}"] = value
        elif key.startswith("patch_embed."):
            theirs[f"{prefix}.embeddings.{key[12:].replace('proj', 'patch_embeddings.projection')}"] = value
        elif ".downsample." in key:
            theirs[f"{prefix}.encoder.{key}"] = value
        else:
            level, block, rest = key.split(".", 4)[1], key.split(".", 4)[3], key.split(".", 4)[4]
            stem = f"{prefix}.encoder.levels.{level}.layers.{block}."
            if rest.startswith("attn.qkv"):
                for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    theirs[stem + rest.replace("attn.qkv", f"attention.self.{part}")] = piece
            elif rest == "gamma1":
                theirs[f"{stem}layer_scale_parameters"] = torch.stack([value, state[key.replace("gamma1", "gamma2")]])
            elif rest != "gamma2":
                module = next(name for name in names if rest.startswith(name))
                theirs[stem + rest.replace(module, names[module])] = value
    return theirs


@pytest.mark.parametrize(("name", "prefix"), [("nat_small", "nat"), ("dinat_mini", "dinat")])
def test_files_of_the_authors_and_of_transformers_are_read(name: str, prefix: str) -> None:
    torch.manual_seed(0)
    models = [va.create_model(name, depths=(2, 1, 1, 1), num_classes=5) for _ in range(3)]
    ours = models[0].state_dict()
    for value in ours.values():
        value.uniform_(-1, 1)  # in place: equal initial values would hide an exchange
    bare = {key.removeprefix("backbone.").replace("head.norm", "norm").replace("head.fc", "head"): value for key, value in ours.items()}
    authors = to_upstream(bare, name)
    va.load_checkpoint(models[1], authors, allow=())
    va.load_checkpoint(models[2], to_transformers(authors, prefix), allow=())
    for key, value in ours.items():
        assert torch.equal(models[1].state_dict()[key], value), key
        assert torch.equal(models[2].state_dict()[key], value), key


def test_a_larger_kernel_reads_resized_tables() -> None:
    given = Record("dinat", "dinat_mini__224x224").state()
    model = va.create_model("dinat_mini", kernel_size=11)
    report = va.load_checkpoint(model, given)
    assert report.reshaped == ["relative position tables 13x13 -> 21x21, bicubic (18 tables)"]
    # Both tables have their centre (offset 0) in common: its bias is kept.
    table, seven = model.backbone.stages[0].blocks[1].attn.rpb, given["levels.0.blocks.1.attn.rpb"]
    assert torch.allclose(table[:, 10, 10], seven[:, 6, 6], atol=1e-6)


def vitrpb_state() -> dict[str, torch.Tensor]:
    """A file of vitrpb_small: its blocks are those of the isotropic models, with larger tables and the stored index."""
    state = Record("dinat_isotropic", "dinat_isotropic_small__224x224").state()
    for block in range(12):
        state[f"layers.{block}.attn.rpb"] = torch.from_numpy(fill(f"layers.{block}.attn.rpb", (12, 27, 27)))
        state[f"layers.{block}.attn.relative_position_index"] = torch.zeros(196, 196, dtype=torch.int64)
    return state


def test_global_attention_is_neighborhood_attention_that_sees_all() -> None:
    """With a kernel that reaches the whole grid from every position, both are the same sum over keys."""
    model = va.create_model("vitrpb_small").eval()
    va.load_checkpoint(model, vitrpb_state(), allow=())
    attn = model.backbone.stages[1][2].attn
    x = torch.randn(1, 14, 14, 384)
    q, k, v = attn.qkv(x).view(1, 14, 14, 3, 12, 32).unbind(3)
    table = F.pad(attn.rpb, (13, 13, 13, 13))  # offsets beyond the map are masked
    want = attn.proj(neighborhood_attention(q, k, v, 27, bias=table, border="mask").flatten(3))
    with torch.no_grad():
        assert torch.allclose(attn(x), want, atol=1e-5)


def test_global_attention_at_other_sizes_resizes_its_tables() -> None:
    model = va.create_model("vitrpb_small", depths=(1, 1, 1, 1), features_only=True)
    attn = model.stages[0][0].attn
    torch.nn.init.normal_(attn.rpb)
    bias = attn.bias(5, 8)  # heads, (row, col) of query, (row, col) of key
    assert bias.shape == (12, 40, 40)
    assert torch.allclose(bias.diagonal(dim1=1, dim2=2), attn.rpb[:, 13:14, 13].expand(12, 40), atol=1e-6)  # offset 0: the centre
    grid = bias.view(12, 5, 8, 5, 8)
    assert torch.equal(grid[:, 1, 2, 3, 1], grid[:, 2, 7, 4, 6])
    assert not torch.allclose(grid[:, 1, 2, 3, 1], grid[:, 3, 1, 1, 2])
    native = attn.bias(14, 14).view(12, 14, 14, 14, 14)
    assert torch.equal(native[:, 2, 3, 7, 1], attn.rpb[:, 7 - 2 + 13, 1 - 3 + 13])


def test_the_wrong_isotropic_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.models.weights.recognise.list_models", lambda: ["nat_isotropic_small", "vitrpb_small"])  # not all: fast
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("nat_isotropic_small"), vitrpb_state())
    assert caught.value.code == "VA-W003" and "looks like vitrpb_small" in str(caught.value)
