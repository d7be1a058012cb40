"""The medical systems are their authors': recorded outputs, weights filled by the rule of `tests.parity` from the authors' names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.heads.test_semantic_parity import FOLDER, TOLERANCE, error, inputs_of
from tests.parity import fill
from visionattn.attention import DSL
from visionattn.attention.dual_efficient import DualBlock, EfficientAttention, TransposedAttention
from visionattn.backbones.dae import DAEFormer
from visionattn.backbones.medvit import KANLayer
from visionattn.backbones.swin import Swin
from visionattn.heads.att_swin import AttSwin
from visionattn.heads.base import resize_to
from visionattn.heads.dae import CrossBlock
from visionattn.heads.danet import PositionAttention
from visionattn.heads.ms_dual_guided import GuidedAttention, MSDualGuided, SemanticModule
from visionattn.models.segmenter_factory import create_segmenter

RECORDS: dict[str, Any] = json.loads((FOLDER / "medical.json").read_text())
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))
Rules = Sequence[tuple[str, str]]


def recorded(name: str) -> np.ndarray:
    with np.load(FOLDER / "medical.npz") as arrays:
        return np.asarray(arrays[name])


def inputs(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    return [x.to(dtype) for x in inputs_of(RECORDS[name])]


def filled(module: nn.Module, rules: Rules, dtype: torch.dtype) -> int:
    """Fill `module`, in evaluation, by the authors' names: `rules` turn ours into theirs, first match only. Returns their number."""
    names = {}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        pattern, replacement = next((rule for rule in rules if re.search(rule[0], key)), ("^", ""))
        theirs = re.sub(pattern, replacement, key)
        names[key] = theirs
        # A learned factor has one element there and no dimension here.
        value.copy_(torch.from_numpy(np.asarray(fill(theirs, tuple(value.shape) or (1,)))).view(value.shape))
    assert len(set(names.values())) == len(names)
    module.eval().to(dtype)
    return len(names)


# The names of Multi-Scale-Attention: a branch of attention, the encoder-decoder, a step at a scale.


def msa_branch(ours: str, theirs: str) -> Rules:
    return [
        (rf"^{ours}\.0\.conv\.", f"{theirs}attn.0."),
        (rf"^{ours}\.0\.bn\.", f"{theirs}attn.1."),
        (rf"^{ours}\.0\.act\.", f"{theirs}attn.2."),
        (rf"^{ours}\.1\.gamma\.scale$", f"{theirs}attn.3.gamma"),
        (rf"^{ours}\.1\.(query|key|value)_project\.", rf"{theirs}attn.3.\1_conv."),
        (rf"^{ours}\.2\.conv\.", f"{theirs}attn.4."),
        (rf"^{ours}\.2\.bn\.", f"{theirs}attn.5."),
        (rf"^{ours}\.2\.act\.", f"{theirs}attn.6."),
    ]


def msa_semantic(ours: str, theirs: str) -> Rules:
    return [
        (rf"^{ours}encoders\.0\.", f"{theirs}enc1.encode."),
        (rf"^{ours}encoders\.1\.", f"{theirs}enc2.encode."),
        (rf"^{ours}decoders\.0\.", f"{theirs}dec2.decode."),
        (rf"^{ours}decoders\.1\.", f"{theirs}dec1.decode."),
    ]


def msa_decoder() -> Rules:
    """Their scales count from 1, the finest; convolutions of a step count from the coarsest."""
    rules = [
        *msa_semantic(r"first_semantic\.", "semanticModule_1_1."),
        *msa_semantic(r"second_semantic\.", "semanticModule_2_1."),
        *[(rf"^fuse\.{i}\.{part}\.", f"fuse1.fuse_attn.{3 * i + j}.") for i in range(3) for j, part in enumerate(("conv", "bn", "act"))],
        (r"^conv_seg\.", "predict1_2."),
        (r"^first_conv_seg\.(\d)\.", r"predict-\1."),  # not in evaluation
    ]
    for i in range(4):
        rules += [(rf"^projects\.{i}\.{part}\.", f"down{i + 1}.{j}.") for j, part in enumerate(("conv", "bn", "act"))]
        rules.append((rf"^coarser_conv_seg\.{i}\.", f"predict{i + 2}_2."))
        for step, name, project in ((1, "first", f"conv8_{4 - i}."), (2, "second", f"conv8_1{4 - i}.")):
            rules += msa_branch(rf"{name}\.{i}\.positions", f"pam_attention_{step}_{i + 1}.")
            rules += msa_branch(rf"{name}\.{i}\.channels", f"cam_attention_{step}_{i + 1}.")
            rules += [(rf"^{name}\.{i}\.semantic\.", f"conv_sem_{step}_{4 - i}."), (rf"^{name}\.{i}\.project\.", project)]
    return rules


