"""Explanations of networks: the target layer of every family, attention at its place, relevance, deletion and insertion."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visionattn as va
from tests.tiny import TINY
from visionattn.models.explain.attention import Layer, attention_from, class_token_attention, record_layers, relevance, routes_from
from visionattn.models.explain.cams import CAMS, PACKAGE, class_activation
from visionattn.models.explain.faithfulness import area, blur, faithfulness, random_maps

SIZE = (70, 100)  # odd at every stage


def tiny(family: str, **more: Any) -> Any:
    name, args = TINY[family]
    torch.manual_seed(0)
    return va.create_model(name, num_classes=5, **args, **more).eval().requires_grad_(False)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def third(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, 2]


@pytest.mark.parametrize("family", TINY)
def test_every_family_names_its_target_layer(family: str) -> None:
    """A layer of each stage is called once, its output makes a map of the stage's size, and the class depends on it."""
    model, image = tiny(family), draw(1, 3, *SIZE).requires_grad_()
    backbone = model.backbone
    for index, (channels, stride) in enumerate(zip(backbone.stage_channels, backbone.stage_strides, strict=True)):
        layer = backbone.cam_layer(index)
        assert any(layer is module for module in backbone.modules())
        outputs: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda module, given, output, outputs=outputs: outputs.append(output))
        logit = third(model(image))
        handle.remove()
        (output,) = outputs
        (gradient,) = torch.autograd.grad(logit.sum(), output)
        for values in (output, gradient):
            assert backbone.cam_map(values, SIZE).shape == (1, channels, math.ceil(SIZE[0] / stride), math.ceil(SIZE[1] / stride))
        assert float(backbone.cam_map(gradient, SIZE).abs().max()) > 0
    assert backbone.cam_layer() is backbone.cam_layer(len(backbone.stages) - 1)
    found = class_activation("gradcam", model, image, third)
    assert found.shape == SIZE and found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    # Nothing may speak for a class before training, but something does for one of them.
    assert any(class_activation("gradcam", model, image, lambda out, number=number: out[:, number]).std() > 0 for number in range(5))


@pytest.mark.parametrize("family", TINY)
def test_every_family_shows_where_it_attends(family: str) -> None:
    model, image = tiny(family), draw(1, 3, *SIZE).requires_grad_()
    backbone = model.backbone
    with torch.no_grad():
        want = model(image)
    out, layers = record_layers(model, image, gradients=True)
    assert torch.allclose(out, want, rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())
    assert [layer.stage for layer in layers] == sorted(layer.stage for layer in layers)
    for layer in layers:
        assert math.ceil(SIZE[0] / layer.stride) == layer.size[0] and math.ceil(SIZE[1] / layer.stride) == layer.size[1]
    if not layers or not backbone.placed_attention:
        assert family in ("CASViT", "InLineDeiT", "InLinePVT", "MedViTV2", "RAVLT", "ResNet", "SGFormer", "VAN")
        return
    assert len({layer.label for layer in layers}) == len(layers)
    for layer in layers:
        for point in ((0, 0), (SIZE[0] - 1, SIZE[1] - 1)):
            found = attention_from(backbone, layer, point)
            assert found.shape[1:] == layer.size and found.min() >= 0 and not found.requires_grad
            if layer.positional:  # the rest is attention to padding, or to the class token
                assert float(found.sum((1, 2)).max()) <= 1 + 1e-5
            elif layer.record.op != "strip_gate":
                assert float(found[0, layer.place(point)[0], layer.place(point)[1]]) == pytest.approx(1, abs=1e-5)
    positional = [layer for layer in layers if layer.positional]
    third(out).sum().backward()
    if positional:
        found = relevance(backbone, layers)
        assert found.shape == positional[0].size and found.min() >= 0 and found.max() > found.min()
    else:
        with pytest.raises(ValueError, match="no layer attends to positions"):
            relevance(backbone, layers)


