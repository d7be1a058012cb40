"""Read a config: YAML files and what they build on, `key=value` settings, one validation.

`base:` in a file names the files it builds on (shipped names or paths); `key=value` from the command line comes last. The
result is validated once and never changed. The schemas are handed in by the caller: this module imports no task.
"""

from __future__ import annotations

import copy
import os
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from visionattn.config.messages import Problem, describe_error, invalid_config, key_lines, syntax_error
from visionattn.config.schema import RunConfig, Section
from visionattn.errors import UserError, did_you_mean
from visionattn.names import from_path

SHIPPED = files("visionattn") / "configs"

# Keys that hold paths: the only ones in which ${env:NAME} is replaced.
PATH_KEYS = ("data.root", "output.dir", "model.weights", "data.classes")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")

# The schema of each task by its name; the first one is the default.
Schemas = Mapping[str, type[RunConfig]]


def shipped_names() -> list[str]:
    """Names of the configs inside the package that are meant to be run."""
    root = Path(str(SHIPPED))
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("base/"))


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file of a config: a path (also relative to the file that names it), or a shipped name.

    Raises:
        UserError: VA-C004, no such file or shipped config.
    """
    candidates = [Path(name).expanduser()]
    if beside is not None:
        candidates += [beside / name, beside / f"{name}.yaml"]
    candidates.append(Path(str(SHIPPED)) / f"{name}.yaml")
    for path in candidates:
        if path.is_file():
            return path
    leaves = {known.rpartition("/")[2]: known for known in shipped_names()}
    near = [leaves[leaf] for leaf in get_close_matches(name.removesuffix(".yaml").rpartition("/")[2], leaves, 3, 0.55)]
    hint = f"Did you mean {', '.join(near)}?" if near else did_you_mean(name, leaves.values())
    raise UserError(
        "VA-C004", f'config "{name}" is neither a file nor a shipped config', fix=f"{hint} List them: visionattn config list".strip()
    )


def read_values(source: str | Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge a config with the files it builds on and `key=value` settings, not yet validated.

    Args:
        source: path or shipped name; None for an empty config.
        overrides: `key=value` strings with dotted keys; they come last.

    Returns:
        The values, and for each dotted key where it was set (`file:line`).

    Raises:
        UserError: VA-C001 to VA-C004.
    """
    values, origins = ({}, {}) if source is None else _read(find_config(str(source)), ())
    return override_values(values, origins, overrides), origins


