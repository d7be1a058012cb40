"""Recorded attention weights: complete, in order, placed by their geometry alone, and without effect on the numbers."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn as va
from tests.kernels.accuracy import check_traced
from tests.tiny import TINY
from visionattn import kernels
from visionattn.heads.ccnet import CrissCrossAttention
from visionattn.heads.danet import ChannelAttention
from visionattn.kernels import (
    AttentionRecord,
    agent_attention,
    aggregated_attention,
    channel_attention,
    channel_gate,
    decayed_attention,
    dense_attention,
    dilated_depthwise_conv2d,
    neighborhood_attention,
    record_attention,
    routed_attention,
    spread_attention,
    strided_attention,
    strip_gate,
    use_backend,
    window_attention,
)
from visionattn.models.segmenter_factory import create_segmenter

OPS = (
    "agent_attention",
    "aggregated_attention",
    "channel_attention",
    "channel_gate",
    "decayed_attention",
    "dense_attention",
    "neighborhood_aggregate",
    "neighborhood_attention",
    "routed_attention",
    "strided_attention",
    "strip_gate",
    "window_attention",
)
GATES = ("channel_gate", "strip_gate")
# Calls in the tiny models, of one block per stage (Swin: two in the second).
CALLS = {
    "AgentDeiT": ["agent_attention"] * 3 + ["dense_attention"],
    "AgentPVT": ["agent_attention"] * 4,
    "AgentSwin": ["agent_attention"] * 3 + ["window_attention"] * 2,
    "BiFormer": ["routed_attention"] * 3 + ["window_attention"],
    "ChAdaViT": ["dense_attention"] * 4,
    "CrossFormer": ["strided_attention"] * 5,
    "DAEFormer": ["channel_attention"] * 3,
    "ECAMobileNetV2": ["channel_gate"] * 17,
    "ECAResNet": ["channel_gate"] * 4,
    "ELAMobileNetV2": ["strip_gate"] * 16,
    "ELAResNet": ["strip_gate"] * 4,
    "DaViT": ["window_attention", "channel_attention"] * 4,
    "InLineSwin": ["window_attention"] * 2,  # the linear attention before has weights of both signs
    "LITv2": ["window_attention", "dense_attention", "dense_attention"],
    "MedViTV2": ["neighborhood_attention", "dense_attention"] * 2,
    "NAT": ["neighborhood_attention"] * 4,
    "NATIsotropic": ["neighborhood_attention"] * 4,
    "DiNATS": ["neighborhood_attention"] * 4,
    "OverLoCK": ["neighborhood_aggregate"] * 4,
    "RAVLT": ["dense_attention"] * 2,  # the linear attention before has no weights that sum to 1
    "RMT": ["decayed_attention"] * 6,
    "SGFormer": [*["significance_attention"] * 2, "dense_attention"] * 3 + ["dense_attention"],
    "Swin": ["window_attention"] * 5,
    "SwinV2": ["window_attention"] * 4,
    "TransDAE": ["dense_attention"] * 4,
    "TransNeXt": ["aggregated_attention"] * 3 + ["dense_attention"],
    "ViT": ["dense_attention"] * 4,
    "ViTRPB": ["window_attention"] * 4,
}
HEADS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "ccnet": ("ccnet", {"width": 16}, ["criss_cross_attention"] * 2),
    "danet": ("danet", {"width": 16, "reduced": 4}, ["dense_attention", "danet_channel_attention"]),
    "att_swin": ("att_swin", {"depth": 1, "head_dim": 8}, (["dense_attention"] * 4 + ["window_attention"]) * 3),
    "trans_dae": ("trans_dae", {"depth": 1}, ["dense_attention"] * 3),
    "dae": ("dae", {"depth": 1}, ["channel_attention"] * 3),
    # ms_dual_guided has the modules of danet, at the finest map: minutes here.
    # Position attention at stride 8 and above.
    "unet, dual": (
        "unet",
        {"skip": "dual", "bottleneck": "dual"},
        ["dense_attention", "danet_channel_attention"] * 3 + ["danet_channel_attention"],
    ),
    "unet, cross-contextual": ("unet", {"skip": "cross_contextual"}, ["dense_attention"] * 12),
}


class Call:
    """A call of an operation, as a network made it."""

    def __init__(self, op: str, arguments: dict[str, Any], out: torch.Tensor) -> None:
        self.op, self.arguments, self.out = op, arguments, out


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """Calls of the operations by networks, in order."""
    found: list[Call] = []

    def spied(name: str) -> Any:
        real = getattr(kernels, name)

        def spy(*args: Any, **named: Any) -> torch.Tensor:
            out = real(*args, **named)
            found.append(Call(name, inspect.signature(real).bind(*args, **named).arguments, out.detach()))
            return out

        return spy

    for module in [
        module
        for name, module in sys.modules.items()
        if name.startswith(("visionattn.attention", "visionattn.backbones", "visionattn.heads"))
    ] + [sys.modules["visionattn.layers"]]:
        for name in OPS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, spied(name))
    return found


def tiny(family: str) -> torch.nn.Module:
    name, args = TINY[family]
    torch.manual_seed(0)
    return va.create_model(name, num_classes=5, **args).eval()


def line(position: int, length: int, kernel: int, dilation: int, border: str) -> list[int | None]:
    """Keys of a position along an axis; None is outside the map."""
    if border == "mask":
        keys = [position + (offset - kernel // 2) * dilation for offset in range(kernel)]
        return [key if 0 <= key < length else None for key in keys]
    residues = list(range(position % dilation, length, dilation))
    start = min(max(position // dilation - kernel // 2, 0), len(residues) - kernel)
    return list(residues[start : start + kernel])


def seen(record: AttentionRecord, row: int, col: int) -> tuple[torch.Tensor, list[tuple[int, int] | None]]:
    """Where one position attends, from the record alone: weights `[B, heads, K]`, and the row and column of each key."""
    geometry, weights = record.geometry, record.weights
    height, width = geometry["size"]
    if record.op == "dense_attention":
        rows, cols = geometry["key_size"]
        keys = [(y, x) for y in range(rows) for x in range(cols)]
        return (weights if weights.dim() == 4 else weights.unsqueeze(1))[:, :, row * width + col], keys
    if record.op in ("neighborhood_aggregate", "neighborhood_attention"):
        (kh, kw), (dh, dw), border = geometry["kernel_size"], geometry["dilation"], geometry["border"]
        rows, cols = line(row, height, kh, dh, border), line(col, width, kw, dw, border)
        return weights[:, :, row, col], [None if y is None or x is None else (y, x) for y in rows for x in cols]
    if record.op == "aggregated_attention":
        size = geometry["kernel_size"]
        rows, cols = line(row, height, size, 1, "mask"), line(col, width, size, 1, "mask")
        return weights[:, :, row, col], [None if y is None or x is None else (y, x) for y in rows for x in cols]
    if record.op == "agent_attention":  # through the agents
        found = torch.einsum("bha,bhan->bhn", weights[:, :, row * width + col], geometry["agent_weights"])
        return found, [(y, x) for y in range(height) for x in range(width)]
    if record.op == "strided_attention":
        (gh, gw), (ih, iw) = geometry["group_size"], geometry["interval"]
        top, left = row // (gh * ih) * gh * ih, col // (gw * iw) * gw * iw  # of the area
        across = -(-width // (gw * iw))
        group = ((row // (gh * ih) * across + col // (gw * iw)) * ih + row % ih) * iw + col % iw
        places = [(top + i * ih + row % ih, left + j * iw + col % iw) for i in range(gh) for j in range(gw)]
        query = (row - top) // ih * gw + (col - left) // iw
        return weights[:, group, :, query], [(y, x) if y < height and x < width else None for y, x in places]
    if record.op == "decayed_attention":
        if geometry["along"] == "map":
            return weights[:, 0, :, row * width + col], [(y, x) for y in range(height) for x in range(width)]
        if geometry["along"] == "rows":
            return weights[:, row, :, col], [(row, x) for x in range(width)]
        return weights[:, col, :, row], [(y, col) for y in range(height)]
    assert record.op == "window_attention"
    (wh, ww), (sh, sw) = geometry["window_size"], geometry["shift"]
    y, x = (row - sh) % height, (col - sw) % width
    window = y // wh * (width // ww) + x // ww
    keys = [((y // wh * wh + i + sh) % height, (x // ww * ww + j + sw) % width) for i in range(wh) for j in range(ww)]
    return weights[:, window, :, y % wh * ww + x % ww], keys


def gathered(record: AttentionRecord, arguments: dict[str, Any]) -> torch.Tensor:
    """The output of a call from the recorded weights and the values, one position after the other."""
    weights, geometry = record.weights, record.geometry
    if record.op == "agent_attention":
        gathered_values = torch.einsum("bhan,bnhd->bhad", geometry["agent_weights"], arguments["v"].flatten(1, 2))
        return torch.einsum("bhna,bhad->bnhd", weights, gathered_values).reshape(arguments["v"].shape)
    if record.op == "channel_attention":
        return torch.einsum("bhce,byxhe->byxhc", weights, arguments["q"])
    if record.op == "channel_gate":
        return torch.einsum("bc,bcyx->bcyx", weights, arguments["x"])
    if record.op == "strip_gate":
        rows, cols = weights.split(geometry["size"], -1)
        return torch.einsum("bcy,bcx,bcyx->bcyx", rows, cols, arguments["x"])
    v = arguments["v"] if arguments["v"].dim() == 5 else arguments["v"].unsqueeze(3)
    height, width = geometry["size"]
    out = v.new_zeros(v.shape[0], height, width, *v.shape[3:])
    for row in range(height):
        for col in range(width):
            if record.op == "routed_attention":
                of_position, values = routed(record, v, row, col)
            else:
                of_position, keys = seen(record, row, col)
                values = torch.stack([torch.zeros_like(v[:, 0, 0]) if key is None else v[:, key[0], key[1]] for key in keys], 1)
            if record.op == "aggregated_attention":
                pool = arguments["v_pool"].flatten(1, -3)
                assert geometry["pool"] == tuple(arguments["v_pool"].shape[1:-2])
                near = len(keys)
                of_position = of_position.clone()
                of_position[..., :near] += geometry["local_weight"][:, :, row, col]
                values = torch.cat([values, pool], 1)
            out[:, row, col] = torch.einsum("bhk,bkhd->bhd", of_position, values)
    return out if arguments["v"].dim() == 5 else out.squeeze(3)


def routed(record: AttentionRecord, v: torch.Tensor, row: int, col: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[B, heads, K]` and values `[B, K, heads, d]`: each image has its own keys."""
    (rh, rw), cols = record.geometry["region"], record.geometry["size"][1] // record.geometry["region"][1]
    region, inside = row // rh * cols + col // rw, row % rh * rw + col % rw
    values = []
    for image, routes in enumerate(record.geometry["routes"][:, region].tolist()):
        places = [(route // cols * rh + i, route % cols * rw + j) for route in routes for i in range(rh) for j in range(rw)]
        values.append(torch.stack([v[image, y, x] for y, x in places]))
    return record.weights[:, region, :, inside], torch.stack(values)


def check_sums(records: list[AttentionRecord]) -> None:
    for record in records:
        assert not record.weights.requires_grad
        assert record.weights.min() >= 0
        if record.op in GATES:
            assert record.weights.max() <= 1
            continue
        sums = record.weights.sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def check_calls(calls: list[Call], records: list[AttentionRecord]) -> None:
    """A record per call, in order, whose weights give the output of the call."""
    assert [call.op for call in calls] == [record.op for record in records]
    for call, record in zip(calls, records, strict=True):
        want = call.out
        assert torch.allclose(gathered(record, call.arguments), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("family", TINY)
def test_every_family(family: str, calls: list[Call]) -> None:
    model, image = tiny(family), torch.randn(2, 3, 64, 96)
    with torch.no_grad(), record_attention() as records:
        out = model(image)
    assert [record.op for record in records] == CALLS.get(family, [])
    check_sums(records)
    check_calls(calls, [record for record in records if record.op in OPS])
    with torch.no_grad(), use_backend("reference"):
        assert torch.equal(model(image), out)
    with torch.no_grad():
        assert torch.allclose(model(image), out, rtol=1e-3, atol=1e-4)
    assert len(records) == len(CALLS.get(family, []))  # of the calls outside none


@pytest.mark.parametrize("case", HEADS)
def test_heads(case: str, calls: list[Call]) -> None:
    head, args, expected = HEADS[case]
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head, 3, backbone_args=TINY["VAN"][1], **args).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma.scale"):
            torch.nn.init.constant_(parameter, 0.5)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), record_attention() as records:
        out = model(image)
    assert [record.op for record in records] == expected
    check_sums(records)
    check_calls(calls, [record for record in records if record.op in OPS])
    with torch.no_grad(), use_backend("reference"):
        assert torch.equal(model(image), out)


def test_gradients_are_those_of_the_reference() -> None:
    model, image = tiny("TransNeXt"), torch.randn(1, 3, 64, 64)
    found = []
    for context in (record_attention(), use_backend("reference")):
        model.zero_grad()
        with context:
            model(image).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0] if gradient.dim() > 1)


