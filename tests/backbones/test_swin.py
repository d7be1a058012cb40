"""Swin V1: every layout in which it is published, and the sizes at which the originals disagree."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import nn

import visionattn as va
from tests.parity import fill, relative_error

State = dict[str, torch.Tensor]

SHALLOW = (2, 2, 2, 2)


def draw(model: nn.Module) -> Any:
    """The model, in evaluation, with all its parameters drawn by the rule of the records."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(fill(key, tuple(parameter.shape))))
    return model.eval()


def authors_layout(ours: State) -> State:
    """Our classifier's tensors under the authors' names: stages are layers and end with the merging."""
    theirs = {}
    for key, value in ours.items():
        key = re.sub(r"^backbone\.", "", key)
        key = re.sub(r"^stages\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
        key = re.sub(r"^stages\.", "layers.", key)
        theirs[re.sub(r"^head\.norm\.", "norm.", re.sub(r"^head\.fc\.", "head.", key))] = value
    return theirs


def same_logits(ours: nn.Module, theirs: nn.Module, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image).numpy()) < 1e-5


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("swin_tiny", 28_288_354),
        ("swin_tiny_c24", 28_306_432),
        ("swin_small", 49_606_258),
        ("swin_base", 87_768_224),
        ("swin_base_384", 87_903_584),
        ("swin_large", 196_532_476),
        ("swin_large_384", 196_735_516),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = va.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("name", "heads", "window"), [("swin_tiny", (3, 6, 12, 24), 7), ("swin_tiny_c24", (4, 8, 16, 32), 8)])
def test_timm_gives_the_same_logits_both_ways(name: str, heads: tuple[int, ...], window: int) -> None:
    arguments = {"depths": SHALLOW, "num_heads": heads, "window_size": window, "img_size": 32 * window}
    theirs = draw(timm.create_model("swin_tiny_patch4_window7_224", **arguments))
    ours = va.create_model(name, depths=SHALLOW).eval()
    va.load_checkpoint(ours, theirs.state_dict(), allow=())
    same_logits(ours, theirs, (32 * window, 32 * window))

    draw(ours)
    theirs.load_state_dict(checkpoint_filter_fn(authors_layout(ours.state_dict()), theirs))
    same_logits(ours, theirs, (32 * window, 32 * window))


@pytest.mark.parametrize("size", [(224, 224), (252, 316)])
def test_torchvision_gives_the_same_logits(size: tuple[int, int]) -> None:
    """At 252 x 316 each map is larger than a window and padded: at such sizes torchvision has the rule of the segmentation code."""
    theirs = draw(torchvision.models.swin_t())
    ours = va.create_model("swin_tiny").eval()
    va.load_checkpoint(ours, theirs.state_dict(), allow=())
    same_logits(ours, theirs, size)


class UnfoldMerging(nn.Module):
    """Patch merging over NCHW by nn.Unfold, as OpenMMLab has it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B H/2 W/2 2C
        y = self.reduction(self.norm(F.unfold(x, 2, stride=2).transpose(1, 2)))
        return y.unflatten(1, (x.shape[2] // 2, x.shape[3] // 2))


def openmmlab_layout(ours: State, classifier: bool) -> State:
    """Our tensors under OpenMMLab's names; the order of the merging's inputs is found by unfolding their numbers."""
    theirs = {}
    for key, value in authors_layout(ours).items():
        key = re.sub(r"^layers\.", "stages.", key).replace("patch_embed.proj.", "patch_embed.projection.")
        key = key.replace(".attn.", ".attn.w_msa.").replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        key = re.sub(r"^norm\.", "norm3.", re.sub(r"^out_norms\.(\d)\.", r"norm\1.", key))
        if ".downsample." in key:
            dim = value.shape[-1] // 4
            numbers = torch.arange(4.0 * dim).view(2, 2, dim).permute(2, 1, 0)[None]  # ours: column, row, channel
            value = value[..., F.unfold(numbers, 2)[0, :, 0].long()]
        theirs[re.sub(r"^head\.", "head.fc.", key) if classifier else key] = value
    return {key if key.startswith("head.") else f"backbone.{key}": value for key, value in theirs.items()}


@pytest.mark.parametrize("dense", [False, True])
def test_openmmlab_layout(dense: bool) -> None:
    ours = va.create_model("swin_tiny", depths=SHALLOW, **({"features_only": True, "out_norm": True} if dense else {}))
    given = openmmlab_layout(draw(ours).state_dict(), classifier=not dense)
    given["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    assert ("backbone.norm0.weight" in given, "head.fc.weight" in given) == (dense, not dense)
    other = va.create_model("swin_tiny", depths=SHALLOW, **({"features_only": True, "out_norm": True} if dense else {}))
    va.load_checkpoint(other, given, allow=())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True))

    merging = UnfoldMerging(96)
    prefix = "backbone.stages.0.downsample."
    merging.load_state_dict({key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)})
    x = torch.randn(1, 6, 4, 96)
    with torch.no_grad():
        stages = (other if dense else other.backbone).stages
        assert torch.allclose(stages[1].downsample(x), merging(x.permute(0, 3, 1, 2)), atol=1e-5)


def test_dense_layout_of_the_authors() -> None:
    ours = draw(va.create_model("swin_tiny", depths=SHALLOW, features_only=True, out_norm=True))
    given = {re.sub(r"^out_norms\.(\d)\.", r"norm\1.", key): value for key, value in authors_layout(ours.state_dict()).items()}
    other = va.create_model("swin_tiny", depths=SHALLOW, features_only=True, out_norm=True)
    va.load_checkpoint(other, given, allow=())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True))


def test_windows_shrink_as_in_the_classifier_and_never_in_dense_mode() -> None:
    """Last maps of 7 x 14 and 4 x 8 take one shrunken window per square; 4 x 6 is no size of the classifier."""
    from visionattn.layers import window_and_shift

    assert window_and_shift(14, 21, 7, 3, dense=False) == (7, 3)
    assert window_and_shift(7, 14, 7, 3, dense=False) == (7, 0)
    assert window_and_shift(8, 4, 7, 3, dense=False) == (4, 0)
    assert window_and_shift(4, 6, 7, 3, dense=False) == (7, 3)
    assert window_and_shift(7, 7, 7, 3, dense=True) == (7, 3)


def test_a_shrunken_window_keeps_the_bias_of_an_offset() -> None:
    model = draw(va.create_model("swin_tiny", depths=(1, 1, 1, 1), features_only=True))
    other = draw(va.create_model("swin_tiny", depths=(1, 1, 1, 1), features_only=True, window_size=4))
    for mine, theirs in ((block.attn, other.stages[i].blocks[0].attn) for i, stage in enumerate(model.stages) for block in stage.blocks):
        table = mine.relative_position_bias_table.view(13, 13, -1)[3:10, 3:10]  # offsets -3 to 3
        theirs.relative_position_bias_table.data = table.flatten(0, 1).detach()
    image = torch.randn(1, 3, 128, 256)  # last map 4 x 8
    with torch.no_grad():
        x = torch.randn(1, 4, 8, 768)
        assert torch.equal(model.stages[3].blocks[0](x), other.stages[3].blocks[0](x))
        assert model(image)[3].shape == (1, 768, 4, 8)
