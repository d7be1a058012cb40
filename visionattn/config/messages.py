"""Messages for mistakes in a config: the dotted key, the problem, and the key that was probably meant."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

import yaml
from pydantic import BaseModel

from visionattn.config.schema import RunConfig
from visionattn.errors import UserError, did_you_mean
from visionattn.names import shown

_BARE_PLACEHOLDER = re.compile(r"\s*([\w.]+):\s+(\{\w+\}\S+)\s*(?:#.*)?$")  # `images: {split}/images`, a mapping to YAML
_LONGEST = 300  # characters of a wrong setting that are shown


class Origin(NamedTuple):
    """Where a key was set, and the YAML of its value."""

    where: str
    node: Any = None

    def text(self) -> str:
        """The value as it was written."""
        if isinstance(self.node, yaml.ScalarNode):
            return str(self.node.value)
        start, end = self.node.start_mark, self.node.end_mark
        return str(start.buffer[start.pointer : end.pointer])


class Problem(NamedTuple):
    """One mistake: error code, dotted key and message."""

    code: str
    key: str
    message: str

    @classmethod
    def of_value(cls, key: str, expected: str, got: Any) -> Problem:
        """A value of the wrong type or out of bounds."""
        return cls("VA-C002", key, f"expected {expected}, got {shortened(json.dumps(got, ensure_ascii=False, default=str))}")


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def invalid_config(problems: Sequence[Problem], origins: Mapping[str, Origin], show: str) -> UserError:
    """All problems in one error, each with the place where the key was set."""
    lines = [" ".join(filter(None, (_origin(key, origins), f"{key}: {message}" if key else message))) for _, key, message in problems]
    return UserError(
        problems[0].code, "\n  ".join(dict.fromkeys(map(shown, lines))), fix=f"Keys and their meaning: visionattn config show{show}"
    )


def describe_error(details: Any, task: str, schemas: Mapping[str, type[RunConfig]]) -> Problem:
    """Turn an error of pydantic into a problem of the config of `task`."""
    schema = schemas[task]
    path = [part for part in details["loc"] if isinstance(part, str)]
    section, keys = _walk(path, schema)
    dotted, known = ".".join(keys), all_keys(schema)
    if details["type"] == "extra_forbidden":
        return Problem("VA-C001", dotted, f"unknown key{_instead(keys, section, known, task, schemas)}")
    if details["type"] == "invalid_key":
        return Problem("VA-C001", dotted, f"{details['input']!r}: unknown key, keys are text")
    if details["type"] == "value_error":
        key, _, message = str(details["ctx"]["error"]).partition(": ")
        return Problem("VA-C002", key, message) if key in known else Problem("VA-C002", dotted, str(details["ctx"]["error"]))
    field = section.model_fields.get(keys[-1]) if keys else None
    return Problem.of_value(dotted, _expected(field) if field is not None else details["msg"], details["input"])


def syntax_error(path: Path, text: str, error: Exception) -> UserError:
    """VA-C003 with the line and a caret."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return UserError("VA-C003", f"not valid YAML: {problem}", where=str(path))
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    what = f"not valid YAML: {problem}\n  {line}\n  {' ' * mark.column}^"
    bare = _BARE_PLACEHOLDER.match(line)
    fix = f'put the value in quotes: {bare[1]}: "{bare[2]}"' if bare else ""
    return UserError("VA-C003", what, where=f"{path}:{mark.line + 1}, column {mark.column + 1}", fix=fix)


def key_origins(node: Any, prefix: str, where: str) -> dict[str, Origin]:
    """The origins of the dotted keys of a YAML node.

    Args:
        where: `{line}` in it becomes the line of the key.
    """
    found = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            found[dotted] = Origin(where.replace("{line}", str(key.start_mark.line + 1)), value)
            found |= key_origins(value, f"{dotted}.", where)
    return found


def count_unknown(values: Mapping[str, Any], section: type[BaseModel]) -> int:
    """The number of keys that a section does not have, also in the sections inside it."""
    count = 0
    for key, value in values.items():
        field = section.model_fields.get(key)
        inner = None if field is None else section_of(field.annotation)
        if field is None:
            count += 1
        elif inner is not None and isinstance(value, Mapping):
            count += count_unknown(value, inner)
    return count


def _origin(key: str, origins: Mapping[str, Origin]) -> str:
    inside = next((origin.where for known, origin in origins.items() if known.startswith(f"{key}.")), "")
    while key:
        if key in origins:
            return origins[key].where
        key = key.rpartition(".")[0]
    return inside


def _instead(keys: list[str], section: type[BaseModel], known: list[str], task: str, schemas: Mapping[str, type[RunConfig]]) -> str:
    """The hint after `unknown key`: the task that has the key, or the closest key of this one."""
    dotted, unknown = ".".join(keys), keys[-1]
    owner = next((name for name, other in schemas.items() if dotted in all_keys(other)), None)
    if owner is not None:
        return f": it belongs to task {owner}, and this is task {task}"
    near = did_you_mean(unknown, section.model_fields, 1)
    if near and len(keys) > 1:
        near = near.replace("Did you mean ", f"Did you mean {'.'.join(keys[:-1])}.")
    elif not near:
        leaf = [key for key in known if key.rpartition(".")[2] == unknown]
        near = f"Did you mean {leaf[0]}?" if leaf else did_you_mean(dotted, known, 1)
    return f". {near}".rstrip()


def _walk(path: list[str], schema: type[RunConfig]) -> tuple[type[BaseModel], list[str]]:
    """The section a pydantic location ends in, and the location without pydantic's own union tags."""
    section: type[BaseModel] = schema
    keys: list[str] = []
    for index, part in enumerate(path):
        keys.append(part)
        field = section.model_fields.get(part)
        if field is None:
            break
        inner = section_of(field.annotation)
        if inner is None:
            break
        if index + 1 < len(path):
            section = inner
            if path[index + 1] == inner.__name__:  # a tag of Optional[Section]
                del path[index + 1]
    return section, keys


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section among the types of an annotation."""
    if arguments := typing.get_args(annotation):  # asked first: to Python 3.10 list[int] is a class
        return next((inner for inner in map(section_of, arguments) if inner), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of a section and of the sections in it."""
    keys = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        keys.append(prefix + name)
        if inner is not None:
            keys += all_keys(inner, f"{prefix}{name}.")
    return keys


def _expected(field: Any) -> str:
    """Describe the type of a field with its bounds: `integer >= 1`."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null", dict: "a mapping"}

    def words(annotation: Any) -> str:
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            return f"{words(args[0])} {bounds(args[1].metadata)}"
        if origin is Literal:
            return "one of " + ", ".join(str(value) for value in args) if len(args) > 1 else str(args[0])
        if origin in (Union, types.UnionType):
            return " or ".join(words(arg) for arg in args)
        if origin in (list, tuple):
            inner = [words(arg) for arg in args if arg is not Ellipsis]
            return f"[{', '.join(inner)}]" if origin is tuple else f"a list of {inner[0]}".replace("of a mapping", "of mappings")
        if section_of(annotation) is not None:
            return "a mapping"
        return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))

    def bounds(marks: Any) -> str:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        found = [(sign, getattr(mark, name, None)) for mark in marks for name, sign in signs.items()]
        return " and ".join(f"{sign} {bound}" for sign, bound in found if bound is not None)

    text, null = words(field.annotation), ""
    if text.endswith(" or null"):
        text, null = text.removesuffix(" or null"), "or null"
    return " ".join(filter(None, [text, bounds(field.metadata), null]))
