"""Give every setting that is `auto` a value, before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters

from visionattn.config.choices import Choice, Facts, apply_choices
from visionattn.config.schema import FROM_SCRATCH, RunConfig
from visionattn.console import Console
from visionattn.data.check import CheckReport
from visionattn.data.statistics import Statistics
from visionattn.models.weights.hub import is_hub, is_run_folder, model_folder
from visionattn.names import to_path
from visionattn.runs.load import config_of_run
from visionattn.tasks import task_of
from visionattn.tasks.base import Target, Task


def with_weights(config: RunConfig) -> RunConfig:
    """The config with what its weights bring: the network of a run, the arguments and the size of published ones.

    Raises:
        UserError: VA-R003, VA-C006, a run that cannot be opened.
    """
    task = task_of(config)
    complete: RunConfig = task.with_weights(config)
    if task.published_weights(complete) is not None:
        return complete
    weights = to_path(complete.model.weights)
    source = Path(weights).expanduser()
    if (folder := model_folder(weights if is_hub(weights) else source)) is not None:
        return task.with_model_of(complete, config_of_run(folder)) if is_run_folder(folder) else complete
    if source.is_dir():
        complete = task.with_model_of(complete, config_of_run(source))
    return complete


def choose(
    task: Task, config: RunConfig, target: Target, report: CheckReport | None, *, samples: int, batch: int
) -> tuple[RunConfig, list[Choice]]:
    """The config without `auto`, and what was chosen.

    Args:
        report: findings in the data, if they were checked.
        samples: of the training set.
        batch: samples of a step, on all processes.
    """
    plain, _ = apply_choices(config, [Choice(key, value, "") for key, value in FROM_SCRATCH.items()])  # layers do not depend on choices
    with torch.device("meta"):
        model = task.build_model(plain, target)
    matcher = getattr(model, "group_matcher", None)
    layers = 1 if matcher is None else max(group_parameters(model, matcher(), reverse=True).values()) + 1
    facts = Facts(
        pretrained=config.model.weights != "none",
        samples=samples,
        batch=batch,
        layers=layers,
        params=sum(parameter.numel() for parameter in model.parameters()),
        cnn=bool(getattr(getattr(model, "backbone", None), "cnn", False)),
        unit=task.unit,
        stochastic_depth=getattr(getattr(model, "backbone", None), "stochastic_depth", True),
    )
    complete, chosen = apply_choices(config, task.choices(config, facts, report))
    return complete, chosen if facts.pretrained else []


def print_choices(choices: list[Choice], console: Console) -> None:
    """A line per value, with its reason."""
    for number, (key, value, reason) in enumerate(choices):
        console.field("" if number else "fine-tuning", f"{key}={_typed(value)}  ({reason})")


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'


def print_statistics(found: Statistics | None, images: int, console: Console) -> None:
    """Report the mean and deviation that were measured on the training images."""
    if found is None:
        return
    sample = f"{found.images:,} of {images:,} training images" if found.images < images else f"{images:,} training images"
    for number, (name, values) in enumerate({"mean": found.mean, "std": found.std}.items()):
        listed = ", ".join(f"{value:.4g}" for value in values[:16]) + ", ..." * (len(values) > 16)
        console.field("" if number else "channels", f"data.{name}=[{listed}]" + ("" if number else f"  (measured on {sample})"))
    console.field("", "no colour augmentation, which is for pictures of 8 bits")
