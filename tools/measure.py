"""Shared code of the benchmarks: ratios, table, CSV file, exit code."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from visionattn.engine.devices import fast_bf16
from visionattn.models.speed import clock_name

Row = dict[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def add_common(parser: argparse.ArgumentParser, name: str, rounds: int) -> None:
    """Add --rounds, --quick and --csv."""
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds; each measures every side once (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smoke run: a few small rounds; writes a CSV file only with --csv")
    parser.add_argument("--csv", type=Path, default=None, metavar="PATH", help=f"result file (default docs/benchmarks/{name}.csv)")


def csv_path(args: argparse.Namespace, name: str) -> Path | None:
    """Path of the results; those of a smoke run never replace measured ones."""
    if args.csv is not None:
        return Path(args.csv)
    return None if args.quick else RESULTS / f"{name}.csv"


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Compute ratios within each round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def summary(name: str, values: Sequence[float]) -> Row:
    """Summarise values in the columns `name` (median), `name_min` and `name_max`."""
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def clock(device: torch.device) -> Row:
    """Describe how time is measured, and whether bf16 runs in hardware."""
    return {"clock": clock_name(device), "bf16": "hardware" if fast_bf16(cpu=device.type == "cpu") else "emulated"}


def device_of(name: str) -> torch.device:
    """Return the requested device; exit with one line if it is unavailable."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: this benchmark needs a GPU")
    return torch.device(name)


def finish(title: str, rows: Sequence[Row], facts: Row, path: Path | None, missed: Sequence[str], key: Sequence[str] = ()) -> int:
    """Print the table, write the file, report missed goals; return the exit code.

    With `key`, rows of an earlier file are kept if no new row has the same values in these columns.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180
    console.print("  ".join(f"{key} {value}" for key, value in facts.items()), markup=False, soft_wrap=True)
    columns = [name for name in rows[0] if not name.endswith(("_min", "_max"))]
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if isinstance(rows[0][name], float) else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(_cell(row, name) for name in columns))
    console.print(table)
    if path is not None:
        new = {tuple(str(row[name]) for name in key) for row in rows}
        kept = [row for row in read(path) if tuple(row[name] for name in key) not in new] if key and path.is_file() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *facts], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            for row in rows:
                writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in {**row, **facts}.items()})
        console.print(f"CSV: {path}", markup=False)
    for line in missed:
        console.print(f"goal missed: {line}", markup=False)
    if not missed:
        console.print("all goals met")
    return 1 if missed else 0


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a result file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cell(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    if f"{name}_min" not in row:
        return f"{value:.3f}"
    return f"{value:.3f} ({row[f'{name}_min']:.3f}-{row[f'{name}_max']:.3f})"