def test_gradient_checkpointing_repeats_the_records() -> None:
    model, image = tiny("DaViT").train(), torch.randn(1, 3, 64, 64)
    model.set_grad_checkpointing()
    with record_attention() as records:
        model(image).sum().backward()
    forward, repeated = records[: len(CALLS["DaViT"])], records[len(CALLS["DaViT"]) :]
    assert len(repeated) == len(forward)
    assert sorted(record.weights.sum().item() for record in forward) == sorted(record.weights.sum().item() for record in repeated)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def operations() -> Iterator[tuple[str, Any, dict[str, Any], tuple[int, ...]]]:
    """Name, operation, arguments and shape of the weights: what the networks do not do, and odd sizes."""
    q, k, v = (factor * draw(2, 7, 10, 3, 4) for factor in (1.0, 0.5, 2.0))
    qkv = {"q": q, "k": k, "v": v}
    near = {"kernel_size": (5, 3), "dilation": (1, 2), "bias": draw(3, 9, 5)}
    yield "neighborhood", neighborhood_attention, qkv | near, (2, 3, 7, 10, 15)
    yield "neighborhood, mask", neighborhood_attention, qkv | near | {"border": "mask"}, (2, 3, 7, 10, 15)
    yield "window", window_attention, qkv | {"window_size": (7, 5), "shift": (0, 2), "bias": draw(3, 35, 35)}, (2, 2, 3, 35, 35)
    yield "window, shifted both ways", window_attention, qkv | {"window_size": (7, 5), "shift": (3, 1)}, (2, 2, 3, 35, 35)
    routes = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0)).argsort(-1)
    routes[0, 1] = 0  # a region named twice counts twice
    yield "routed", routed_attention, qkv | {"routes": routes, "region": (7, 5)}, (2, 2, 3, 35, 70)
    pooled = {"k_pool": draw(2, 2, 3, 3, 4), "v_pool": draw(2, 2, 3, 3, 4), "kernel_size": 3}
    biases = {"local_bias": draw(3, 9), "pool_bias": draw(3, 70, 6), "local_weight": draw(2, 7, 10, 3, 9)}
    yield "aggregated", aggregated_attention, qkv | pooled | biases, (2, 3, 7, 10, 15)
    flat = {name: pooled[name].flatten(1, 2) for name in ("k_pool", "v_pool")}
    yield "aggregated, list of pooled", aggregated_attention, qkv | pooled | flat | biases, (2, 3, 7, 10, 15)
    agents = {"agents": draw(2, 2, 3, 3, 4), "agent_bias": draw(3, 6, 70), "query_bias": draw(3, 70, 6)}
    yield "agent", agent_attention, qkv | agents, (2, 3, 70, 6)
    strides = {"group_size": (2, 3), "interval": (3, 2)}  # cut off at the bottom and right
    yield "strided", strided_attention, qkv | strides | {"bias": draw(3, 6, 6)}, (2, 24, 3, 6, 6)
    decay = {"decay": -draw(3).abs()}
    yield "decayed", decayed_attention, qkv | decay, (2, 1, 3, 70, 70)
    yield "decayed, rows", decayed_attention, qkv | decay | {"along": "rows"}, (2, 7, 3, 10, 10)
    yield "decayed, columns", decayed_attention, qkv | decay | {"along": "columns"}, (2, 10, 3, 7, 7)
    yield "channel", channel_attention, qkv, (2, 3, 4, 4)
    keys = {"k": k[:, :3, :4], "v": draw(2, 3, 4, 3, 5)}
    yield "dense", dense_attention, qkv | keys | {"bias": draw(3, 70, 12)}, (2, 3, 70, 12)
    x = draw(2, 4, 7, 10)
    yield "gate of channels", channel_gate, {"x": x, "weight": draw(1, 1, 3)}, (2, 4)
    strips = {"conv_weight": draw(4, 2, 3), "norm_weight": draw(4), "norm_bias": draw(4) / 2, "num_groups": 2}
    yield "gate of strips", strip_gate, {"x": x} | strips, (2, 4, 17)
    yield "dense, one head", dense_attention, {"q": q[..., 0, :], "k": k[..., 1, :], "v": draw(2, 7, 10, 6)}, (2, 70, 70)


