"""The table of tasks, and configs by their task. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn.config.messages import Origin
from visionattn.config.plugins import absolute_plugins, import_plugins
from visionattn.config.read import override_values, read_values, require_sections, validate
from visionattn.config.schema import RunConfig
from visionattn.tasks.base import Task
from visionattn.tasks.classification import Classification
from visionattn.tasks.segmentation import Segmentation

# By the value of `task:` in a config. The first one is the default, of a config and of data that no other recognises.
TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Segmentation())}


def register_task(task: Task) -> None:
    """Add a task of your own.

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
    """Name the task that a folder of data is laid out for."""
    names = [name for name, task in TASKS.items() if task.recognise(Path(root).expanduser())]
    return names[-1] if names else next(iter(TASKS))


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate a config; its plugins are imported.

    Args:
        source: path or shipped name; None for the defaults.
        overrides: `key=value` strings with dotted keys; they come last.

    Raises:
        UserError: VA-C001 to VA-C004; all unknown keys and wrong values are reported together.
    """
    values, origins = read_values(source, overrides)
    return config_from_dict(values, origins)


def change_config(config: RunConfig, overrides: Sequence[str], sections: Sequence[str]) -> RunConfig:
    """Apply `key=value` strings, all of them within `sections`.

    Raises:
        UserError: VA-C001, VA-C002; also for a key outside of `sections`.
    """
    if not overrides:
        return config
    require_sections(overrides, sections)
    origins: dict[str, Origin] = {}
    return config_from_dict(override_values(config.model_dump(mode="json"), origins, overrides), origins)


def config_from_dict(values: Any, origins: dict[str, Origin] | None = None) -> RunConfig:
    """Validate plain values by their task, after importing the plugins they name.

    Args:
        origins: for a dotted key, where it was set (`file:line`) and how it was written.

    Raises:
        UserError: VA-C001, VA-C002.
    """
    plugins = values.get("plugins")
    if isinstance(plugins, list) and all(isinstance(name, str) for name in plugins):
        values = {**values, "plugins": absolute_plugins(plugins)}
        import_plugins(values["plugins"])
    return validate(values, origins or {}, {name: task.config for name, task in TASKS.items()})
