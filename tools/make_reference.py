"""Write docs/reference: every key of a config, from the schema of each task, and every command, from the command line itself.

With --check nothing is written; the exit code is 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from visionattn.cli import app
from visionattn.config import RunConfig
from visionattn.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
NOTE = "<!-- Written by tools/make_reference.py. -->"
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
Key = tuple[str, str, str, str]  # name, type, default, meaning


# ---------------------------------------------------------------- configuration


def kind_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = dict.fromkeys(kind_of(choice, definitions) for choice in schema[several])
            return " or ".join(kinds)
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema)
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return "[" + ", ".join(kind_of(item, definitions) for item in schema["prefixItems"]) + "]"
        case "array":
            return f"list of {kind_of(schema.get('items', {}), definitions)}"
        case "object" if "properties" in schema:
            return "{" + ", ".join(schema["properties"]) + "}"
        case "object":
            return "mapping"
        case None:
            return "any"
        case name:
            return " ".join(
                filter(
                    None, [{"integer": "integer", "number": "number", "string": "text", "boolean": "true, false"}.get(name, name), bounds]
                )
            )


def keys_of(config: type[RunConfig]) -> Iterator[Key]:
    """Every key of a task's config."""
    schema = config.model_json_schema()
    definitions = schema.get("$defs", {})
    defaults = config().model_dump(mode="json")

    def walk(section: dict[str, Any], values: Any, prefix: str) -> Iterator[Key]:
        for name, field in section["properties"].items():
            value, target = (values or {}).get(name), field
            if "$ref" in field:
                target = definitions[field["$ref"].rpartition("/")[2]]
            if target.get("type") == "object" and "properties" in target and isinstance(value, dict):
                yield from walk(target, value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", kind_of(field, definitions), shown(value), field.get("description", "")

    yield from walk(schema, defaults, "")


def shown(value: Any) -> str:
    """A default as it is written in YAML."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case "":
            return '""'
        case dict() if value:
            return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(shown, value)) + "]"
        case _:
            return str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(keys: list[Key]) -> str:
    rows = [f"| `{name}` | {cell(kind)} | `{cell(default)}` | {cell(meaning)} |" for name, kind, default, meaning in keys]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def sections(keys: list[Key]) -> Iterator[str]:
    """A heading and a table per section."""
    for name in dict.fromkeys(key[0].partition(".")[0] if "." in key[0] else "" for key in keys):
        yield f"### {name or 'The run'}"
        yield table([key for key in keys if (key[0].partition(".")[0] if "." in key[0] else "") == name])


def configuration() -> str:
    """The page of all keys: what all tasks share first, then what each has of its own or has otherwise."""
    of_tasks = {name: list(keys_of(task.config)) for name, task in TASKS.items()}
    first, *others = of_tasks.values()
    common = [key for key in first if all(key in keys for keys in others)]
    parts = [
        "# Configuration",
        NOTE,
        "Every key of a config. A file holds only what differs from the defaults, `base:` names files it builds on, and `key=value` "
        "on the command line comes last. `visionattn config show` prints the same for a config of yours, `visionattn config schema` "
        "a JSON schema for editors. `null` is no value; `auto` is chosen when the run starts and printed with its reason.",
        "## All tasks",
        *sections(common),
    ]
    for name, keys in of_tasks.items():
        parts += [
            f"## task: {name}",
            *(text.replace("### ", f"### {name}: ", 1) for text in sections([key for key in keys if key not in common])),
        ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- commands


def commands_of(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it; typer's click may be a copy of its own, so no class of it is asked "
    "for."""
    if hasattr(command, "commands"):
        for name in command.commands:
            yield from commands_of(command.commands[name], f"{path} {name}")
    else:
        yield path, command


def described(path: str, command: Any) -> str:
    """Usage, meaning, arguments and options of a command."""
    context = command.context_class(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, meaning = (cell(" ".join(text.split())) for text in record)
        rows.append(f"| `{name.removesuffix(' <list[str]>')}` | {meaning} |")
    lines = [f"### {path.removeprefix('visionattn ')}", f"```text\n{usage}\n```", (command.help or "").strip()]
    if rows:
        lines.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    if command.epilog:
        lines.append(f"```\n{command.epilog.partition(': ')[2].strip()}\n```")
    return "\n\n".join(lines)


def commands() -> str:
    """The page of all commands."""
    root = typer.main.get_command(app)
    parts = [
        "# Commands",
        NOTE,
        "`visionattn COMMAND --help` prints the same. Every key of a config can be given as `key=value` after the options; what a "
        "key means: [configuration](configuration.md). `--json` prints one object on standard output. Exit codes: "
        "[training](../training.md#exit-codes).",
    ]
    groups: dict[str, list[str]] = {}
    for path, command in commands_of(root, "visionattn"):
        group = path.split()[1] if len(path.split()) > 2 else ""
        groups.setdefault(group, []).append(described(path, command))
    for group, texts in groups.items():
        parts += [f"## {group}" if group else "## Train and use", *texts]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, report files that are out of date")
    args = parser.parse_args()
    wanted = {PAGES / "configuration.md": configuration(), PAGES / "commands.md": commands()}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if args.check else 'written'}: {path.relative_to(ROOT)}")
        if not args.check:
            PAGES.mkdir(exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
