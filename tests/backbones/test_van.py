"""VAN: sizes of all variants, the layouts of its files, what the dense backbone has of its own."""

from __future__ import annotations

import re

import pytest
import torch

import visionattn as va

PARAMS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}


def test_every_variant_has_the_authors_parameters_and_preprocessing() -> None:
    assert va.list_models(family="van") == list(PARAMS)
    for name, params in PARAMS.items():
        with torch.device("meta"):
            model = va.create_model(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == params
        cfg = model.pretrained_cfg
        assert cfg["mean"] == cfg["std"] == (0.5, 0.5, 0.5)
        assert (cfg["crop_pct"], cfg["interpolation"], cfg["input_size"]) == (0.9, "bicubic", (3, 224, 224))


# Our modules, and the names of other layouts for them; {i} counts stages from 0, {n} from 1.
LAYOUTS = {
    "official": {
        "downsample.proj": "patch_embed{n}.proj",
        "downsample.norm": "patch_embed{n}.norm",
        "norm": "norm{n}",
        "blocks.{j}.norm1": "block{n}.{j}.norm1",
        "blocks.{j}.norm2": "block{n}.{j}.norm2",
        "blocks.{j}.layer_scale_1": "block{n}.{j}.layer_scale_1",
        "blocks.{j}.layer_scale_2": "block{n}.{j}.layer_scale_2",
        "blocks.{j}.attn.proj_1": "block{n}.{j}.attn.proj_1",
        "blocks.{j}.attn.proj_2": "block{n}.{j}.attn.proj_2",
        "blocks.{j}.attn.lka.conv0": "block{n}.{j}.attn.spatial_gating_unit.conv0",
        "blocks.{j}.attn.lka.conv_spatial": "block{n}.{j}.attn.spatial_gating_unit.conv_spatial",
        "blocks.{j}.attn.lka.conv1": "block{n}.{j}.attn.spatial_gating_unit.conv1",
        "blocks.{j}.mlp.fc1": "block{n}.{j}.mlp.fc1",
        "blocks.{j}.mlp.dwconv": "block{n}.{j}.mlp.dwconv.dwconv",
        "blocks.{j}.mlp.fc2": "block{n}.{j}.mlp.fc2",
        "head.fc": "head",
    },
    "mmpretrain": {
        "downsample.proj": "backbone.patch_embed{n}.projection",
        "downsample.norm": "backbone.patch_embed{n}.norm",
        "norm": "backbone.norm{n}",
        "blocks.{j}.norm1": "backbone.blocks{n}.{j}.norm1",
        "blocks.{j}.norm2": "backbone.blocks{n}.{j}.norm2",
        "blocks.{j}.layer_scale_1": "backbone.blocks{n}.{j}.layer_scale_1",
        "blocks.{j}.layer_scale_2": "backbone.blocks{n}.{j}.layer_scale_2",
        "blocks.{j}.attn.proj_1": "backbone.blocks{n}.{j}.attn.proj_1",
        "blocks.{j}.attn.proj_2": "backbone.blocks{n}.{j}.attn.proj_2",
        "blocks.{j}.attn.lka.conv0": "backbone.blocks{n}.{j}.attn.spatial_gating_unit.DW_conv",
        "blocks.{j}.attn.lka.conv_spatial": "backbone.blocks{n}.{j}.attn.spatial_gating_unit.DW_D_conv",
        "blocks.{j}.attn.lka.conv1": "backbone.blocks{n}.{j}.attn.spatial_gating_unit.conv1",
        "blocks.{j}.mlp.fc1": "backbone.blocks{n}.{j}.mlp.fc1",
        "blocks.{j}.mlp.dwconv": "backbone.blocks{n}.{j}.mlp.dwconv",
        "blocks.{j}.mlp.fc2": "backbone.blocks{n}.{j}.mlp.fc2",
        "head.fc": "head.fc",
    },
    "transformers": {
        "downsample.proj": "van.encoder.stages.{i}.embeddings.convolution",
        "downsample.norm": "van.encoder.stages.{i}.embeddings.normalization",
        "norm": "van.encoder.stages.{i}.normalization",
        "blocks.{j}.norm1": "van.encoder.stages.{i}.layers.{j}.pre_normomalization",
        "blocks.{j}.norm2": "van.encoder.stages.{i}.layers.{j}.post_normalization",
        "blocks.{j}.layer_scale_1": "van.encoder.stages.{i}.layers.{j}.attention_scaling.weight",
        "blocks.{j}.layer_scale_2": "van.encoder.stages.{i}.layers.{j}.mlp_scaling.weight",
        "blocks.{j}.attn.proj_1": "van.encoder.stages.{i}.layers.{j}.attention.pre_projection.conv",
        "blocks.{j}.attn.proj_2": "van.encoder.stages.{i}.layers.{j}.attention.post_projection",
        "blocks.{j}.attn.lka.conv0": "van.encoder.stages.{i}.layers.{j}.attention.attention_layer.attention.depth_wise",
        "blocks.{j}.attn.lka.conv_spatial": "van.encoder.stages.{i}.layers.{j}.attention.attention_layer.attention.depth_wise_dilated",
        "blocks.{j}.attn.lka.conv1": "van.encoder.stages.{i}.layers.{j}.attention.attention_layer.attention.point_wise",
        "blocks.{j}.mlp.fc1": "van.encoder.stages.{i}.layers.{j}.mlp.in_dense",
        "blocks.{j}.mlp.dwconv": "van.encoder.stages.{i}.layers.{j}.mlp.depth_wise",
        "blocks.{j}.mlp.fc2": "van.encoder.stages.{i}.layers.{j}.mlp.out_dense",
        "head.fc": "classifier",
    },
}


def in_layout(state: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in state.items():
        stage, rest = re.match(r"(?:backbone\.stages\.(\d+)\.)?(.*)", key).groups()
        module, tail = re.match(r"(.*?)(\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?$", rest).groups()
        block = re.match(r"blocks\.(\d+)", module)
        template = names[re.sub(r"^blocks\.\d+", "blocks.{j}", module)]
        counted = template.format(i=stage, n=int(stage or 0) + 1, j=block.group(1) if block else "")
        renamed[counted + (tail or "")] = value
    return renamed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_are_read(layout: str) -> None:
    torch.manual_seed(0)
    source, model = (va.create_model("van_b0", depths=(1, 2, 1, 2), num_classes=7) for _ in range(2))
    state = in_layout(source.state_dict(), LAYOUTS[layout])
    if layout == "transformers":  # a norm that its forward pass leaves out
        state |= {"van.layernorm.weight": torch.ones(256), "van.layernorm.bias": torch.zeros(256)}
    report = va.load_checkpoint(model, {"state_dict": state}, allow=())
    assert report.reshaped == report.skipped == []
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    dense = va.create_model("van_b0", depths=(1, 2, 1, 2), features_only=True)
    headless = {key: value for key, value in state.items() if not key.startswith(("head.", "classifier."))}
    assert va.load_checkpoint(dense, headless, allow=()).matched == report.matched - 2


def test_the_dense_backbone_norms_with_its_own_eps() -> None:
    plain, dense = (va.create_model("van_b0", depths=(1, 1, 1, 1), features_only=True, out_norm=flag).eval() for flag in (False, True))
    dense.load_state_dict(plain.state_dict())
    assert {stage.norm.eps for stage in plain.stages} == {1e-6}
    assert {stage.norm.eps for stage in dense.stages} == {1e-5}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, two in zip(plain(image), dense(image), strict=True):
            assert torch.allclose(one.mean(1), torch.zeros_like(one[:, 0]), atol=1e-5)  # normed either way
            assert not torch.equal(one, two) and torch.allclose(one, two, atol=1e-2)


def test_the_gate_is_a_product_and_the_first_scale_reaches_the_shortcut() -> None:
    """A block whose projections are zero adds its scaled norm; one whose large kernel is a constant scales its input."""
    block = va.create_model("van_b0", depths=(1, 1, 1, 1), features_only=True).eval().stages[0].blocks[0]
    x = torch.randn(2, 32, 9, 7)
    with torch.no_grad():
        block.attn.proj_2.weight.zero_()
        block.mlp.fc2.weight.zero_()
        assert torch.allclose(block(x), x + 0.01 * block.norm1(x), atol=1e-6)
        block.attn.lka.conv1.weight.zero_()
        block.attn.lka.conv1.bias.fill_(-3.0)
        assert torch.equal(block.attn.lka(x), -3 * x)
