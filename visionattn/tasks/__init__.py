"""The table of tasks, and configs by their task. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn.config.messages import Origin, count_unknown
from visionattn.config.plugins import absolute_plugins, import_plugins, require_plugins
from visionattn.config.read import override_values, read_values, require_sections, validate
from visionattn.config.schema import RunConfig
from visionattn.errors import UserError
from visionattn.tasks.bags import Bags
from visionattn.tasks.base import Target, Task
from visionattn.tasks.classification import Classification
from visionattn.tasks.segmentation import Segmentation
from visionattn.tasks.volumes import Volumes

# By the value of `task:` in a config. The first one is the default, of a config and of data that no other recognises.
TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Segmentation(), Volumes(), Bags())}

# Keys that may change on a trained model: they affect neither the network nor the meaning of its outputs.
CHANGEABLE = ("eval", "data", "augment.resize", "train.device", "train.precision")
FIXED = ("data.mean", "data.std")  # but not these of them


def register_task(task: Task) -> None:
    """Register a task of your own, an instance of a subclass of `Task`.

    Raises:
        ValueError: the name is taken.
    """
    if task.name in TASKS:
        raise ValueError(f"task {task.name!r} is registered already, by {type(TASKS[task.name]).__module__}")
    TASKS[task.name] = task


def task_of(config: RunConfig) -> Task:
    """The task of a config."""
    return TASKS[config.task]


def guess_task(root: str | Path) -> str:
    """Name the task that a folder of data is laid out for; the default one if no task recognises it."""
    names = [name for name, task in TASKS.items() if task.recognise(Path(root).expanduser())]
    return names[-1] if names else next(iter(TASKS))


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate a config of the user's; its plugins are imported. A task that it does not name follows from its keys.

    Args:
        source: path or shipped name; None for the defaults.
        overrides: `key=value` strings with dotted keys; they come last.

    Raises:
        UserError: VA-C001 to VA-C004; all unknown keys and wrong values are reported together.
    """
    values, origins = read_values(source, overrides)
    return config_from_dict(values, origins)


def run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config in a run folder, with changes by the user; only plugins among the changes are imported.

    Raises:
        UserError: VA-C001 to VA-C004; VA-C006, a plugin of the run is not imported yet.
    """
    values, origins = read_values(path, name_plugins(overrides))
    return saved_config(values, origins)


def name_plugins(overrides: Sequence[str]) -> list[str]:
    """Import what the user names by `plugins=[...]` among `key=value` strings; returns the other strings.

    Raises:
        UserError: VA-C001, VA-C002.
    """
    named = [text for text in overrides if text.partition("=")[0].strip() == "plugins"]
    if named:
        config_from_dict(override_values({}, {}, named))
    return [text for text in overrides if text not in named]


def change_config(config: RunConfig, overrides: Sequence[str], sections: Sequence[str]) -> RunConfig:
    """Apply `key=value` strings, all of them within `sections`.

    Raises:
        UserError: VA-C001, VA-C002; also for a key outside of `sections`.
    """
    if not overrides:
        return config
    require_sections(overrides, sections, FIXED)
    origins: dict[str, Origin] = {}
    return saved_config(override_values(config.model_dump(mode="json"), origins, overrides), origins)


def config_from_dict(values: Any, origins: dict[str, Origin] | None = None) -> RunConfig:
    """Validate plain values of the user's by their task, after importing the plugins they name.

    Args:
        origins: for a dotted key, where it was set (`file:line`) and how it was written.

    Raises:
        UserError: VA-C001, VA-C002.
    """
    plugins = values.get("plugins")
    if isinstance(plugins, list) and all(isinstance(name, str) for name in plugins):
        values = {**values, "plugins": absolute_plugins(plugins)}
        import_plugins(values["plugins"])
    if "task" not in values:
        values = {"task": _task_with(values), **values}
    return _validated(values, origins)


def saved_config(values: Any, origins: dict[str, Origin] | None = None) -> RunConfig:
    """Validate plain values that a file of a run holds.

    Raises:
        UserError: VA-C001, VA-C002; VA-C006, a plugin that they name is not imported yet.
    """
    if not isinstance(values, dict):
        raise UserError("VA-C003", "the config of the run is no mapping of keys to values")
    plugins = values.get("plugins")
    if isinstance(plugins, list):
        require_plugins([name for name in plugins if isinstance(name, str)])
    return _validated(values, origins)


def saved_target(task: Task, config: RunConfig, target: Any) -> Target:
    """Check the meaning of outputs that a file holds.

    Raises:
        KeyError, TypeError, AttributeError: the task cannot use it.
    """
    for key in ("classes", "display_classes", "palette"):
        rows = target.get(key) or []
        if not isinstance(rows, list) or not all(_is_colour(row) if key == "palette" else isinstance(row, str) for row in rows):
            raise TypeError(f"{key}: expected a list of {'colours' if key == 'palette' else 'names'}")
        if rows and len(rows) != len(target["classes"]):
            raise TypeError(f"{key}: expected {len(target['classes'])}, got {len(rows)}")
    task.describe(config, target)
    return dict(target)


def _is_colour(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 3 and all(isinstance(value, int) and 0 <= value < 256 for value in row)


def _task_with(values: dict[str, Any]) -> str:
    """The task that has the most of the keys of a config that names none; the first one of several."""
    return min(TASKS, key=lambda name: count_unknown(values, TASKS[name].config))


def _validated(values: dict[str, Any], origins: dict[str, Origin] | None) -> RunConfig:
    return validate(values, origins or {}, {name: task.config for name, task in TASKS.items()})
