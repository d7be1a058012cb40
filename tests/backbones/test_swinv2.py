"""Swin V2: every layout in which it is published, windows other than the pretrained one, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer_v2 import checkpoint_filter_fn

import visionattn as va
from tests.backbones.test_swin import SHALLOW, authors_layout, draw, same_logits
from visionattn.backbones.registry import get_variant

NARROW = {"embed_dim": 32, "depths": SHALLOW, "num_heads": (1, 2, 4, 8)}
COUNTS = {"tiny": 28_347_154, "small": 49_728_418, "base": 87_918_816, "large": 196_739_932}


@pytest.mark.parametrize("name", va.list_models(family="swinv2"))
def test_parameter_counts(name: str) -> None:
    """The window does not change them; a head of 22k classes adds its own."""
    with torch.device("meta"):
        model = va.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name.split("_")[1]]


def test_every_released_model_is_registered() -> None:
    sizes = {name: get_variant(name).cfg["input_size"][1] for name in va.list_models(family="swinv2")}
    from_scratch = {f"swinv2_{size}_window{window}": 256 for size in ("tiny", "small", "base") for window in (8, 16)}
    windows = {"12": 192, "12to16": 256, "12to24": 384}
    from_22k = {f"swinv2_{size}_window{window}": pixels for size in ("base", "large") for window, pixels in windows.items()}
    assert sizes == {**from_scratch, **from_22k}


@pytest.mark.parametrize(
    ("name", "theirs_name", "arguments", "size"),
    [
        ("swinv2_tiny_window8", "swinv2_tiny_window8_256", {"depths": SHALLOW}, 256),
        ("swinv2_tiny_window16", "swinv2_tiny_window16_256", {"depths": SHALLOW}, 256),
        ("swinv2_base_window12", "swinv2_base_window12_192", NARROW, 192),
        ("swinv2_base_window12to16", "swinv2_base_window12to16_192to256", NARROW, 256),
        ("swinv2_large_window12to24", "swinv2_large_window12to24_192to384", NARROW, 384),
    ],
)
def test_timm_gives_the_same_logits_both_ways(name: str, theirs_name: str, arguments: dict[str, Any], size: int) -> None:
    theirs = draw(timm.create_model(theirs_name, **{"num_classes": 1000, **arguments}))
    ours = va.create_model(name, **arguments).eval()
    va.load_checkpoint(ours, theirs.state_dict(), allow=())
    same_logits(ours, theirs, (size, size))

    draw(ours)
    theirs.load_state_dict(checkpoint_filter_fn(authors_layout(ours.state_dict()), theirs))
    same_logits(ours, theirs, (size, size))


@pytest.mark.parametrize("size", [(256, 256), (260, 332)])
def test_torchvision_gives_the_same_logits(size: tuple[int, int]) -> None:
    """At 260 x 332 each map is larger than a window and padded: its keys are zeros, its values the bias."""
    theirs = draw(torchvision.models.swin_v2_t())
    ours = va.create_model("swinv2_tiny_window8").eval()
    va.load_checkpoint(ours, theirs.state_dict(), allow=())
    same_logits(ours, theirs, size)


def test_head_of_22k_classes() -> None:
    given = authors_layout(va.create_model("swinv2_base_window12", **NARROW, num_classes=21841).state_dict())
    other = va.create_model("swinv2_base_window12", **NARROW, num_classes=21841)
    assert va.load_checkpoint(other, given, allow=()).skipped == []
    tuned = va.create_model("swinv2_base_window12to16", **NARROW)
    assert va.load_checkpoint(tuned, given).skipped == ["checkpoint head has 21841 classes, the model 1000: head re-initialised"]


def biases(name: str, window: int, **arguments: Any) -> list[torch.Tensor]:
    """Of the first block of each stage, at this window."""
    model = draw(va.create_model(name, **NARROW, features_only=True, **arguments))
    with torch.no_grad():
        return [stage.blocks[0].attn.bias(window) for stage in model.stages]


def test_a_larger_window_reads_the_weights_and_keeps_the_bias_of_an_offset() -> None:
    """As upstream fine-tunes: offsets are measured by the window of the pretraining."""
    given = draw(va.create_model("swinv2_tiny_window8", **NARROW)).state_dict()
    larger = va.create_model("swinv2_tiny_window8", **NARROW, window_size=16)
    report = va.load_checkpoint(larger, given, allow=())
    assert report.reshaped == report.skipped == []

    before, after = biases("swinv2_tiny_window8", 8), biases("swinv2_tiny_window8", 16, window_size=16)
    for small, large in zip(before, after, strict=True):
        corner = large.unflatten(1, (16, 16)).unflatten(3, (16, 16))[:, :8, :8, :8, :8]
        assert torch.allclose(small.unflatten(1, (8, 8)).unflatten(3, (8, 8)), corner, atol=1e-5)
    # The variant of upstream's own fine-tuning is the pretrained one with another window.
    tuned, asked = biases("swinv2_base_window12to16", 16), biases("swinv2_base_window12", 16, window_size=16)
    assert all(torch.equal(a, b) for a, b in zip(tuned, asked, strict=True))
    assert not torch.equal(tuned[0], biases("swinv2_base_window12", 16)[0])


def test_windows_that_measure_offsets() -> None:
    def measures(name: str, **arguments: Any) -> list[int]:
        with torch.device("meta"):
            model = va.create_model(name, **NARROW, features_only=True, **arguments)
        return [stage.blocks[0].attn.pretrained_window_size for stage in model.stages]

    assert measures("swinv2_tiny_window16") == [0, 0, 0, 0]  # upstream: the window in use
    assert measures("swinv2_tiny_window16", window_size=24) == [16, 16, 16, 8]
    assert measures("swinv2_tiny_window16", out_norm=True) == [16, 16, 16, 8]
    assert measures("swinv2_base_window12to24") == [12, 12, 12, 6]
    assert measures("swinv2_base_window12to24", pretrained_window_sizes=(0, 0, 0, 0)) == [0, 0, 0, 0]


def test_log_spaced_coordinates_by_hand() -> None:
    model = draw(va.create_model("swinv2_tiny_window8", **NARROW, features_only=True))
    attn = model.stages[0].blocks[0].attn
    query, key = (1, 5), (6, 2)

    def log_spaced(offset: float) -> float:
        scaled = 8 * abs(offset) / 7
        return (1 if offset > 0 else -1) * float(torch.log2(torch.tensor(1 + scaled))) / 3

    with torch.no_grad():
        coordinates = torch.tensor([log_spaced(q - k) for q, k in zip(query, key, strict=True)])
        want = 16 * attn.cpb_mlp(coordinates).sigmoid()
        got = attn.bias(8)[:, query[0] * 8 + query[1], key[0] * 8 + key[1]]
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.isfinite(attn.bias(1)).all()  # a last map of one position


def test_gradients_are_finite_in_half_precision_where_maps_are_padded() -> None:
    model = draw(va.create_model("swinv2_tiny_window8", **NARROW, num_classes=5)).train()
    with torch.autocast("cpu", torch.float16):
        logits = model(torch.randn(2, 3, 40, 55))
    (128.0 * logits.float().square().mean()).backward()
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, key


@pytest.mark.slow
def test_compile_and_export_of_a_stage() -> None:
    """With drawn weights: at the start of training the branches hardly count."""
    one = {"depths": (2,), "num_heads": (3,), "pretrained_window_sizes": (8,)}
    model = draw(va.create_model("swinv2_tiny_window8", **one, num_classes=5))
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},)).module()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for count in (2, 3):
            image = torch.randn(count, 3, 96, 64)
            assert torch.allclose(exported(image), model(image), atol=1e-4)
            assert torch.allclose(compiled(image), model(image), atol=1e-4)


def test_images_do_not_see_each_other_and_bfloat16() -> None:
    model = draw(va.create_model("swinv2_tiny_window8", **NARROW, num_classes=5))
    image = torch.randn(3, 3, 96, 80)
    with torch.no_grad():
        together = model(image)
        alone = torch.cat([model(one[None]) for one in image])
        low = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert torch.allclose(alone, together, atol=1e-4 * float(together.abs().max()))
    assert (low.float() - together).abs().max() < 0.1 * together.abs().max()
