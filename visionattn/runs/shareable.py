"""What of a run's config may leave the machine with its model: in an exported file, or in a folder that is shared."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.models.weights.hub import is_hub
from visionattn.runs.load import LoadedModel
from visionattn.tasks import saved_config


def shareable(loaded: LoadedModel) -> RunConfig:
    """The config without what concerns only its author: places of data, results and plugins, trackers, the device, files of weights."""
    config = loaded.config
    values, plain = config.model_dump(mode="json"), type(config)().model_dump(mode="json")
    values["data"] = _without_places(values["data"], plain["data"], type(config.data).model_fields)
    values["eval"] = _without_places(values["eval"], plain["eval"], type(config.eval).model_fields)
    values["output"], values["log"] = plain["output"], plain["log"]
    values["train"]["device"] = plain["train"]["device"]
    values["plugins"] = [Path(name).name if name.endswith(".py") else name for name in values["plugins"]]
    record = loaded.task.published_weights(config)
    if record is None or not record.sources:
        values["model"]["weights"] = "none"
    return saved_config(values)


def _without_places(values: Mapping[str, Any], plain: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A section in which every free text, any of which may be a path or a name of a patient, is the default's.

    What patches are described by stays: a file of weights by its name, which is then missed where it is not.
    """
    kept: dict[str, Any] = {}
    for name, value in values.items():
        inner = getattr(fields[name].annotation, "model_fields", None)
        if inner is not None and isinstance(value, Mapping):
            kept[name] = _without_places(value, plain[name], inner)
        elif name in ("backbone", "weights"):
            kept[name] = value if is_hub(value) else re.split(r"[/\\]", value)[-1]
        elif name in ("exclude", "format", "fold", "val_fraction") or (
            isinstance(value, str) and not _is_choice(fields[name].annotation, value)
        ):
            kept[name] = plain[name]
        else:
            kept[name] = value
    return kept


def _is_choice(annotation: Any, value: str) -> bool:
    """Whether a text is one of those that a setting lists."""
    return value in typing.get_args(annotation) or any(
        _is_choice(part, value) for part in typing.get_args(annotation) if typing.get_args(part)
    )
