"""Read a config: YAML files and what they build on, `key=value` settings, one validation.

`base:` in a file names the files it builds on (shipped names or paths); `key=value` from the command line comes last. The
result is validated once and never changed. The schemas are handed in by the caller: this module imports no task.
"""

from __future__ import annotations

import copy
import json
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

from visionattn.config.messages import Origin, Problem, describe_error, invalid_config, key_origins, section_of, shortened, syntax_error
from visionattn.config.schema import RunConfig, Section
from visionattn.errors import UserError, did_you_mean
from visionattn.names import from_path

SHIPPED = files("visionattn") / "configs"

# Keys that hold paths: the only ones in which ${env:NAME} is replaced.
PATH_KEYS = ("data.root", "output.dir", "model.weights", "data.classes")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")

# A shell's `{split}/images`, which YAML would take for a mapping and something after it.
_PLACEHOLDER = re.compile(r"\{\w+\}.")

# What a config may be at most, so that reading one takes bounded time and memory.
_MOST_BYTES = 2**20
_MOST_NODES = 100_000  # with every alias written out
_MOST_LEVELS = 20

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
        if os.path.isfile(path):  # false, too, for a name that no file can have
            return path
    leaves = {known.rpartition("/")[2]: known for known in shipped_names()}
    near = [leaves[leaf] for leaf in get_close_matches(name.removesuffix(".yaml").rpartition("/")[2], leaves, 3, 0.55)]
    hint = f"Did you mean {', '.join(near)}?" if near else did_you_mean(name, leaves.values())
    raise UserError(
        "VA-C004", f'config "{name}" is neither a file nor a shipped config', fix=f"{hint} List them: visionattn config list".strip()
    )


def read_values(source: str | Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Merge a config with the files it builds on and `key=value` settings, not yet validated.

    Args:
        source: path or shipped name; None for an empty config.
        overrides: `key=value` strings with dotted keys; they come last.

    Returns:
        The values, and for each dotted key where it was set (`file:line`) and how it was written.

    Raises:
        UserError: VA-C001 to VA-C004.
    """
    values, origins = ({}, {}) if source is None else _read(find_config(str(source)), ())
    return override_values(values, origins, overrides), origins


def override_values(values: dict[str, Any], origins: dict[str, Origin], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` strings to plain values; `origins` learns where the keys were set.

    Raises:
        UserError: VA-C001, not of the form key=value; VA-C002, settings that are not UTF-8 or do not fit together.
    """
    where, settings = "command line", []
    try:
        for given in map(from_path, overrides):
            key, sign, value = given.partition("=")
            if not sign or not key.strip():
                raise UserError("VA-C001", f'"{given}" is not of the form key=value', where=where, fix="Example: train.epochs=5")
            if any("\ud800" <= letter <= "\udfff" for letter in given):
                raise UserError("VA-C002", f"not UTF-8: {given}", where=where, fix="rename the file or folder: a config is UTF-8 text")
            if len(re.findall(r"[.\[]", key)) > _MOST_LEVELS:
                raise yaml.YAMLError("a key of too many levels")
            if _PLACEHOLDER.match(value):
                value = json.dumps(value, ensure_ascii=False)
            node = _compose(value)
            origins |= {key.strip(): Origin(where, node), **key_origins(node, f"{key.strip()}.", where)}
            settings.append(f"{key}={value}")
        return _over(values, OmegaConf.from_dotlist(settings))
    except UserError:
        raise
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, LookupError) as error:
        # OmegaConf raises any of these, for a list where a mapping is and for the reverse.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError("VA-C002", f"the settings do not fit together: {why}", where=shortened(", ".join(overrides))) from error