def test_attention_is_that_of_the_point() -> None:
    """In a shifted window, and at the border of a neighborhood, against the definition of the geometry."""
    model, image = tiny("Swin"), draw(1, 3, 112, 112)  # 28 x 28 positions, windows of 7
    _, layers = record_layers(model, image)
    (shifted,) = [layer for layer in layers if layer.record.op == "window_attention" and any(layer.record.geometry["shift"])]
    assert shifted.size == (14, 14) and shifted.label == "stage 2, block 2"
    found = attention_from(model.backbone, shifted, (40, 80))  # row 5, column 10: shifted by 3, the window of rows 3 to 9
    rows, cols = np.nonzero(found.mean(0).numpy())
    assert set(rows) == set(range(3, 10)) and set(cols) == set(range(10, 14))  # columns 10 to 13, and 0 to 2 are masked
    model, image = tiny("NAT"), draw(1, 3, 128, 128)
    _, layers = record_layers(model, image)
    found = attention_from(model.backbone, layers[0], (0, 127))  # row 0, column 31 of 32
    rows, cols = np.nonzero(found.mean(0).numpy())
    assert set(rows) == set(range(7)) and set(cols) == set(range(25, 32))


def test_channel_attention_shows_similar_places() -> None:
    model = tiny("ECAResNet")
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, :, :32], image[:, 1, :, 32:] = 3, 3
    _, layers = record_layers(model, image)
    left = attention_from(model.backbone, layers[0], (30, 8))[0]
    assert float(left[4:12, 2:5].mean()) > float(left[4:12, 11:14].mean()) + 0.05


