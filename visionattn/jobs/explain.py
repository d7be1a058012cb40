"""Explain what a model made of an image: attention, routes, maps of a class and how faithful they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from visionattn.console import Console
from visionattn.engine.devices import open_accelerator
from visionattn.engine.diagnosis import memory_explained, out_of_memory_in_inference
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_folder, atomic_write, json_text
from visionattn.jobs.features import open_model
from visionattn.jobs.predict import require_new
from visionattn.models.explain.attention import Layer, attention_from, record_layers, relevance
from visionattn.models.explain.cams import CAMS, class_activation, installed, require_package
from visionattn.models.explain.faithfulness import Faithfulness, faithfulness, random_maps
from visionattn.names import file_name, shown
from visionattn.report.explain import (
    RANDOM,
    Canvas,
    Gallery,
    attention_pictures,
    channels_figure,
    curves_figure,
    maps_pictures,
    routing_pictures,
    write_pages,
)
from visionattn.runs.load import LoadedModel
from visionattn.tasks.base import Question, Subject

METHODS = ("attention", "routing", "relevance", *CAMS)
DEFAULT = ("attention", "routing", "relevance", "gradcam")
_RANDOM = 4  # random maps that others are compared with


@dataclass(frozen=True)
class Explanation:
    """Results of an explanation and the folder they were written to.

    Attributes:
        folder: of the pictures and the page.
        facts: what was explained: image, model, class, its probability, the point.
        maps: maps of the class by method, `[H, W]`, not negative, at the size that the network sees.
        scores: deletion and insertion of each of them, and of random maps.
    """

    folder: Path
    facts: dict[str, str]
    maps: dict[str, np.ndarray]
    scores: dict[str, Faithfulness]

    def as_dict(self) -> dict[str, Any]:
        """The object that `explain --json` prints and `explain.json` holds."""
        scores = {name: {"deletion": found.deletion, "insertion": found.insertion} for name, found in self.scores.items()}
        return {"folder": str(self.folder), **self.facts, "scores": scores}


def explain(
    source: str | Path,
    image: str | Path,
    *,
    point: tuple[float, float] | None = None,
    class_name: str | None = None,
    methods: Sequence[str] = (),
    stage: int | None = None,
    steps: int = 16,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Explanation:
    """Draw what a model looked at in an image: attention from a point, routing, maps of a class and their scores.

    Args:
        source: see `load_model`.
        image: a file.
        point: column and row in pixels of the file from which attention is drawn; in segmentation its class is explained. None: the
            middle, in segmentation the most certain pixel of the class.
        class_name: None: the predicted class.
        methods: of `METHODS`; (): those of `DEFAULT` that the model and the installed packages have.
        stage: stage whose layers are drawn, head by head, and whose map is weighed by class activation maps, counted from 1; None: the
            layers of all, and the map of the last.
        steps: of deletion and insertion; 0 leaves the scores out.
        out: new folder for the results; None: `explain/<name of the image>` in the run folder, or here if there is no run.
        settings: as in `evaluate`.
        console: where progress is printed.

    Raises:
        UserError: VA-D001, no such file; VA-D010, it cannot be read; VA-C002, a method, class, point or stage that is not there; VA-M004,
            several models; VA-R007, a folder that exists, or a package that is missing; VA-R001, out of memory.
    """
    console, path = console or Console(quiet=True), Path(image).expanduser()
    for name in methods:
        if name not in METHODS:
            raise UserError("VA-C002", f'--method: no method "{name}"', fix=did_you_mean(name, METHODS) or f"one of {', '.join(METHODS)}")
    if not path.is_file():
        raise UserError("VA-D001", f'"{shown(str(image))}" is not a file', fix="give one image")
    loaded = open_model(source, settings, console, "explanations", calibrated=True)
    loaded = LoadedModel(
        loaded.task, loaded.config.model_copy(update={"data": loaded.config.data.at("")}), loaded.model, loaded.target, loaded.run
    )
    folder = _folder(loaded, path, point) if out is None else Path(out).expanduser()
    require_new([folder])
    explained = memory_explained(partial(out_of_memory_in_inference, "the explanation", 1))
    with open_accelerator(loaded.config.train) as accelerator, explained:
        loaded.model.to(accelerator.device).requires_grad_(False)
        question = Question(path, point, class_name)
        subject = loaded.task.subject(loaded.config, loaded.target, loaded.model, question, accelerator.device)
        backbone = loaded.model.backbone
        index = _stage_index(backbone, stage)
        gradients = not methods or "relevance" in methods  # they take memory
        with torch.set_grad_enabled(gradients):
            outputs, layers = record_layers(loaded.model, subject.image.clone().requires_grad_(gradients), gradients=gradients)
        chosen = _methods(backbone, layers, methods, console)
        maps = _maps(loaded.model, subject, outputs, layers, chosen, -1 if index is None else index)
        scores = _scores(loaded.model, subject, maps, index, steps, console) if maps and steps else {}
        shown_layers = [layer for layer in layers if index is None or layer.stage == index]
        drawings: dict[str, Figure | Gallery] = {}
        canvas = Canvas(subject.picture, subject.point)
        if "attention" in chosen and shown_layers:
            drawings["attention"] = attention_pictures(canvas, backbone, shown_layers, per_head=index is not None)
            if (channels := channels_figure(shown_layers)) is not None:
                drawings["channels"] = channels
        if "routing" in chosen and (routing := routing_pictures(canvas, shown_layers)):
            drawings["routing"] = routing
        if maps:
            region = None if subject.region is None else subject.region.cpu().numpy()
            drawings["maps"] = maps_pictures(canvas, maps, scores, region)
        if scores:
            drawings["scores"] = curves_figure(scores)
        with torch.no_grad():
            probability = float(subject.probability(outputs.detach())[0])
    facts = _facts(loaded, source, path, subject, probability)
    found = Explanation(folder, facts, maps, scores)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        files = write_pages(temporary, f"{path.name}: {subject.class_name}", facts, drawings, scores)
        atomic_write(temporary / "explain.json", json_text(found.as_dict()))
    console.field("class", f"{shown(subject.class_name)}, probability {probability:.3f}" + (f", {subject.where}" if subject.where else ""))
    if scores:
        rows = [[name, f"{one.deletion:.3f}", f"{one.insertion:.3f}"] for name, one in scores.items()]
        console.table(["map", "deletion", "insertion"], rows)
    console.field("written", "\n".join(str(folder / file.name) for file in files))
    return found


def explained_picture(loaded: LoadedModel, question: Question, device: torch.device) -> tuple[np.ndarray, dict[str, str]]:
    """One picture of what a model made of an image, `[H, W, 3]` uint8, and what it shows: Grad-CAM, or without its package the
    attention of the last layer that attends to positions.

    Args:
        loaded: its model is on `device`, and its parameters need no gradients.

    Raises:
        UserError: as `explain`.
    """
    model = loaded.model
    subject = loaded.task.subject(loaded.config, loaded.target, model, question, device)
    canvas = Canvas(subject.picture, subject.point)
    with torch.no_grad():
        probability = float(subject.probability(model(subject.image))[0])
    attending: list[Layer] = []
    if not installed() and model.backbone.placed_attention:
        with torch.no_grad():
            attending = [layer for layer in record_layers(model, subject.image)[1] if layer.positional]
    if attending:
        layer = attending[-1]
        values = canvas.on_pixels(attention_from(model.backbone, layer, subject.point).mean(0), layer.stride)
        picture, method = canvas.heat(values, marked=True), f"attention of {layer.label}"
    else:
        values = class_activation("gradcam", model, subject.image, subject.logit)
        picture, method = canvas.heat(values, smooth=True), "Grad-CAM"
    facts = {"method": method, "class": subject.class_name, "probability": f"{probability:.4f}", "where": subject.where}
    return picture, facts


def _folder(loaded: LoadedModel, path: Path, point: tuple[float, float] | None) -> Path:
    name = path.stem + ("" if point is None else f"-{point[0]:g}-{point[1]:g}")
    return (Path() if loaded.run is None else loaded.run.path) / "explain" / file_name(name)


def _stage_index(backbone: Any, stage: int | None) -> int | None:
    """Index of a stage counted from 1.

    Raises:
        UserError: VA-C002, there are not so many.
    """
    count = len(backbone.stages)
    if stage is not None and not 1 <= stage <= count:
        raise UserError("VA-C002", f"--layer: the backbone has {count} stages, got {stage}", fix=f"--layer {count}")
    return None if stage is None else stage - 1


def _methods(backbone: Any, layers: Sequence[Layer], asked: Sequence[str], console: Console) -> list[str]:
    """The methods that apply to a backbone, of those that were asked for.

    Raises:
        UserError: VA-C002, one that was asked for does not; VA-R007, the package of one is missing.
    """
    attends = bool(layers) and backbone.placed_attention
    reasons = {
        "attention": "" if attends else "it records no attention whose weights have places on the image",
        "routing": "" if any(layer.record.op == "routed_attention" for layer in layers) else "it has no routed attention",
        "relevance": "" if attends and any(layer.positional for layer in layers) else "it has no attention among positions",
    }
    reasons |= {name: "" if len(backbone.stages) else "its layers have no map of positions" for name in CAMS}
    usable = [method for method in METHODS if not reasons.get(method)]
    if not usable:
        why = "it records no attention, and its layers have no map of positions"
        fix = "a family of this package, or a network of timm that is a pyramid or a plain vision transformer"
        raise UserError("VA-C002", f"no method of explain applies to {type(backbone).__name__}", why=why, fix=fix)
    for name in asked:
        if reasons.get(name):
            what = f"--method: {name} does not apply to {type(backbone).__name__}"
            raise UserError("VA-C002", what, why=reasons[name], fix=f"--method {','.join(usable)}")
        if name in CAMS:
            require_package()
    if asked:
        return list(asked)
    if not installed():
        console.warn('without maps of the class, which need grad-cam: pip install "visionattn[explain]"')
    return [name for name in DEFAULT if not reasons.get(name) and (name not in CAMS or installed())]


def _maps(model: Any, subject: Subject, outputs: Any, layers: Sequence[Layer], methods: Sequence[str], stage: int) -> dict[str, np.ndarray]:
    """Maps of the class by method, `[H, W]`."""
    height, width = subject.image.shape[2:]
    found = {}
    for name in methods:
        if name == "relevance":
            subject.logit(outputs)[0].backward()
            values = relevance(model.backbone, layers, subject.region)
            stride = next(layer.stride for layer in layers if layer.positional)
            size = (values.shape[0] * stride, values.shape[1] * stride)
            resized = F.interpolate(values[None, None], size=size, mode="bilinear")[0, 0, :height, :width]
            found[name] = resized.cpu().numpy()
        elif name in CAMS:
            found[name] = class_activation(name, model, subject.image, subject.logit, stage)
    return found


def _scores(
    model: Any, subject: Subject, maps: dict[str, np.ndarray], stage: int | None, steps: int, console: Console
) -> dict[str, Faithfulness]:
    """Deletion and insertion of maps, and the mean of random ones."""
    height, width = subject.image.shape[2:]
    stride = model.backbone.stage_strides[len(model.backbone.stages) - 1 if stage is None else stage]
    random = random_maps((height, width), (-(-height // stride), -(-width // stride)), _RANDOM)
    found = []
    with console.progress("scores", len(maps) + _RANDOM) as bar:
        for number, values in enumerate([*maps.values(), *random]):
            found.append(faithfulness(model, subject.image, values, subject.probability, steps=steps))
            bar.update(number + 1)
    by_chance = found[len(maps) :]
    deleted, inserted = (np.mean([getattr(one, name) for one in by_chance], 0).tolist() for name in ("deleted", "inserted"))
    return {**dict(zip(maps, found, strict=False)), RANDOM: Faithfulness(deleted, inserted)}


def _facts(loaded: LoadedModel, source: str | Path, path: Path, subject: Subject, probability: float) -> dict[str, str]:
    height, width = subject.image.shape[2:]
    row, column = subject.point
    return {
        "image": str(path),
        "model": f"{loaded.config.model.name} ({source})",
        "class": subject.class_name,
        "probability": f"{probability:.4f}" + (f", {subject.where}" if subject.where else ""),
        "input": f"{width} x {height} px",
        "point": f"column {column}, row {row} of the input",
    }