@DTYPES
@torch.no_grad()
def test_msa_branch(dtype: torch.dtype) -> None:
    name = "msa_pam_layer"
    module = GuidedAttention(8).positions
    assert filled(module, [(pattern.replace("^X\\.", "^"), to) for pattern, to in msa_branch("X", "")], dtype) == RECORDS[name]["keys"]
    assert error(module(*inputs(name, dtype)), recorded(f"{name}/out")) < TOLERANCE[dtype]


@DTYPES
@torch.no_grad()
def test_msa_semantic_module(dtype: torch.dtype) -> None:
    name = "msa_semantic"
    module = SemanticModule(16)
    assert filled(module, msa_semantic("", ""), dtype) == RECORDS[name]["keys"]
    code, decoded = module(*inputs(name, dtype))
    assert error(code.flatten(), recorded(f"{name}/vec")) < TOLERANCE[dtype]
    assert error(decoded, recorded(f"{name}/out")) < TOLERANCE[dtype]


@torch.no_grad()
def test_msa_decoder_and_its_losses() -> None:
    """In float64 only, as recorded; what float32 can know is in the next test."""
    dtype = torch.float64
    name = "msa_daf_stack_decoder"
    head = MSDualGuided(RECORDS[name]["kwargs"]["in_channels"], [4, 8, 16, 32], RECORDS[name]["kwargs"]["num_classes"])
    filled(head, msa_decoder(), dtype)
    head.training = True  # the head alone: its norms stay in evaluation
    output = head(inputs(name, dtype))
    second = [output.logits, *(aux.logits for aux in output.aux if aux.name.startswith("second"))]
    logits = resize_to(torch.stack(second).mean(0), RECORDS[name]["kwargs"]["img"])
    assert error(logits[:, :, ::4, ::4], recorded(f"{name}/logits")) < TOLERANCE[dtype]
    assert [(part.name, part.weight) for part in output.regularizers] == [("semantic", 0.25), ("reconstruction", 0.1)]
    for part in output.regularizers:
        assert error(part.value, recorded(f"msa_guided_losses/{part.name}")) < TOLERANCE[dtype]


@pytest.mark.slow
@torch.no_grad()
def test_what_float32_can_know_of_the_msa_decoder() -> None:
    """Why the test above is in float64 only: exact layers whose outputs are rounded to float32 differ by more than its tolerance."""
    name = "msa_daf_stack_decoder"
    head = MSDualGuided(RECORDS[name]["kwargs"]["in_channels"], [4, 8, 16, 32], RECORDS[name]["kwargs"]["num_classes"])
    filled(head, msa_decoder(), torch.float64)
    for module in head.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, given, output: output.float().double())
    logits = resize_to(head(inputs(name, torch.float64)).logits, RECORDS[name]["kwargs"]["img"])
    assert TOLERANCE[torch.float32] < error(logits[:, :, ::4, ::4], recorded(f"{name}/logits")) < 10 * TOLERANCE[torch.float32]


@torch.no_grad()
def test_msa_predicts_the_mean_of_the_second_step() -> None:
    head = MSDualGuided([8, 12], [4, 8], 3, width=4).eval()
    maps = [torch.randn(1, 8, 7, 9), torch.randn(1, 12, 4, 5)]
    mean = head(maps).logits
    head.training = True
    output = head(maps)
    assert [(aux.name, aux.weight) for aux in output.aux] == [("second1", 1.0), ("first0", 1.0), ("first1", 1.0)]
    assert torch.allclose((output.logits + output.aux[0].logits) / 2, mean)


@DTYPES
@torch.no_grad()
def test_attention_map_of_dynamic_subspace_learners(dtype: torch.dtype) -> None:
    name = "dsl_attention"
    module = DSL(64)
    assert filled(module, [], dtype) == RECORDS[name]["keys"]
    (x,) = inputs(name, dtype)
    assert error(module.gate(x), recorded(f"{name}/out")) < TOLERANCE[dtype]
    assert torch.equal(module(x), x * module.gate(x))


@DTYPES
@torch.no_grad()
def test_position_attention_of_volumes(dtype: torch.dtype) -> None:
    """That of MPU-Net: it sees positions, so that two axes may be one."""
    name = "mpu_pam3d"
    module = PositionAttention(8, 1)
    rules: Rules = [(r"^gamma\.scale$", "gamma"), (r"^(query|key|value)_project\.", r"\1_conv.")]
    assert filled(module, rules, dtype) == RECORDS[name]["keys"]
    (x,) = inputs(name, dtype)
    assert error(module(x.flatten(2, 3)).view(x.shape), recorded(f"{name}/out")) < TOLERANCE[dtype]