def test_routes_are_those_of_the_record() -> None:
    model, image = tiny("BiFormer"), draw(1, 3, 112, 140)
    _, layers = record_layers(model, image)
    layer = layers[1]  # 14 x 18 positions, padded to 21, 7 x 7 regions of 2 x 3
    geometry = layer.record.geometry
    assert layer.size == (14, 18) and geometry["size"] == (14, 21) and geometry["region"] == (2, 3)
    routes = routes_from(layer, (50, 100))  # row 6, column 12: region 3 * 7 + 4
    rows, cols = np.nonzero(routes.own.numpy())
    assert set(rows) == {6, 7} and set(cols) == {12, 13, 14}
    chosen = geometry["routes"][0, 25].tolist()
    want = np.zeros((14, 21), bool)
    for region in chosen:
        want[region // 7 * 2 : region // 7 * 2 + 2, region % 7 * 3 : region % 7 * 3 + 3] = True
    np.testing.assert_array_equal(routes.chosen.numpy(), want[:, :18])
    assert float(routes.demand[0, 0]) == pytest.approx(float((geometry["routes"][0] == 0).sum()) / 49)


def test_tokens_of_channels_are_put_together() -> None:
    backbone = tiny("ChAdaViT").backbone
    places = torch.rand(4, 6, dtype=torch.float64)
    tokens = backbone.to_queries(places, (1, 1 + 3 * 24))
    assert tokens.shape == (1, 73) and tokens[0, 0] == 0
    assert torch.allclose(backbone.to_places(tokens, (4, 6)), places)
    model, image = tiny("ChAdaViT"), draw(1, 3, 64, 96)
    _, layers = record_layers(model, image)
    found = class_token_attention(model.backbone, layers[0])
    weights = layers[0].record.weights[0, :, 0]  # heads N
    assert torch.allclose(found.flatten(1), weights[:, 1:].unflatten(1, (3, 24)).sum(1))


def test_relevance_is_that_of_the_paper() -> None:
    """R + A R from the first layer to the last, with matrices between all positions."""
    model, image = tiny("ViTRPB").double(), draw(1, 3, 64, 96).double().requires_grad_()
    outputs, layers = record_layers(model, image, gradients=True)
    third(outputs).sum().backward()
    total = torch.eye(24, dtype=torch.float64)
    for layer in layers:
        weights = layer.record.weights  # B 1 heads N N: one window covers the map
        assert weights.grad is not None and weights.shape[-1] == 24
        total = total + (weights.grad * weights).clamp_min(0)[0, 0].mean(0) @ total
    want = (total - torch.eye(24, dtype=torch.float64)).mean(0).detach()
    assert torch.allclose(relevance(model.backbone, layers).flatten().double(), want, rtol=1e-5)
    region = torch.zeros(64, 96)
    region[16:32, :16] = 1
    assert torch.allclose(relevance(model.backbone, layers, region).flatten().double(), (total - torch.eye(24))[6].detach(), rtol=1e-5)


def test_relevance_of_a_position_is_shared_out_among_those_it_was_made_of() -> None:
    """Of two stages, the second of one layer without attention gradients: what the first moves starts from 2 x 2 squares."""
    model, image = tiny("NAT").double(), draw(1, 3, 128, 128).double().requires_grad_()
    outputs, layers = record_layers(model, image, gradients=True)
    third(outputs).sum().backward()
    region = torch.zeros(128, 128)
    region[:32, 96:] = 1  # the upper right position of the last map
    alone = [layers[0], layers[3]]
    for layer in alone[1:]:
        assert layer.record.weights.grad is not None
        layer.record.weights.grad.zero_()
    found = relevance(model.backbone, alone, region)
    rows, cols = np.nonzero(found.numpy())
    # Rows 0 to 7 and columns 24 to 31 of the first map, and the neighborhoods of those: 3 more, at the border as many as there are.
    assert rows.max() <= 10 and cols.min() >= 21 and found[:8, 24:].min() > 0


def test_grad_cam_is_its_definition() -> None:
    """Of a network whose classifier averages the map, the map itself weighted by the classifier."""
    model, image = tiny("ECAResNet"), draw(1, 3, 96, 64)
    with torch.no_grad():
        features = model.forward_features(image)[0]
    want = torch.einsum("c,cyx->yx", model.head.fc.weight[2], features).clamp_min(0)
    want = (want - want.min()) / (want.max() - want.min())
    found = class_activation("gradcam", model, image, third)
    coarse = torch.from_numpy(found)[None, None]
    assert torch.allclose(nn.functional.interpolate(want[None, None], size=(96, 64), mode="bilinear"), coarse, atol=1e-4)


@pytest.mark.parametrize("method", CAMS)
def test_every_class_activation_map(method: str) -> None:
    model, image = tiny("ECAResNet", width=8), draw(1, 3, 32, 48)
    found = class_activation(method, model, image, third, 1)
    assert found.shape == (32, 48) and np.isfinite(found).all() and 0 <= found.min() < found.max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hasattr(importlib.import_module(PACKAGE), CAMS[method])


class Bright(nn.Module):
    """Probability 1/2 for each of two pixels that is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x[:, 0, 1, 1] > 0.5).float() + (x[:, 0, 2, 3] > 0.5).float()) / 2


def test_deletion_and_insertion_by_hand() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 1, 1] = image[0, 0, 2, 3] = 1
    saliency = np.zeros((16, 16), np.float32)
    saliency[1, 1], saliency[2, 3], saliency[0, 0] = 3, 2, 1
    found = faithfulness(Bright(), image, saliency, lambda outputs: outputs, steps=256, batch=30)
    assert found.deleted == [1, 0.5, *[0] * 255] and found.inserted == [0, 0.5, *[1] * 255]
    assert found.deletion == pytest.approx((0.5 + 0.5) / 256) and found.insertion == pytest.approx((0.5 + 254.5) / 256)
    worst = faithfulness(Bright(), image, -saliency, lambda outputs: outputs, steps=4)
    assert worst.deleted == [1, 1, 1, 1, 0] and worst.deletion > found.deletion
    assert area([1, 1, 1]) == 1 and area([0, 1]) == 0.5


def test_blur_keeps_the_mean_and_random_maps_are_coarse() -> None:
    image = torch.rand(1, 3, 45, 67)
    blurred = blur(image)
    assert blurred.shape == image.shape and float(blurred.std()) < 0.3 * float(image.std())
    assert blur(torch.rand(1, 1, 1, 3)).shape == (1, 1, 1, 3)
    maps = random_maps((32, 48), (2, 3), 3)
    assert len(maps) == 3 and maps[0].shape == (32, 48) and not np.array_equal(maps[0], maps[1])
    assert np.array_equal(maps[0], random_maps((32, 48), (2, 3), 1)[0])


def test_the_page_of_documentation_names_every_method() -> None:
    from visionattn.jobs.explain import METHODS

    page = (Path(__file__).parents[2] / "docs/explain.md").read_text()
    assert all(f"`{name}`" in page for name in METHODS)


def test_labels() -> None:
    layer = Layer("blocks.0.spatial.attn", 2, (4, 4), 16, None, None)  # type: ignore[arg-type]
    assert layer.label == "stage 3, block 1, spatial" and layer.place((70, 15)) == (3, 0)
