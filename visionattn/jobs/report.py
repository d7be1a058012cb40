"""The report of a run: its figures, and what the model looks at in a few images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.models.explain.attention import Layer, attention_from, record_layers
from visionattn.models.explain.cams import class_activation, installed
from visionattn.names import shown
from visionattn.report.explain import Canvas, title
from visionattn.report.page import Look, write_report
from visionattn.report.summary import RunSummary
from visionattn.runs.folder import RunFolder
from visionattn.tasks.base import Dataset, Evaluation, Question, Target, Task

_LOOKS = 3  # images
_LARGEST = 2**18  # pixels of an image: recorded attention takes memory


def report_run(
    run: RunFolder,
    task: Task,
    config: RunConfig,
    target: Target,
    model: Any,
    evaluation: Evaluation,
    dataset: Dataset,
    device: torch.device,
    console: Console,
) -> Path:
    """Write `report.html` of a run.

    Args:
        model: of its best checkpoint, on `device`.
        evaluation: of the model on the validation split.
        dataset: samples of that split.

    Returns:
        The file.
    """
    looks = _looks(task, config, target, model, evaluation, dataset, device, console)
    return write_report(RunSummary.of(run, config, task), evaluation, target, dataset, looks)


def _looks(
    task: Task,
    config: RunConfig,
    target: Target,
    model: Any,
    evaluation: Evaluation,
    dataset: Dataset,
    device: torch.device,
    console: Console,
) -> list[Look]:
    """What the model looks at in images spread over the split; empty for tasks and networks that have nothing to show."""
    rows = evaluation.scores.per_case
    places = np.unique(np.linspace(0, len(rows) - 1, 2 * _LOOKS + 1).astype(int)[1::2]).tolist() if len(rows) else []
    modes, looks = [(module, module.training) for module in model.modules()], []
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        for place in places:
            image = task.image_to_explain(dataset, rows[place]["index"])
            if image is None or image.shape[0] * image.shape[1] > _LARGEST:
                continue
            looks.append(_look(task, config, target, model, image, str(rows[place]["id"]), device))
    except Exception as error:  # a run that was trained for days does not fail because of a picture
        console.warn(f"the report has no attention: {type(error).__name__}: {error}")
        return []
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)
    return [look for look in looks if len(look.pictures) > 1]


def _look(task: Task, config: RunConfig, target: Target, model: Any, image: np.ndarray, name: str, device: torch.device) -> Look:
    """The image, a map of its class, and where the last layer of each stage attends."""
    subject = task.subject(config, target, model, Question(image), device)
    with torch.no_grad():
        outputs, layers = record_layers(model, subject.image)
        probability = float(subject.probability(outputs)[0])
    canvas = Canvas(subject.picture, subject.point)
    pictures = [("image", canvas.marked(canvas.picture))]
    if installed():
        values = class_activation("gradcam", model, subject.image, subject.logit)
        pictures.append((f"Grad-CAM of {shown(subject.class_name)}", canvas.heat(values, smooth=True)))
    if model.backbone.placed_attention:
        for layer in _last_of_stages(layers):
            weights = attention_from(model.backbone, layer, canvas.point).mean(0)
            pictures.append((title(layer), canvas.heat(canvas.on_pixels(weights, layer.stride), marked=True)))
    return Look(f"{name}: {subject.class_name}, probability {probability:.2f}", pictures)


def _last_of_stages(layers: Sequence[Layer]) -> list[Layer]:
    """The last layer of each stage, among positions where the stage has such."""
    last: dict[int, Layer] = {}
    for layer in layers:
        if layer.positional or not (layer.stage in last and last[layer.stage].positional):
            last[layer.stage] = layer
    return [last[stage] for stage in sorted(last)]
