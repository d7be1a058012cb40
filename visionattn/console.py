"""Terminal output of a job: labelled lines, tables, and a progress bar with speed and time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Console:
    """Prints to the terminal and keeps a copy in the run's log.

    Args:
        stderr: print to standard error, because standard output carries JSON.
        quiet: print nothing (all processes but the first).
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        self.rich = RichConsole(stderr=stderr, highlight=False, soft_wrap=True, quiet=quiet)
        self.quiet = quiet
        if not self.rich.is_terminal:
            self.rich.width = 160  # tables in files and pipes are not cut to a terminal
        self._log: Path | None = None
        self._early: list[str] = []  # printed before the run folder existed

    def log_to(self, path: Path) -> None:
        """Copy everything printed so far and from now on to a file."""
        self._log = path
        for text in self._early:
            self.log(text)
        self._early = []

    def log(self, text: str) -> None:
        """Write to the log only."""
        if self._log is None:
            self._early.append(text)
        else:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        self.rich.print(text, style=style, markup=False)
        self.log(text)

    def field(self, label: str, text: str) -> None:
        """`label       text`, the text aligned over several lines."""
        first, *rest = text.split("\n")
        self.line(f"{label:<11} {first}")
        for line in rest:
            self.line(" " * 12 + line)

    def warn(self, text: str) -> None:
        """Print a warning, aligned with the fields."""
        self.line(" " * 12 + "! " + text, style="yellow")

    def table(self, columns: list[str], rows: list[list[Any]], title: str = "") -> None:
        """A table; numbers are aligned to the right."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            numeric = all(_numeric(row[index]) for row in rows)
            table.add_column(column, justify="right" if numeric and rows else "left", no_wrap=index == 0)
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self.rich.print(table)
        self.log("\n".join(["  ".join(columns), *("  ".join(_cell(value) for value in row) for row in rows)]))

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar on a terminal; elsewhere a plain line every minute."""
        if not self.rich.is_terminal:
            yield Bar(label, total, done, self, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.rich, transient=True, refresh_per_second=4) as progress:
            bar = Bar(label, total, done, self, progress)
            yield bar


class Bar:
    """Progress of one job; call `update` with the number of units done and a text to show beside it."""

    def __init__(self, label: str, total: int, done: int, console: Console, progress: Progress | None) -> None:
        self.label, self.total, self.console, self._progress = label, total, console, progress
        self._task = progress.add_task(label, total=total, completed=done, text="") if progress else None
        self._printed = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._printed >= 60:
            self._printed = time.monotonic()
            self.console.line(f"{self.label}  {done}/{self.total}  {text}".rstrip())


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) or value in (None, "n/a") or value.replace(".", "", 1).isdigit()


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals; `n/a` if it is not defined."""
    return "n/a" if value is None else f"{100 * value:.2f}"


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cell(value: Any) -> str:
    return "n/a" if value is None else str(value)
