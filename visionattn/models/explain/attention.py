"""What each layer of a backbone attends to, from recorded attention weights (`kernels/record.py`)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.backbones import Backbone
from visionattn.kernels import AttentionRecord, record_attention, spread_attention
from visionattn.kernels.spread import POSITIONAL

CHANNELS = ("channel_attention", "channel_gate")  # of all positions alike
_STAGE = re.compile(r"stages\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Layer:
    """One attention layer of a backbone in a forward pass of one image.

    Attributes:
        name: module, below its stage.
        stage: index of the stage.
        size: height and width of its map, without padding.
        stride: pixels of the image per position.
        record: weights and their geometry.
        output: what the layer returns, NCHW, of those that weigh channels.
        part: what sets the record apart from others of the same layer.
    """

    name: str
    stage: int
    size: tuple[int, int]
    stride: int
    record: AttentionRecord
    output: torch.Tensor | None
    part: str = ""

    @property
    def positional(self) -> bool:
        return self.record.op in POSITIONAL

    @property
    def label(self) -> str:
        """Place in the network, counted from 1."""
        parts = self.name.split(".")
        block = next((int(part) + 1 for part in parts if part.isdigit()), 1)
        within = [part for part in parts[:-1] if not part.isdigit() and part not in ("blocks", "conv")]
        return ", ".join([f"stage {self.stage + 1}", f"block {block}", *within, *filter(None, [self.part])])

    def place(self, point: tuple[int, int]) -> tuple[int, int]:
        """Row and column on the map of a row and column of the image."""
        row, column = (min(at // self.stride, length - 1) for at, length in zip(point, self.size, strict=True))
        return row, column


def record_layers(model: nn.Module, image: torch.Tensor, *, gradients: bool = False) -> tuple[Any, list[Layer]]:
    """Run a model with a backbone and record its attention layers.

    Args:
        model: in evaluation mode.
        image: `[1, C, H, W]`.
        gradients: record the weights within the graph.

    Returns:
        The outputs of the model, and the layers of the backbone in the order in which they run.
    """
    backbone: Backbone = model.backbone  # type: ignore[assignment]
    found: list[Layer] = []
    running: list[tuple[str, list[AttentionRecord]]] = []  # modules, the innermost last, with the records that they made themselves
    with record_attention(gradients=gradients) as records:
        seen = 0

        def take() -> None:
            nonlocal seen
            if running:
                running[-1][1].extend(records[seen:])
            seen = len(records)

        def begin(name: str, module: nn.Module, inputs: Any) -> None:
            take()
            running.append((name, []))

        def end(module: nn.Module, inputs: Any, output: Any) -> None:
            take()
            name, own = running.pop()
            layers = (_layer(backbone, name, record, output, image) for record in own)
            several = len(own) > 1
            found.extend(replace(layer, part=_part(layer.record) if several else "") for layer in layers if layer is not None)

        handles = []
        for name, module in backbone.named_modules():
            handles += [module.register_forward_pre_hook(partial(begin, name)), module.register_forward_hook(end)]
        try:
            outputs = model(image)
        finally:
            for handle in handles:
                handle.remove()
    return outputs, found


def _part(record: AttentionRecord) -> str:
    """The lines, the kernel, or the kind, of one of several operations of a layer."""
    if record.op == "neighborhood_aggregate":
        return "kernel {}x{}".format(*record.geometry["kernel_size"])
    along: str = record.geometry.get("along", "")
    return along or record.op.removesuffix("_attention")


def _layer(backbone: Backbone, name: str, record: AttentionRecord, output: torch.Tensor, image: torch.Tensor) -> Layer | None:
    match = _STAGE.fullmatch(name)
    if match is None:
        return None
    stage = int(match[1])
    stride = backbone.stage_strides[stage]
    size = (math.ceil(image.shape[2] / stride), math.ceil(image.shape[3] / stride))
    if record.op == "channel_attention":
        output = output.permute(0, 3, 1, 2)
    return Layer(match[2], stage, size, stride, record, output.detach() if record.op in CHANNELS else None)


def attention_from(backbone: Backbone, layer: Layer, point: tuple[int, int]) -> torch.Tensor:
    """Where a layer attends from a point of the image, `[heads, h, w]`.

    Of layers that weigh channels it is how far the features they return resemble those at the point: the cosine, at least 0.
    Of ELA's gates, which are those of a row and a column whatever the point, their product, averaged over the channels.

    Args:
        point: row and column.
    """
    row, column = layer.place(point)
    if layer.record.op == "strip_gate":
        rows, columns = layer.record.weights[0].detach().float().split(layer.size, -1)
        return torch.einsum("cy,cx->yx", rows, columns)[None] / len(rows)
    if layer.output is not None:
        features = nn.functional.normalize(layer.output[0].float(), dim=0)
        return torch.einsum("c,cyx->yx", features[:, row, column], features).clamp_min(0)[None]
    here = torch.zeros(layer.size, device=layer.record.weights.device)
    here[row, column] = 1
    share = backbone.to_queries(here, layer.record.geometry["size"])
    return backbone.to_places(spread_attention(layer.record, share).detach(), layer.size)[0].float()


def class_token_attention(backbone: Backbone, layer: Layer) -> torch.Tensor:
    """Where the class token attends, `[heads, h, w]`."""
    share = torch.zeros(layer.record.geometry["size"], device=layer.record.weights.device)
    share[0, 0] = 1
    return backbone.to_places(spread_attention(layer.record, share).detach(), layer.size)[0].float()


@dataclass(frozen=True)
class Routes:
    """Regions of BiFormer's routing (arXiv 2303.08810, eq. 4) on the map of a layer.

    Attributes:
        own: whether a position is in the region of the point, `[h, w]`.
        chosen: whether it is in a region that this one attends to.
        demand: how many regions attend to its region, as a share of all.
    """

    own: torch.Tensor
    chosen: torch.Tensor
    demand: torch.Tensor


def routes_from(layer: Layer, point: tuple[int, int]) -> Routes:
    """The regions that the region of a point attends to; of a layer with `routed_attention`."""
    geometry, (row, column) = layer.record.geometry, layer.place(point)
    (rh, rw), (height, width) = geometry["region"], geometry["size"]
    across, routes = width // rw, geometry["routes"][0]  # R topk
    region = row // rh * across + column // rw

    def on_map(values: torch.Tensor) -> torch.Tensor:
        grid = values.view(height // rh, across).repeat_interleave(rh, 0).repeat_interleave(rw, 1)
        return grid[: layer.size[0], : layer.size[1]].cpu()

    numbers = torch.arange(len(routes), device=routes.device)
    demand = torch.bincount(routes.flatten(), minlength=len(routes)) / len(routes)
    return Routes(on_map(numbers == region), on_map(torch.isin(numbers, routes[region])), on_map(demand))


def relevance(backbone: Backbone, layers: Sequence[Layer], region: torch.Tensor | None = None) -> torch.Tensor:
    """Propagate the relevance of an output back through the attention of a backbone, `[h, w]` of its first layer (arXiv 2103.15679).

    A layer adds to the relevance of its keys that of its queries times the positive part of weight x gradient, averaged over the heads
    (eq. 5 and 6); between stages the relevance of a position is shared out among those it was made of. The relevance that positions
    keep by themselves is left out: it would be that of the start. Layers that weigh channels move none.

    Args:
        layers: of `record_layers` with gradients, after the output was propagated back.
        region: weight of each pixel of the image in the output, `[H, W]`; None: all alike, or the class token if the classifier reads it.

    Raises:
        ValueError: no layer attends to positions.
    """
    layers = [layer for layer in layers if layer.positional]
    if not layers:
        raise ValueError("no layer attends to positions")
    last = layers[-1]
    size = last.record.geometry["size"] if backbone.class_token else last.size
    total = torch.zeros(size, device=last.record.weights.device)
    if region is not None:
        weight = nn.functional.adaptive_avg_pool2d(region[None, None].float().to(total.device), last.size)[0, 0]
        total = backbone.to_queries(weight / weight.sum(), size) if backbone.class_token else weight / weight.sum()
    elif backbone.class_token:
        total[0, 0] = 1
    else:
        total += 1 / total.numel()
    moved, size = torch.zeros_like(total), last.size
    for layer in reversed(layers):
        record = layer.record
        if layer.size != size:
            total, moved, size = _finer(total, layer.size), _finer(moved, layer.size), layer.size
        if record.weights.grad is None:
            continue  # it does not take part in the output
        weights = (record.weights * record.weights.grad).clamp_min(0).detach()
        share = total if backbone.class_token else backbone.to_queries(total, record.geometry["size"])
        given = spread_attention(record, share, weights).mean(1)[0]
        given = given if backbone.class_token else backbone.to_places(given, layer.size)
        total, moved = total + given, moved + given
    return (backbone.to_places(moved, size) if backbone.class_token else moved).float()


def _finer(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Share the value of each position out among those of a finer map."""
    ratio = [max(1, round(fine / coarse)) for fine, coarse in zip(size, values.shape, strict=True)]
    index = [torch.arange(fine).clamp(max=coarse * r - 1) // r for fine, coarse, r in zip(size, values.shape, ratio, strict=True)]
    return values[index[0]][:, index[1]] / (ratio[0] * ratio[1])