def require_sections(overrides: Sequence[str], sections: Collection[str], fixed: Collection[str] = ()) -> None:
    """Stop at a `key=value` outside of these sections or keys, or at one that is fixed within them.

    Raises:
        UserError: VA-C002.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        free = any(key == section or key.startswith(f"{section}.") for section in sections)
        if "=" in text and (not free or key in fixed):
            raise UserError(
                "VA-C002", f"{key}: fixed by the trained model", where="command line", fix=f"What can change: {', '.join(sections)}"
            )


def validate(values: dict[str, Any], origins: Mapping[str, Origin], schemas: Schemas) -> RunConfig:
    """Validate plain values by the schema of their task.

    Where it expects text, values are taken as they were written: `yes`, `007` and `2023` are names there.

    Raises:
        UserError: VA-C001, VA-C002; all unknown keys and wrong values are reported together.
    """
    problems: list[Problem] = []
    default = next(iter(schemas))
    task = values.get("task", default)
    if not isinstance(task, str) or task not in schemas:
        problems.append(Problem.of_value("task", f"one of {', '.join(schemas)}", task))
        values, task = {key: value for key, value in values.items() if key != "task"}, default
    values = _substitute_env(_as_written(values, schemas[task], "", origins), "", problems)
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


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Origin]]:
    if path.resolve() in seen:
        raise UserError("VA-C003", f"{path} names itself under base:", where=" -> ".join(str(p) for p in seen))
    if path.stat().st_size > _MOST_BYTES:
        raise UserError("VA-C003", f"a config of more than {_MOST_BYTES:,} bytes", where=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("VA-C003", f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from error
    try:
        node = _compose(text)
        empty = node is None or node.tag == "tag:yaml.org,2002:null"
        own: Any = {} if empty else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise syntax_error(path, text, error) from error
    if not isinstance(own, dict) or (isinstance(node, yaml.ScalarNode) and not empty):
        raise UserError("VA-C003", "a config is a mapping of keys to values", where=f"{path}:1")
    origins = key_origins(node, "", f"{path.name}:{{line}}")
    bases = own.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError("VA-C002", "base: expected a config name or a list of names", where=origins["base"].where)
    merged: dict[str, Any] = {}
    merged_origins: dict[str, Origin] = {}
    for name in bases:
        values, lines = _read(find_config(name, beside=path.parent), (*seen, path.resolve()))
        merged = _merge(merged, values, path)
        merged_origins |= lines
    return _merge(merged, own, path), merged_origins | origins


def _compose(text: str) -> Any:
    """Parse YAML into nodes.

    Raises:
        YAMLError: not valid, or more than a config may be.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        node = None
        levels = _MOST_LEVELS + 1
    else:
        levels = 0 if node is None else _measure(node, 0, {})[1]
    if levels > _MOST_LEVELS:
        raise yaml.YAMLError(f"more than {_MOST_LEVELS} levels")
    return node


def _measure(node: Any, above: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Nodes and levels below a node, with every alias written out."""
    if id(node) not in known:
        if above > _MOST_LEVELS:  # also an alias inside of what it stands for
            return 1, 1
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
        sizes = [_measure(part, above + 1, known) for part in inner]
        known[id(node)] = 1 + sum(count for count, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
        if known[id(node)][0] > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES:,} values, with aliases written out")
    return known[id(node)]


def _as_written(values: Mapping[str, Any], section: type[BaseModel], prefix: str, origins: Mapping[str, Origin]) -> dict[str, Any]:
    """The values with text, as it was written, where the schema has text or a list of texts."""
    result = dict(values)
    for name, field in section.model_fields.items():
        key, value = f"{prefix}{name}", result.get(name)
        inner, origin = section_of(field.annotation), origins.get(key)
        if inner is not None and isinstance(value, dict):
            result[name] = _as_written(value, inner, f"{key}.", origins)
        elif origin is None:
            continue
        elif origin.node is None:
            if field.annotation is str and value is None:  # `key=` and `key=""`, of which a shell leaves the same
                result[name] = ""
        elif field.annotation is str and (isinstance(value, (bool, int, float)) or _is_placeholder(value)):
            result[name] = origin.text()
        elif list[str] in (field.annotation, *typing.get_args(field.annotation)) and isinstance(value, list):
            nodes = origin.node.value if isinstance(origin.node, yaml.SequenceNode) else []
            if len(nodes) == len(value):
                result[name] = [_text_of(item, node) for item, node in zip(value, nodes, strict=True)]
    return result


def _text_of(item: Any, node: Any) -> Any:
    return str(node.value) if not isinstance(item, str) and isinstance(node, yaml.ScalarNode) and node.value else item


def _is_placeholder(value: Any) -> bool:
    """Whether a value is what YAML makes of `{split}`."""
    return isinstance(value, dict) and len(value) == 1 and list(value.values()) == [None]


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
