"""Write the tables of docs/kernels.md, docs/kernels/*.md and docs/speed.md from the result files in docs/benchmarks/.

Tables are written between `<!-- table NAME -->` and `<!-- end of table -->`. With --check nothing is written; the exit code is 1 if a
file is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from measure import RESULTS, read

DOCS = RESULTS.parent
REGION = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
FACTS = ("torch", "timm", "threads", "clock", "bf16", "batch")
PLAIN = {"FlexAttention, compiled": "FlexAttention"}

Record = Mapping[str, str]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def digits(text: str) -> str:
    """Format a number with three significant digits."""
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def ratio(row: Record) -> str:
    spread = f" ({digits(row['theirs/ours_min'])}-{digits(row['theirs/ours_max'])})"
    return digits(row["theirs/ours"]) + (spread if row["unit"] == "ms" else "")


def facts(rows: Sequence[Record]) -> str:
    """Describe the machine and the settings, one line per kind of run."""
    runs = dict.fromkeys(", ".join([row["device"], *(f"{name} {row[name]}" for name in FACTS)]) for row in rows)
    return "\n" + "\n".join(f"Measured on {run}.  " for run in runs) + "\n"


def operations(device: str) -> str:
    """Summarise the operations: the rows that have a threshold in the result file, against other implementations."""
    rows = [row for row in load(f"kernels_{device}") if row["goal"]]
    lines = []
    for row in rows:
        if not row["case"].startswith("exponent") and not row["opponent"].startswith("best candidate"):
            floor = f"{float(row['theirs']) / float(row['floor']):.0f}" if row["floor"] else ""
            lines.append([row["op"], row["case"], f"{row['precision']} {row['mode']}", row["opponent"], ratio(row), floor])
    if not lines:
        return "Not measured yet.\n"
    return table(["operation", "case", "", "against", "theirs / ours", "at the floor"], lines) + facts(rows)


def models(device: str) -> str:
    """Compare whole models: both times and their ratio."""
    rows = load(f"models_{device}")
    lines = []
    for row in rows:
        sides = [f"{digits(row[name])} ({digits(row[f'{name}_min'])}-{digits(row[f'{name}_max'])})" for name in ("ours_ms", "theirs_ms")]
        times = f"{float(row['theirs/ours']):.2f} ({float(row['theirs/ours_min']):.2f}-{float(row['theirs/ours_max']):.2f})"
        lines.append([row["model"], row["opponent"], f"{row['precision']} {row['mode']}", *sides, times])
    if not lines:
        return "Not measured yet.\n"
    return table(["model", "against", "", "ours, ms", "theirs, ms", "theirs / ours"], lines) + facts(rows)


def operation(name: str) -> str:
    """Compare one operation with its opponents: our time per case, and each opponent's time as a multiple of it."""
    rows = [row for row in load("kernels_cpu") if row["op"] == name]
    if not rows:
        return "Not measured yet.\n"
    # The best candidates share a column, whatever their names.
    opponents = dict.fromkeys(row["opponent"].partition(":")[0] for row in rows if not row["case"].startswith("exponent"))
    cases: dict[tuple[str, str, str], dict[str, Record]] = {}
    exponents = []
    for row in rows:
        if row["case"].startswith("exponent"):
            exponents.append(f"{row['case']}, {row['mode']}: {float(row['ours']):.2f}.")
        else:
            cases.setdefault((row["case"], row["precision"], row["mode"]), {})[row["opponent"].partition(":")[0]] = row
    lines = []
    for (case, precision, mode), found in cases.items():
        first = next(iter(found.values()))
        floor = f"{digits(first['floor'])} ms" if first["floor"] else ""
        ratios = [ratio(found[opponent]) if opponent in found else "" for opponent in opponents]
        lines.append([case, f"{precision} {mode}", f"{digits(first['ours'])} {first['unit']}", floor, *ratios])
    head = ["case", "", "ours", "floor", *(PLAIN.get(opponent, opponent) for opponent in opponents)]
    return table(head, lines) + "".join(f"\n{line}  " for line in exponents) + ("\n" if exponents else "") + facts(rows)


def compilation(_: str) -> str:
    """Compare what compilation of the families costs: dynamo's graph and time, and the time of the backend behind it."""
    rows = load("compile")
    if not rows:
        return "Not measured yet.\n"
    lines = []
    for row in sorted(rows, key=lambda row: float(row["dynamo_s"]), reverse=True):
        behind = "" if row["backend"] == "eager" else f"{digits(row['backend_s'])} ({row['backend']})"
        lines.append([row["model"], row["mode"], row["nodes"], row["operations"], digits(row["dynamo_s"]), behind])
    runs = dict.fromkeys(f"{row['device']}, torch {row['torch']}, timm {row['timm']}, threads {row['threads']}" for row in rows)
    measured = "".join(f"Measured on {run}, CPU time.  \n" for run in runs)
    return f"{table(['model', '', 'nodes', 'operations', 'dynamo, s', 'behind it, s'], lines)}\n{measured}"


def load(name: str) -> list[dict[str, str]]:
    path = RESULTS / f"{name}.csv"
    return read(path) if path.is_file() else []


def render(name: str) -> str:
    """Render a table by name: operations-DEVICE, models-DEVICE, compilation, or the name of an operation."""
    kinds: dict[str, Callable[[str], str]] = {"operations": operations, "models": models, "compilation": compilation}
    kind, _, device = name.partition("-")
    return kinds[kind](device) if kind in kinds else operation(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    args = parser.parse_args()
    code = 0
    for path in [DOCS / "kernels.md", DOCS / "speed.md", *sorted((DOCS / "kernels").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = REGION.sub(lambda found: found[1] + render(found["name"]) + found[3], old)
        if new != old and args.check:
            print(f"{path}: tables are out of date; run python tools/bench_tables.py")
            code = 1
        elif new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
