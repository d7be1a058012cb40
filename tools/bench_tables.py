"""Writes the tables of docs/kernels.md, docs/kernels/*.md and docs/speed.md from the result files in docs/benchmarks/.

Between `<!-- table NAME -->` and `<!-- end of table -->`. With --check nothing is written; the exit code is 1 if a file
is not what it would become.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from measure import RESULTS, read

DOCS = RESULTS.parent
REGION = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
FACTS = ("device", "torch", "timm", "date", "threads", "clock", "bf16", "batch")
PLAIN = {"FlexAttention, compiled": "FlexAttention"}

Record = Mapping[str, str]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def digits(text: str) -> str:
    """Three digits."""
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def ratio(row: Record) -> str:
    spread = f" ({digits(row['theirs/ours_min'])}-{digits(row['theirs/ours_max'])})"
    return digits(row["theirs/ours"]) + (spread if row["unit"] == "ms" else "")


def facts(rows: Sequence[Record]) -> str:
    """What was measured on what; a line per run."""
    runs = dict.fromkeys(", ".join(f"{name} {row[name]}" for name in FACTS) for row in rows)
    return "\n" + "\n".join(f"Measured with {run}.  " for run in runs) + "\n"


def goals(device: str) -> str:
    """The rows with a goal, of operations and then of models."""
    rows = load(f"kernels_{device}")
    lines = []
    for row in rows:
        if row["goal"]:
            met = float(row["theirs/ours"]) >= float(row["goal"])
            floor = f"{float(row['theirs']) / float(row['floor']):.0f}" if row["floor"] else ""
            exponent = row["case"].startswith("exponent")  # of these not the ratio is of interest
            against, goal = ("", row["opponent"]) if exponent else (row["opponent"], f"{float(row['goal']):.3g}")
            measured = digits(row["ours"]) if exponent else ratio(row)
            start = [row["op"], row["case"], f"{row['precision']} {row['mode']}", against, goal]
            lines.append([*start, measured if met else f"**{measured}**", floor, "yes" if met else "**no**"])
    if not lines:
        return "Not measured yet.\n"
    return table(["operation", "case", "", "against", "goal", "measured", "at the floor", "met"], lines) + facts(rows)


def models(device: str) -> str:
    rows = load(f"models_{device}")
    lines = []
    for row in rows:
        sides = [f"{digits(row[name])} ({digits(row[f'{name}_min'])}-{digits(row[f'{name}_max'])})" for name in ("ours_ms", "theirs_ms")]
        met = float(row["theirs/ours"]) >= float(row["goal"])
        times = f"{float(row['theirs/ours']):.2f} ({float(row['theirs/ours_min']):.2f}-{float(row['theirs/ours_max']):.2f})"
        start = [row["model"], row["opponent"], f"{row['precision']} {row['mode']}", *sides, row["goal"]]
        lines.append([*start, times if met else f"**{times}**", "yes" if met else "**no**"])
    if not lines:
        return "Not measured yet.\n"
    return table(["model", "against", "", "ours, ms", "theirs, ms", "goal", "theirs / ours", "met"], lines) + facts(rows)


def operation(name: str) -> str:
    """Per case our time and, of each opponent, how many times as long it takes."""
    rows = [row for row in load("kernels_cpu") if row["op"] == name]
    if not rows:
        return "Not measured yet.\n"
    # The best candidates carry their name: they share a column.
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


def load(name: str) -> list[dict[str, str]]:
    path = RESULTS / f"{name}.csv"
    return read(path) if path.is_file() else []


def render(name: str) -> str:
    """The table of this name: goals-DEVICE, models-DEVICE, or an operation's."""
    kinds: dict[str, Callable[[str], str]] = {"goals": goals, "models": models}
    kind, _, device = name.partition("-")
    return kinds[kind](device) if kind in kinds else operation(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is old")
    args = parser.parse_args()
    code = 0
    for path in [DOCS / "kernels.md", DOCS / "speed.md", *sorted((DOCS / "kernels").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = REGION.sub(lambda found: found[1] + render(found["name"]) + found[3], old)
        if new != old and args.check:
            print(f"{path}: tables are old; run python tools/bench_tables.py")
            code = 1
        elif new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