@pytest.mark.parametrize(("operation", "arguments", "shape"), [pytest.param(*rest, id=name) for name, *rest in operations()])
def test_operations(operation: Any, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    with record_attention() as records:
        out = operation(**arguments)
    (record,) = records
    assert record.op == operation.__name__ and record.weights.shape == shape and record.geometry["size"] == (7, 10)
    assert torch.equal(out, operation(**arguments, backend="reference"))
    assert torch.allclose(gathered(record, arguments), out, atol=1e-12)
    if record.op not in GATES:
        assert torch.allclose(record.weights.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    with record_attention() as halves:
        operation(**{name: x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in arguments.items()})
    assert halves[0].weights.dtype == torch.bfloat16 and torch.allclose(halves[0].weights.double(), record.weights, atol=0.05)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [pytest.param(operation, arguments, id=name) for name, operation, arguments, _ in operations() if operation.__name__ not in GATES],
)
def test_gradients_of_weights(operation: Any, arguments: dict[str, Any]) -> None:
    """The loss changes with a weight as its gradient says: by the value of its key."""
    named = "k" if operation is channel_attention else "q"
    with record_attention(gradients=True) as records:
        out = operation(**{**arguments, named: arguments[named].clone().requires_grad_()})
        out.sum().backward()
    weights, gradient = records[0].weights.detach(), records[0].weights.grad
    assert gradient is not None and gradient.shape == weights.shape
    total = (weights * gradient).sum()
    if operation is aggregated_attention:  # whose second weights of the neighbours have values too
        total = total + (records[0].geometry["local_weight"] * gradient[..., :9]).sum()
    assert torch.allclose(total, out.detach().sum())


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        pytest.param(operation, arguments, id=name)
        for name, operation, arguments, _ in operations()
        if operation not in (channel_attention, channel_gate, strip_gate) and not name.endswith("list of pooled")
    ],
)
def test_attention_is_spread_over_the_map(operation: Any, arguments: dict[str, Any]) -> None:
    """The sum that each key receives, one weight after the other."""
    with record_attention() as records:
        operation(**arguments)
    (record,) = records
    share = draw(2, 7, 10)
    heads, size = 1 if record.weights.dim() == 3 else 3, record.geometry.get("key_size", (7, 10))
    want = torch.zeros(2, heads, size[0] * size[1], dtype=torch.float64)
    cells = [part_of_bin(cell, 7, 10) for cell in torch.eye(6, dtype=torch.float64).view(6, 2, 3)]
    numbers = torch.arange(70.0, dtype=torch.float64).view(1, 7, 10, 1, 1).expand(2, -1, -1, -1, -1)
    for row, col in [(row, col) for row in range(7) for col in range(10)]:
        if operation is routed_attention:
            weights, places = routed(record, numbers, row, col)
            for image in range(2):
                want[image].index_add_(1, places[image].flatten().long(), share[image, row, col] * weights[image])
            continue
        weights, keys = seen(record, row, col)
        given = weights * share[:, row, col, None, None]
        there = [number for number, key in enumerate(keys) if key is not None]
        want.index_add_(2, torch.tensor([keys[number][0] * size[1] + keys[number][1] for number in there]), given[..., there])
        if operation is aggregated_attention:
            want += given[..., len(keys) :] @ torch.stack(cells).flatten(1)
    want = want.unflatten(-1, size)
    found = spread_attention(record, share)
    assert torch.allclose(found, want, atol=1e-12)
    assert torch.allclose(found.sum((2, 3)), share.sum((1, 2))[:, None].expand(2, heads), atol=1e-9)