@DTYPES
@torch.no_grad()
def test_kolmogorov_arnold_layers(dtype: torch.dtype) -> None:
    """Those of MedViTV2; the knots of the record are evenly spaced, as in a new layer."""
    name = "medvit_fasterkan"
    layers = nn.Sequential(*(KANLayer(*sizes) for sizes in pairwise(RECORDS[name]["kwargs"]["layers"])))
    grids = sum(key.endswith("grid") for key in layers.state_dict())
    rules: Rules = [(r"^(\d)\.norm\.", r"layers.\1.layernorm."), (r"^(\d)\.linear\.", r"layers.\1.spline_linear.")]
    assert filled(layers, rules, dtype) - grids == RECORDS[name]["keys"]
    for layer in layers:
        layer.reset_grid()  # type: ignore[operator]  # a KANLayer
    assert error(layers(*inputs(name, dtype)), recorded(f"{name}/out")) < TOLERANCE[dtype]


# The names of DAEFormer.
MLP: Rules = [(r"(mlp\d?\.dwconv)\.", r"\1.dwconv.")]
DAE_ENCODER: Rules = [
    *[(rf"^stages\.{i}\.downsample\.", f"backbone.patch_embed{i + 1}.") for i in range(3)],
    *[(rf"^stages\.{i}\.blocks\.(.*mlp\d\.dwconv)\.", rf"backbone.block{i + 1}.\1.dwconv.") for i in range(3)],
    *[(rf"^stages\.{i}\.blocks\.", f"backbone.block{i + 1}.") for i in range(3)],
    *[(rf"^stages\.{i}\.norm\.", f"backbone.norm{i + 1}.") for i in range(3)],
]
DAE_DECODER: Rules = [
    (r"^expand\.", "decoder_2.layer_up."),
    (r"^expands\.(\d)\.", r"decoder_\1.layer_up."),
    (r"^conv_seg\.", "decoder_0.last_layer."),
    *[(rf"^levels\.(\d)\.blocks\.{i}\.(mlp\d\.dwconv)\.", rf"decoder_\1.layer_former_{i + 1}.\2.dwconv.") for i in range(2)],
    *[(rf"^levels\.(\d)\.blocks\.{i}\.", rf"decoder_\1.layer_former_{i + 1}.") for i in range(2)],
    (r"^levels\.(\d)\.cross_attn\.(reprojection|norm)\.", r"decoder_\1.cross_attn.attn.\2."),
    (r"^levels\.(\d)\.cross_attn\.mlp\.dwconv\.", r"decoder_\1.cross_attn.mlp.dwconv.dwconv."),
    (r"^levels\.(\d)\.", r"decoder_\1."),
]


@DTYPES
@torch.no_grad()
def test_dae_attention_of_positions_and_of_channels(dtype: torch.dtype) -> None:
    name = "dae_efficient_attention"
    module: nn.Module = EfficientAttention(16, num_heads=2)
    assert filled(module, [], dtype) == RECORDS[name]["keys"]
    (x,) = inputs(name, dtype)
    assert error(module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), recorded(f"{name}/out")) < TOLERANCE[dtype]
    name = "dae_channel_attention"
    module = TransposedAttention(16)
    assert filled(module, [], dtype) == RECORDS[name]["keys"]
    (x,) = inputs(name, dtype)
    assert error(module(x.view(2, 6, 5, 16)).flatten(1, 2), recorded(f"{name}/out")) < TOLERANCE[dtype]


@DTYPES
@torch.no_grad()
def test_dae_blocks(dtype: torch.dtype) -> None:
    name = "dae_dual_block"
    block: nn.Module = DualBlock(16, EfficientAttention(16), TransposedAttention(16))
    assert filled(block, MLP, dtype) == RECORDS[name]["keys"] - 8  # norms that are never called
    (x,) = inputs(name, dtype)
    assert error(block(x.view(2, 6, 5, 16)).flatten(1, 2), recorded(f"{name}/out")) < TOLERANCE[dtype]
    name = "dae_cross_block"
    block = CrossBlock(16)
    assert filled(block, [*MLP, (r"^(reprojection|norm)\.", r"attn.\1.")], dtype) == RECORDS[name]["keys"] - 4
    decoder, skip = (x.view(2, 6, 5, 16) for x in inputs(name, dtype))
    assert error(block(decoder, skip).flatten(1, 2), recorded(f"{name}/out")) < TOLERANCE[dtype]


