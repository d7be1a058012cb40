"""Pictures of `explain` and its page: attention on the image, channels, routes, maps of a class and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from visionattn.backbones import Backbone
from visionattn.figures import drawn, picture_grid
from visionattn.files import atomic_write
from visionattn.models.explain.attention import CHANNELS, Layer, attention_from, class_token_attention, routes_from
from visionattn.models.explain.faithfulness import Faithfulness
from visionattn.report.page import data_url, picture_url, template

Gallery = list[tuple[str, np.ndarray]]  # pictures `[H, W, 3]` uint8 with their captions

_SIDE = 224  # shortest side of a picture, in pixels
_COLUMNS = 6
_MOST_CHANNELS = 24  # layers in the figure of channels


class Canvas:
    """A picture to draw on, enlarged if it is small.

    Args:
        picture: `[H, W, 3]`, uint8.
        point: row and column.
    """

    def __init__(self, picture: np.ndarray, point: tuple[int, int]) -> None:
        self.factor = math.ceil(_SIDE / min(picture.shape[:2]))
        self.size, self.point = (picture.shape[0], picture.shape[1]), point
        self.picture = self.enlarged(picture, cv2.INTER_CUBIC)

    def enlarged(self, values: np.ndarray, interpolation: int = cv2.INTER_NEAREST) -> np.ndarray:
        """Enlarge an array of the size of the image."""
        size = (self.size[1] * self.factor, self.size[0] * self.factor)
        return np.asarray(cv2.resize(np.ascontiguousarray(values), size, interpolation=interpolation))

    def on_pixels(self, values: torch.Tensor, stride: int) -> np.ndarray:
        """Values of the positions of a map as those of pixels, without smoothing: each position is a square."""
        whole = np.kron(values.float().cpu().numpy(), np.ones((stride, stride), np.float32))
        missing = [max(0, side - given) for side, given in zip(self.size, whole.shape, strict=True)]
        return np.pad(whole, [(0, missing[0]), (0, missing[1])], mode="edge")[: self.size[0], : self.size[1]]

    def heat(self, values: np.ndarray, *, marked: bool = False, smooth: bool = False) -> np.ndarray:
        """Colour the image by values `[H, W]`, scaled to their maximum; where they are 0 it stays grey."""
        share = np.clip(values / max(float(values.max()), 1e-12), 0, 1).astype(np.float32)
        share = self.enlarged(share, cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST)[..., None]
        grey = self.picture.mean(2, keepdims=True) * 0.55 + 35
        colour = matplotlib.colormaps["turbo"](0.1 + 0.9 * share[..., 0])[..., :3] * 255
        weight = 0.85 * np.sqrt(share)
        mixed = np.rint(grey * (1 - weight) + colour * weight).astype(np.uint8)
        return self.marked(mixed) if marked else mixed

    def marked(self, picture: np.ndarray) -> np.ndarray:
        """Draw a ring around the point."""
        row, column = (int((at + 0.5) * self.factor) for at in self.point)
        radius = max(5, min(picture.shape[:2]) // 36)
        result = np.array(picture)
        cv2.circle(result, (column, row), radius, (0, 0, 0), max(3, radius // 2), cv2.LINE_AA)
        cv2.circle(result, (column, row), radius, (255, 255, 255), max(1, radius // 4), cv2.LINE_AA)
        return result

    def outlined(self, picture: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        """Draw the border of an area `[H, W]`."""
        area = self.enlarged(inside.astype(np.uint8))
        contours, _ = cv2.findContours(area, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        return np.asarray(cv2.drawContours(np.array(picture), contours, -1, colour, max(2, min(picture.shape[:2]) // 110)))


def attention_pictures(canvas: Canvas, backbone: Backbone, layers: Sequence[Layer], *, per_head: bool) -> Gallery:
    """The image with the point, then where each layer attends from there, averaged over its heads, or also head by head."""
    pictures = [("image", canvas.marked(canvas.picture))]
    for layer in layers:
        maps = [("", attention_from(backbone, layer, canvas.point))]
        if backbone.class_token and layer.positional:
            maps.append(("\nclass token", class_token_attention(backbone, layer)))
        for extra, heads in maps:
            mean = canvas.heat(canvas.on_pixels(heads.mean(0), layer.stride), marked=not extra)
            pictures.append((f"{title(layer)}{extra}", mean))
            for number, head in enumerate(heads if per_head and len(heads) > 1 else []):
                drawn_head = canvas.heat(canvas.on_pixels(head, layer.stride), marked=not extra)
                pictures.append((f"{layer.label}{extra}\nhead {number + 1}", drawn_head))
    return pictures


def title(layer: Layer) -> str:
    """Where a layer is, and what it attends to."""
    geometry = layer.record.geometry
    what = layer.record.op
    if what == "window_attention":
        what = f"{_by(geometry['window_size'])} windows{', shifted' if any(geometry['shift']) else ''}"
    elif what == "neighborhood_attention":
        dilated = f", dilation {_by(geometry['dilation'])}" if max(geometry["dilation"]) > 1 else ""
        what = f"{_by(geometry['kernel_size'])} neighborhood{dilated}"
    elif what == "routed_attention":
        what = f"{geometry['routes'].shape[2]} routed regions of {_by(geometry['region'])}"
    elif what == "aggregated_attention":
        what = f"{geometry['kernel_size']} x {geometry['kernel_size']} and {_by(geometry['pool'])} pooled"
    else:
        what = {
            "dense_attention": "all positions",
            "channel_attention": "channels: similar places",
            "channel_gate": "gates: similar places",
            "strip_gate": "gates of rows and columns",
        }.get(what, what)
    return f"{layer.label}\n{what}"


def _by(pair: Sequence[int]) -> str:
    return f"{pair[0]} x {pair[1]}"


def channels_figure(layers: Sequence[Layer]) -> Figure | None:
    """Weights of the layers that weigh channels: gates in order, attention as matrices, one per head; None if there are none."""
    layers = [layer for layer in layers if layer.record.op in CHANNELS]
    if len(layers) > _MOST_CHANNELS:
        layers = [layers[index] for index in np.linspace(0, len(layers) - 1, _MOST_CHANNELS).astype(int)]
    if not layers:
        return None
    rows = math.ceil(len(layers) / 4)
    figure = Figure(figsize=(13.6, 2.1 * rows + 0.2), layout="constrained")
    for number, layer in enumerate(layers):
        axes = figure.add_subplot(rows, min(4, len(layers)), number + 1)
        weights = layer.record.weights[0].detach().float().cpu().numpy()
        if layer.record.op == "channel_gate":
            axes.bar(range(len(weights)), weights, width=1.0, color="tab:blue")
            axes.axhline(0.5, color="grey", lw=0.6, ls="--")
            axes.set_ylim(0, 1)
            axes.set_xlabel("channel", fontsize=6)
        else:
            shown = np.concatenate([head / max(float(head.max()), 1e-12) for head in weights[:8]], 1)
            axes.imshow(shown, cmap="viridis", aspect="auto")
            for edge in range(1, min(8, len(weights))):
                axes.axvline(edge * weights.shape[2] - 0.5, color="white", lw=1)
            axes.set_xlabel("channel, head by head", fontsize=6)
        axes.tick_params(labelsize=6)
        axes.set_title(drawn(layer.label, 40), fontsize=7)
    return figure


def routing_pictures(canvas: Canvas, layers: Sequence[Layer]) -> Gallery:
    """The regions that the one of the point attends to, and how much all regions are attended to; none without routed layers."""
    pictures: Gallery = []
    for layer in layers:
        if layer.record.op != "routed_attention":
            continue
        routes = routes_from(layer, canvas.point)
        own, chosen = (canvas.on_pixels(area, layer.stride) > 0.5 for area in (routes.own, routes.chosen))
        picture = np.where(canvas.enlarged(chosen.astype(np.uint8))[..., None] > 0, canvas.picture, canvas.picture // 3)
        picture = canvas.outlined(canvas.outlined(picture, chosen, (255, 200, 0)), own, (0, 220, 255))
        demand = canvas.heat(canvas.on_pixels(routes.demand, layer.stride))
        most = float(routes.demand.max())
        pictures += [(title(layer), canvas.marked(picture)), (f"{layer.label}\ndemand, at most {100 * most:.0f} %", demand)]
    return pictures


def maps_pictures(
    canvas: Canvas, maps: Mapping[str, np.ndarray], scores: Mapping[str, Faithfulness], region: np.ndarray | None = None
) -> Gallery:
    """Maps of the class, with their scores, beside the image, in which the explained pixels are outlined.

    Args:
        region: weight of each pixel in what is explained, `[H, W]`; None: it is the class of the whole image.
    """
    image = ("image", canvas.picture)
    if region is not None:
        image = ("explained pixels", canvas.outlined(canvas.picture, region > 0, (255, 255, 255)))
    pictures = [image]
    for name, values in maps.items():
        found = scores.get(name)
        caption = name + (f"\ndeletion {found.deletion:.3f}, insertion {found.insertion:.3f}" if found else "")
        pictures.append((caption, canvas.heat(values, smooth=True)))
    return pictures


def curves_figure(scores: Mapping[str, Faithfulness]) -> Figure:
    """Probability of the class over the share of changed pixels."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("deletion", "insertion"), strict=True):
        for label, found in scores.items():
            values = found.deleted if name == "deletion" else found.inserted
            style = {"color": "grey", "ls": "--"} if label == RANDOM else {}
            axes.plot(np.linspace(0, 1, len(values)), values, label=f"{label} {getattr(found, name):.3f}", **style)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel=f"share of pixels {'deleted' if name == 'deletion' else 'inserted'}")
        axes.set_title(f"{name}: {'lower' if name == 'deletion' else 'higher'} is better", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("probability of the class")
    return figure


RANDOM = "random maps"

# Heading and text of each figure, by the name of its file.
_SECTIONS = {
    "attention": (
        "Attention from the point",
        "Where each layer attends from the ringed point, relative to its largest weight. Layers that weigh channels, the same for all "
        "points, show how far the features that they return resemble those at the point.",
    ),
    "channels": (
        "Channels",
        "Gates (a bar per channel, from 0 to 1) and channel attention (a matrix per head: a row per channel of the result, relative to "
        "the largest weight).",
    ),
    "routing": (
        "Routing",
        "The region of the point (blue) and those that it attends to (yellow); beside it, how many of all regions attend to each.",
    ),
    "maps": ("Maps of the class", "What speaks for the class, relative to the maximum."),
    "scores": (
        "Deletion and insertion",
        "Probability of the class while pixels are deleted, or inserted into a blurred image, in the order of a map. Scores are areas "
        "under these curves. The random maps are as coarse as the class activation maps.",
    ),
}


def write_pages(
    folder: Path, title: str, facts: Mapping[str, str], drawings: Mapping[str, Figure | Gallery], scores: Mapping[str, Any]
) -> list[Path]:
    """Write the drawings as PNG, and a page that holds all of them.

    Args:
        facts: name and text, for the head of the page.
        drawings: by the name of the file.
        scores: by the name of the map.

    Returns:
        The files.
    """
    files, sections = [], []
    for name, drawing in drawings.items():
        path = folder / f"{name}.png"
        heading, text = _SECTIONS[name]
        section: dict[str, Any] = {"name": name, "heading": heading, "text": text, "pictures": [], "scale": ""}
        if isinstance(drawing, Figure):
            section["image"], content = data_url(drawing)
        else:
            columns = 4 if name == "maps" else _COLUMNS
            captions, pictures = zip(*drawing, strict=True)
            content = data_url(picture_grid(pictures, captions, columns=columns))[1]
            section["pictures"] = [(caption, picture_url(picture)) for caption, picture in drawing]
            section["width"], section["scale"] = 960 // columns, "" if name == "routing" else _scale()
        atomic_write(path, content)
        sections.append(section)
        files.append(path)
    rows = [[name, f"{found.deletion:.3f}", f"{found.insertion:.3f}"] for name, found in scores.items()]
    page = folder / "explain.html"
    atomic_write(page, template("explain.html").render(title=title, facts=facts, sections=sections, rows=rows))
    return [*files, page]


def _scale() -> str:
    """Colours of `Canvas.heat` on grey from 0 to the maximum, as a list of CSS."""
    grey = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    ramp = Canvas(grey, (0, 0)).heat(np.broadcast_to(np.linspace(0, 1, _SIDE), (_SIDE, _SIDE)))[0]
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in ramp[:: _SIDE // 12])
