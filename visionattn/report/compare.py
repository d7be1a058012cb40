"""Runs side by side: their results, what was set differently, and their curves, for the terminal and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from visionattn.files import atomic_write, counted
from visionattn.report.charts import Line, line_chart
from visionattn.report.page import template
from visionattn.report.summary import RunSummary, flat, number

_LEFT_OUT = ("output.", "log.")  # settings that change nothing of a model
_LONG = 60  # letters of a setting
_ABSENT = "-"


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: in the order in which they were given.
    """

    runs: Sequence[RunSummary]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("expected at least one run")

    @property
    def metrics(self) -> list[str]:
        """Metrics that any run has: those that select checkpoints first, the loss last."""
        names: dict[str, None] = {}
        for run in self.runs:
            shown = [name for name in (run.monitor, *run.display.metrics, *run.metrics) if name not in run.display.hidden_metrics]
            names |= dict.fromkeys(name for name in shown if name in run.metrics and name != "loss")
        return [*names, *(["loss"] if any("loss" in run.metrics for run in self.runs) else [])]

    @property
    def settings(self) -> dict[str, list[str]]:
        """Settings that differ, by key, with their values in the runs."""
        values = [flat(run.config.model_dump(mode="json")) for run in self.runs]
        keys = [key for key in dict.fromkeys(key for found in values for key in found) if not key.startswith(_LEFT_OUT)]
        rows = {key: [_setting(found[key]) if key in found else _ABSENT for found in values] for key in keys}
        return {key: list(map(_shortened, texts)) for key, texts in rows.items() if len(set(texts)) > 1}

    @property
    def ranked(self) -> list[RunSummary]:
        """Runs that have the metric of the first one, best first."""
        name = self.runs[0].monitor
        scored = [(value, run) for run in self.runs if (value := run.metrics.get(name)) is not None]
        return [run for _, run in sorted(scored, key=lambda item: item[0], reverse=True)]

    def summary(self) -> str:
        """Which run is best, and whether that can be told."""
        name, ranked = self.runs[0].monitor, self.ranked
        if not ranked:
            return "No run has been evaluated yet"
        best, title = ranked[0], ranked[0].display.metric_name(name)
        text = f"Best by {title}: {best.name}, {cell(best, name)}"
        bounds = best.interval(name)
        overlapping = [run for run in ranked[1:] if bounds and (other := run.interval(name)) and other[1] >= bounds[0]]
        if overlapping:
            of = "that of the other" if len(self.runs) == 2 else f"those of {counted(len(overlapping), 'other run')}"
            text += f". Its 95 % interval overlaps {of}, so the difference may be chance"
        return text

    def notes(self) -> list[str]:
        """Why figures may not be comparable."""
        found = []
        kinds: dict[str, set[Any]] = {
            "task": {run.task.name for run in self.runs},
            "data": {str(run.state["data"]) for run in self.runs if run.state.get("data")},
            "number of validation samples": {number(run.evaluation.get("count")) for run in self.runs} - {None},
        }
        for what, values in kinds.items():
            if len(values) > 1:
                found.append(f"the runs differ in their {what}: differences of their metrics do not tell which model is better")
                break
        for run in self.runs:
            if (state := run.state.get("state")) != "done":
                found.append(f"{run.name} did not end ({state or 'unknown'}, after {run.trained})")
            if not run.evaluation and run.epochs:
                found.append(f"{run.name} has no evaluation: its metrics are those of its best epoch, without intervals")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The object that `compare --json` prints."""
        runs = []
        for run in self.runs:
            facts: dict[str, Any] = {"run": str(run.path), "state": run.state.get("state"), "epoch": run.best_epoch, "seconds": run.seconds}
            facts["parameters"] = number(run.state.get("parameters"))
            intervals = {name: run.interval(name) for name in run.metrics}
            runs.append({**facts, "metrics": run.metrics, "interval": {name: bounds for name, bounds in intervals.items() if bounds}})
        return {"runs": runs, "settings": self.settings, "summary": self.summary(), "notes": self.notes()}

    def results(self, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the table of results, a row per run."""
        display = self.runs[0].display
        columns = ["run", *(display.metric_name(name) for name in metrics), "best epoch", "trained", "time", "parameters"]
        rows = []
        for place, run in enumerate(self.runs, 1):
            best = _ABSENT if run.best_epoch is None else f"{run.best_epoch:.4g}"
            rows.append([f"{place} {run.name}", *(cell(run, name) for name in metrics), best, run.trained, run.time, run.parameters])
        return columns, rows


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page."""
    columns, rows = comparison.results(comparison.metrics)
    ranked = comparison.ranked
    page = template("compare.html").render(
        title=counted(len(comparison.runs), "run") + " compared",
        summary=comparison.summary(),
        notes=comparison.notes(),
        columns=columns,
        rows=rows,
        best=[bool(ranked) and run is ranked[0] for run in comparison.runs],
        charts=_charts(comparison),
        settings=comparison.settings,
        runs=[run.name for run in comparison.runs],
        facts={f"{place} {run.name}": _facts(run) for place, run in enumerate(comparison.runs, 1)},
    )
    atomic_write(path, page)


def cell(run: RunSummary, name: str) -> str:
    """A metric of a run, with its 95 % interval where it has one."""
    if name not in run.metrics:
        return _ABSENT
    text = run.display.text(name, run.metrics[name], 3 if name == "loss" else 2)
    bounds = run.interval(name)
    return text if bounds is None else f"{text} ({' - '.join(run.display.text(name, bound, 1) for bound in bounds)})"


def _charts(comparison: Comparison) -> list[Markup]:
    """The metric of each kind of run, and their losses, in one plot each."""
    charts = []
    for name in dict.fromkeys(run.monitor for run in comparison.runs):
        first = next(run for run in comparison.runs if run.monitor == name)
        lines = _lines(comparison, f"val_{name}")
        charts.append(line_chart(first.display.metric_name(name), lines, percent=name not in first.display.plain))
    charts.append(line_chart("Validation loss", _lines(comparison, "val_loss")))
    charts.append(line_chart("Training loss", _lines(comparison, "train_loss")))
    return [chart for chart in charts if chart]


def _lines(comparison: Comparison, key: str) -> list[Line]:
    return [Line(f"{place} {run.name}", run.points(key), place) for place, run in enumerate(comparison.runs, 1)]


def _facts(run: RunSummary) -> dict[str, str]:
    """What is known of a run besides its results."""
    versions = run.state.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    facts = {
        "folder": str(run.path),
        "model": run.config.model.name,
        "data": f"{run.data_name}: {run.split_text()}",
        "state": str(run.state.get("state") or "unknown"),
        "device": str(run.state.get("device") or ""),
        "torch": str(torch or ""),
        "started": str(run.state.get("started") or ""),
    }
    return {name: text for name, text in facts.items() if text}


def _setting(value: Any) -> str:
    return "null" if value is None else '""' if value == "" else f"{value:.10g}" if isinstance(value, float) else str(value)


def _shortened(text: str) -> str:
    """A setting without its middle if it is long: paths differ in their ends."""
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} ... {text[-_LONG // 2 :]}"