def test_the_authors_encoder_is_read() -> None:
    model = DAEFormer(embed_dims=(8, 16, 24), depths=(1, 1, 1))
    given = {}
    for key, value in model.state_dict().items():
        pattern, replacement = next(rule for rule in DAE_ENCODER if re.search(rule[0], key))
        conv = ".attn." in key and value.dim() == 2  # theirs are convolutions
        given[re.sub(pattern, replacement, key).removeprefix("backbone.")] = value[:, :, None, None] if conv else value
    given["block1.0.mlp1.norm2.weight"] = torch.ones(32)  # never called
    read = DAEFormer.from_upstream(given)
    assert {f"backbone.{key}" for key in model.state_dict()} == set(read)
    assert all(value.equal(read[f"backbone.{key}"]) for key, value in model.state_dict().items())


@pytest.mark.slow
@DTYPES
@torch.no_grad()
def test_dae_former(dtype: torch.dtype) -> None:
    name = "daeformer_full"
    model = create_segmenter("dae_former", num_classes=9)
    number = filled(model.backbone, DAE_ENCODER, dtype) + filled(model.decode_head, DAE_DECODER, dtype)
    norms, coarsest = 10 * 8 + 2 * 4, 2 * 44 + 24  # never called: of all MLPs, and all but the expansion of the coarsest decoder
    assert number == RECORDS[name]["keys"] - norms - coarsest
    logits = model.eval()(*inputs(name, dtype))
    assert error(logits[..., ::16, ::16], recorded(f"{name}/logits")) < TOLERANCE[dtype]


# The names of AttSwinUNet.
ATT_SWIN: Rules = [
    (r"^norm\.", "encoder.norm."),
    (r"^norm_up\.", "decoder.norm_up."),
    (r"^expand\.", "decoder.up."),
    (r"^conv_seg\.", "decoder.output."),
    (r"^levels\.2\.expand\.", "decoder.layers_up.0."),
    *[(rf"^levels\.{i}\.expand\.", f"decoder.layers_up.{2 - i}.upsample.") for i in range(2)],
    *[(rf"^levels\.{i}\.project\.", f"decoder.concat_back_dim.{3 - i}.") for i in range(3)],
    *[(rf"^levels\.{i}\.blocks\.", f"decoder.layers_up.{3 - i}.blocks.") for i in range(3)],
    *[
        (rf"^levels\.(\d)\.exchange\.layers\.(\d\.\d)\.{ours}\.", rf"decoder.Crossvit_layer.\1.layers.\2.{theirs}.")
        for ours, theirs in (("norm", "fn.norm"), ("q", "fn.fn.to_q"), ("kv", "fn.fn.to_kv"), ("proj", "fn.fn.to_out.0"))
    ],
]


@DTYPES
@pytest.mark.parametrize("name", ["attswinunet_swin_sa0", "attswinunet_cross_contextual_attention_sa0"])
@torch.no_grad()
def test_att_swin_unet(name: str, dtype: torch.dtype) -> None:
    """Recorded with Swin's encoder; the skips are the inputs of its stages."""
    backbone = Swin(embed_dim=24, depths=(2, 2, 2, 2))
    late = [(rf"^stages\.{i + 1}\.downsample\.", f"encoder.layers.{i}.downsample.") for i in range(3)]
    number = filled(backbone, [*late, (r"^stages\.", "encoder.layers."), (r"^", "encoder.")], dtype)
    head = AttSwin([3, 24, 48, 96, 192], [1, 4, 8, 16, 32], 9, head_dim=8, summary="replace" if "cross" in name else "none")
    unused = 6  # a second patch embedding and norm
    assert number + filled(head, ATT_SWIN, dtype) == RECORDS[name]["keys"] - unused
    (image,) = inputs(name, dtype)
    x, maps = backbone.patch_embed(image), []
    for stage in backbone.stages:
        x = stage.downsample(x)
        maps.append(x.permute(0, 3, 1, 2))
        for block in stage.blocks:
            x = block(x)
    logits = head([image, *maps[:3], x.permute(0, 3, 1, 2)]).logits
    assert error(logits[..., ::16, ::16], recorded(f"{name}/logits")) < TOLERANCE[dtype]


def test_the_spatial_attention_of_att_swin_unet_changes_nothing() -> None:
    """So that its record is one of the network above."""
    with_it, without = (f"attswinunet_cross_contextual_attention_sa{flag}" for flag in (1, 0))
    assert np.array_equal(recorded(f"{with_it}/logits"), recorded(f"{without}/logits"))
    assert {**RECORDS[with_it]["kwargs"], "spatial_attention": "0"} == RECORDS[without]["kwargs"]
    assert RECORDS[with_it]["keys"] == RECORDS[without]["keys"] and RECORDS[with_it]["inputs"] == RECORDS[without]["inputs"]