def override_values(values: dict[str, Any], origins: dict[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` strings to plain values; `origins` learns where the keys were set.

    Raises:
        UserError: VA-C001, not of the form key=value; VA-C002, settings that are not UTF-8 or do not fit together.
    """
    overrides = [from_path(text) for text in overrides]
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign or not key.strip():
            raise UserError("VA-C001", f'"{text}" is not of the form key=value', where="command line", fix="Example: train.epochs=5")
        origins[key.strip()] = "command line"
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError("VA-C002", f"not UTF-8: {text}", where="command line", fix="rename the file or folder: a config is UTF-8 text")
    try:
        return _over(values, OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:  # TypeError: a list where a mapping is, or the reverse
        raise UserError("VA-C002", f"the settings do not fit together: {str(error).splitlines()[0]}", where=", ".join(overrides)) from error


def require_sections(overrides: Sequence[str], sections: Collection[str]) -> None:
    """Stop at a `key=value` outside of these sections or keys.

    Raises:
        UserError: VA-C002.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if "=" in text and not any(key == section or key.startswith(f"{section}.") for section in sections):
            raise UserError(
                "VA-C002", f"{key}: fixed by the trained model", where="command line", fix=f"What can change: {', '.join(sections)}"
            )


def validate(values: dict[str, Any], origins: Mapping[str, str], schemas: Schemas) -> RunConfig:
    """Validate plain values by the schema of their task.

    Raises:
        UserError: VA-C001, VA-C002; all unknown keys and wrong values are reported together.
    """
    problems: list[Problem] = []
    values = _substitute_env(values, "", problems)
    default = next(iter(schemas))
    task = values.get("task", default)
    if not isinstance(task, str) or task not in schemas:
        problems.append(Problem.of_value("task", f"one of {', '.join(schemas)}", task))
        values, task = {key: value for key, value in values.items() if key != "task"}, default
    try:
        config = schemas[task].model_validate(values)
    except ValidationError as error:
        problems += [describe_error(details, task, schemas) for details in error.errors(include_url=False)]
    if problems:
        raise invalid_config(problems, origins, show="" if task == default else f" task={task}")
    return config


def changed_values(config: RunConfig) -> dict[str, Any]:
    """Only the values that differ from the defaults of the task, which is always named."""
    changed = _difference(config.model_dump(mode="json"), type(config)().model_dump(mode="json"))
    return {"task": config.task, **changed}


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML text in the order they are declared."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe(config: RunConfig) -> str:
    """Format all values as YAML, each with its meaning as a comment."""

    def section(model: BaseModel, indent: str) -> list[str]:
        lines = []
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, Section):
                if type(value).model_fields:
                    lines += ["", f"{indent}{name}:", *section(value, indent + "  ")]
            else:
                plain = model.model_dump(mode="json", include={name})[name]
                text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
                lines.append(f"{indent + name + ': ' + text:<40}  # {field.description or ''}".rstrip(" #"))
        return lines

    return "\n".join(section(config, "")).strip() + "\n"


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    if path.resolve() in seen:
        raise UserError("VA-C003", f"{path} names itself under base:", where=" -> ".join(str(p) for p in seen))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("VA-C003", f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        empty = node is None or node.tag == "tag:yaml.org,2002:null"
        own: Any = {} if empty else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise syntax_error(path, text, error) from error
    if not isinstance(own, dict) or (isinstance(node, yaml.ScalarNode) and not empty):
        raise UserError("VA-C003", "a config is a mapping of keys to values", where=f"{path}:1")
    origins = {key: f"{path.name}:{line}" for key, line in key_lines(node, "")}
    bases = own.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError("VA-C002", "base: expected a config name or a list of names", where=origins.get("base", str(path)))
    merged: dict[str, Any] = {}
    merged_origins: dict[str, str] = {}
    for name in bases:
        values, lines = _read(find_config(name, beside=path.parent), (*seen, path.resolve()))
        merged = _merge(merged, values, path)
        merged_origins |= lines
    return _merge(merged, own, path), merged_origins | origins


def _merge(low: dict[str, Any], high: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return _over(low, high)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError("VA-C002", f"does not fit its base: {str(error).splitlines()[0]}", where=str(path)) from error


def _over(low: dict[str, Any], high: Any) -> dict[str, Any]:
    """`low` with the values of `high`; arguments of a model or a head go with its name, and another name leaves them out."""
    low, high = copy.deepcopy(low), OmegaConf.to_container(OmegaConf.create(high), resolve=False)
    for path in (("model",), ("model", "head")):
        below, above = _section_at(low, path), _section_at(high, path)
        if "name" in below and "name" in above and below["name"] != above["name"]:
            below.pop("args", None)
    return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.merge(low, high), resolve=False))


def _section_at(values: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping at a path; an empty one if there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _substitute_env(value: Any, key: str, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {name: _substitute_env(item, f"{key}.{name}" if key else str(name), problems) for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute_env(item, key, problems) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if key not in PATH_KEYS or "${" in _ENV.sub("", value):
        problems.append(Problem("VA-C002", key, f'"{value}": only ${{env:NAME}} is replaced, and only in {", ".join(PATH_KEYS)}'))
        return value
    for name in _ENV.findall(value):
        if name not in os.environ:
            problems.append(Problem("VA-C002", key, f"the environment variable {name} is not set"))
    return _ENV.sub(lambda match: os.environ.get(match[1], ""), value)


def _difference(value: Any, default: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {key: _difference(item, default.get(key)) for key, item in value.items() if item != default.get(key)}
