"""Terminal output of a job: labelled lines, tables, and a progress bar with speed and time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.console import JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from visionattn.names import shown, shown_lines


class Console:
    """Prints to the terminal and keeps a copy in the run's log.

    Text is never taken for markup, emoji codes or escape sequences; letters that the terminal lacks are escaped.

    Args:
        stderr: print to standard error, because standard output carries JSON.
        quiet: print nothing (all processes but the first).
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        self.rich = RichConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)
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
        text = shown_lines(text)
        if self._log is None:
            self._early.append(text)
        else:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        self.rich.print(self._encodable(shown_lines(text)), style=style)
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
        table = Table(title=self._encodable(shown(title)) or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        cells = [[_cell(value) for value in row] for row in rows]
        for index, column in enumerate(map(shown, columns)):
            numeric = all(_numeric(row[index]) for row in rows)
            short = max(len(column), *(len(row[index]) for row in cells), 0) <= self.rich.width // 2
            justify: JustifyMethod = "right" if numeric and rows else "left"
            # A name is kept on one line where that cuts nothing off.
            table.add_column(self._encodable(column), justify=justify, no_wrap=index == 0 and short, overflow="fold")
        for row in cells:
            table.add_row(*map(self._encodable, row))
        self.rich.print(table)
        self.log("\n".join("  ".join(row) for row in ([shown(column) for column in columns], *cells)))

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar on a terminal; elsewhere a plain line every minute."""
        if not self.rich.is_terminal:
            yield Bar(label, total, done, self, None)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with Progress(*columns, console=self.rich, transient=True, refresh_per_second=4) as progress:
            bar = Bar(label, total, done, self, progress)
            yield bar

    def _encodable(self, text: str) -> str:
        return text.encode(self.rich.encoding, "backslashreplace").decode(self.rich.encoding)


class Bar:
    """Progress of one job; call `update` with the number of units done and a text to show beside it."""

    def __init__(self, label: str, total: int, done: int, console: Console, progress: Progress | None) -> None:
        self.label, self.total, self.console, self._progress = shown(label), total, console, progress
        self._task = progress.add_task(self.label, total=total, completed=done, text="") if progress else None
        self._printed = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, text=shown(text))
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
    return "n/a" if value is None else shown(str(value))
