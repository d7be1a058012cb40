"""Shared by all commands: option types, consoles, `key=value` texts."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from visionattn.console import Console
from visionattn.files import json_text

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, other text on standard error.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any config key, for example optim.lr=1e-4.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that differ from the run, for example eval.flips=both.", show_default=False),
]


def console_for(as_json: bool = False) -> Console:
    """A console on standard output, or on standard error if standard output carries JSON."""
    return Console(stderr=as_json)


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json_text(value))


def key_value(key: str, value: Any) -> str:
    """`key=value` in which text stays text: a folder may be called 2024."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def with_task(root: str, settings: list[str]) -> list[str]:
    """The settings with the task that the data are laid out for, unless they name one; the default one may follow from their keys."""
    from visionattn.tasks import TASKS, guess_task

    named = any(setting.partition("=")[0].strip() == "task" for setting in settings)
    if named or (guess := guess_task(root)) == next(iter(TASKS)):
        return settings
    return [f"task={guess}", *settings]