def part_of_bin(cell: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The part of each position in the average that adaptive pooling makes of a bin."""
    image = torch.zeros(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.adaptive_avg_pool2d(image, cell.shape).backward(cell[None, None])
    assert image.grad is not None
    return image.grad[0, 0]


def test_what_cannot_be_spread() -> None:
    with record_attention() as records:
        channel_attention(*(draw(1, 2, 2, 1, 4),) * 3)
        attend()
    with pytest.raises(ValueError, match="not positions"):
        spread_attention(records[0], torch.ones(2, 2))
    with pytest.raises(ValueError, match="map of 5 x 5"):
        spread_attention(records[1], torch.ones(5, 4))


def test_criss_cross_weights() -> None:
    """First the column, in which the position itself has no weight, then the row."""
    torch.manual_seed(0)
    module = CrissCrossAttention(8).double()
    torch.nn.init.ones_(module.gamma.scale)
    x = draw(2, 8, 5, 7)
    with torch.no_grad(), record_attention() as records:
        out = module(x)
        v = module.value_conv(x)
    weights = records[0].weights
    assert weights.shape == (2, 5, 7, 12) and records[0].geometry == {"size": (5, 7)}
    for row in range(5):
        for col in range(7):
            assert (weights[:, row, col, row] == 0).all()
            values = torch.cat([v[:, :, :, col], v[:, :, row]], -1)
            assert torch.allclose(torch.einsum("bk,bck->bc", weights[:, row, col], values), (out - x)[:, :, row, col], atol=1e-12)
            share = torch.zeros(5, 7)
            share[row, col] = 1
            spread = spread_attention(records[0], share)[:, 0]
            assert torch.allclose(torch.einsum("byx,bcyx->bc", spread, v), (out - x)[:, :, row, col], atol=1e-12)


def test_danet_channel_weights() -> None:
    module = ChannelAttention().double()
    torch.nn.init.ones_(module.gamma.scale)
    x = draw(2, 6, 5, 7) / 6
    with torch.no_grad(), record_attention() as records:
        out = module(x)
    assert records[0].weights.shape == (2, 6, 6) and records[0].geometry == {"size": (5, 7)}
    assert torch.allclose(torch.einsum("bce,beyx->bcyx", records[0].weights, x), out - x, atol=1e-12)


def attend(**more: Any) -> torch.Tensor:
    q = draw(1, 5, 5, 1, 4).float()
    return neighborhood_attention(q, q, q, 3, **more)


def test_nothing_outside_and_after_an_exception() -> None:
    attend(backend="reference")
    with record_attention() as records:
        pass
    attend(backend="reference")
    assert records == []
    with pytest.raises(KeyError), record_attention() as records:
        attend()
        raise KeyError
    attend(backend="reference")
    assert len(records) == 1


def test_recording_overrides_every_choice_of_a_backend() -> None:
    want = attend(backend="reference")
    with use_backend("torch"), record_attention() as records:
        assert torch.equal(attend(backend="torch"), want) and torch.equal(attend(backend="triton"), want)
        with use_backend("torch"):
            assert torch.equal(attend(), want)
        with pytest.raises(ValueError, match="got 'cuda'"):
            attend(backend="cuda")
    assert len(records) == 3
    x, weight = draw(1, 2, 14, 11).float(), draw(2, 1, 7, 7).float()  # no attention: its definition, and no record
    with record_attention() as records:
        out = dilated_depthwise_conv2d(x, weight, None, dilation=3)
    assert torch.equal(out, dilated_depthwise_conv2d(x, weight, None, dilation=3, backend="reference")) and not records


def test_the_innermost_of_nested_contexts_keeps_the_records() -> None:
    with record_attention() as outer:
        attend()
        with record_attention() as inner:
            attend()
            attend()
        attend()
    assert len(outer) == len(inner) == 2


def test_records_do_not_hold_the_graph() -> None:
    with record_attention() as records:
        q = draw(1, 5, 5, 1, 4).requires_grad_()
        out = aggregated_attention(
            q, q, q, q, q, local_bias=draw(1, 9), pool_bias=draw(1, 25, 25), local_weight=draw(1, 5, 5, 1, 9) * q.mean()
        )
    assert out.requires_grad and not records[0].weights.requires_grad and not records[0].geometry["local_weight"].requires_grad


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/kernels.md").read_text()
    names: dict[str, Any] = {}
    exec(re.search(r"## Record attention weights.*?```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["looks_at"].shape == (3, 7, 7) and torch.allclose(names["looks_at"].sum((1, 2)), torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "arguments"),
    [pytest.param(operation, arguments, id=name) for name, operation, arguments, _ in operations() if "," not in name],
)
def test_reference_forms_compile_and_export_when_off(operation: Any, arguments: dict[str, Any]) -> None:
    names = [name for name, value in arguments.items() if torch.is_tensor(value)]
    rest = {name: value for name, value in arguments.items() if name not in names}

    def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
        return operation(**dict(zip(names, given, strict=True)), **rest, backend="reference")

    shared = ("decay", "weight", "conv_weight", "norm_weight")  # as the biases are, of all images
    batched = [index for index, name in enumerate(names) if name not in shared and not name.endswith("bias")]
    check_traced(call, [arguments[name] for name in names], batched)


@pytest.mark.slow
def test_a_compiled_model_is_recorded_too() -> None:
    model, image = tiny("Swin"), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = compiled(image)
        with record_attention() as records:
            out = compiled(image)
        assert len(records) == len(CALLS["Swin"]) and torch.allclose(out, want, atol=1e-4)
        check_sums(records)
        assert torch.equal(compiled(image), want) and len(records) == len(CALLS["Swin"])
