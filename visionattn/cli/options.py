"""Shared by all commands: option types, consoles, `key=value` texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.files import json_text

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, other text on standard error.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any config key, for example optim.lr=1e-4.", show_default=False)
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|KEY=VALUE",
        help="Run, folder of folds, checkpoint, weights or exported ONNX file; several are averaged. Settings that differ, for example "
        "eval.flips=both.",
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="NUMBER|CLASS=NUMBER,...",
        help="Lowest probability for an answer, for all classes or by class (eval.threshold).",
        show_default=False,
    ),
]
UsedDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps (train.device).", show_default=False)]

# Where the words of the command line are kept in a context of typer.
TYPED = "visionattn.typed"
_THRESHOLD = re.compile(r"\s*(.+?)=\s*(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*(?:,|$)", re.DOTALL)  # a name may hold commas and equals signs
_SETTING = re.compile(r"\s*[A-Za-z_][\w.\[\]]*\s*=")


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


def sources_and_settings(words: list[str], device: str | None, thresholds: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Parts of the arguments of commands that use a model: what has a key and `=` is a setting, unless it exists as a path."""
    settings = [word for word in words if _SETTING.match(word) and not Path(word).exists()]
    sources = [word for word in words if word not in settings]
    settings += [] if device is None else [key_value("train.device", device)]
    return sources, settings + ([key_value("eval.threshold", parse_thresholds(thresholds))] if thresholds else [])


def parse_thresholds(texts: Sequence[str]) -> float | dict[str, float]:
    """One number, or numbers by class.

    Raises:
        UserError: VA-C002, neither.
    """
    with suppress(ValueError):
        if len(texts) == 1:
            return float(texts[0])
    found: dict[str, float] = {}
    for text in texts:
        place = 0
        while place < len(text):
            match = _THRESHOLD.match(text, place)
            if match is None:
                what = f'--threshold: expected a number, or CLASS=NUMBER,CLASS=NUMBER, got "{text}"'
                raise UserError("VA-C002", what, fix="Example: --threshold 0.7, or --threshold cat=0.7,dog=0.4")
            found[match[1]] = float(match[2])
            place = match.end()
    return found
