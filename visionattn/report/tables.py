"""The tables of an evaluation: on the terminal, as JSON, and in the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from visionattn.console import Console
from visionattn.files import atomic_folder, counted, csv_lines, csv_text, json_text
from visionattn.names import file_name, shown
from visionattn.tasks.base import Dataset, Display, Evaluation, Pictures

WORST = 16  # cases shown in the report and kept in `worst/`
MOST_ROWS = 60  # of a table on the terminal


def evaluation_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The object that `eval --json` prints; `metrics.json` holds it too."""
    return {
        "task": evaluation.task,
        "split": evaluation.split,
        "count": evaluation.count,
        "metrics": evaluation.metrics,
        "interval": evaluation.scores.intervals,
        "per_class": evaluation.scores.per_class,
        "unreadable": len(evaluation.unreadable),
    }


def class_columns(evaluation: Evaluation, display: Display) -> list[str]:
    """Columns of the table per class."""
    rows = evaluation.scores.per_class
    return [name for name in rows[0] if name not in display.hidden_columns] if rows else []


def metrics_text(evaluation: Evaluation, display: Display, separator: str, decimals: int) -> str:
    """All metrics but the loss in one line."""
    values = {name: value for name, value in evaluation.metrics.items() if name not in display.hidden_metrics and name != "loss"}
    return separator.join(f"{display.metric_name(name)} {display.text(name, value, decimals)}" for name, value in values.items())


def print_evaluation(evaluation: Evaluation, display: Display, unit: str, console: Console) -> None:
    """Print the table per class and the summary."""
    rows = evaluation.scores.per_class
    columns = class_columns(evaluation, display)
    if len(rows) > MOST_ROWS:
        console.field("", f"{len(rows)} classes: see per_class of metrics.json, or --json")
    elif rows:
        cells = [[display.text(name, row[name], 1) if isinstance(row[name], float) else row[name] for name in columns] for row in rows]
        console.table([display.name(name) for name in columns], cells)
    metrics = metrics_text(evaluation, display, "  ", 2)
    console.field(evaluation.split, f"{evaluation.count} {unit}s  {metrics}  loss {evaluation.metrics['loss']:.3f}")
    for remark in evaluation.scores.remarks:
        console.field("", remark)
    for name, (low, high) in evaluation.scores.intervals.items():
        bounds = f"{display.text(name, low, 1)}-{display.text(name, high, 1)}"
        console.field("", f"95 % interval of {display.metric_name(name)}: {bounds}")
    if evaluation.unreadable:
        named = "; ".join(f"{shown(name)} ({shown(reason)})" for name, reason in evaluation.unreadable[:3])
        more = ", ..." if len(evaluation.unreadable) > 3 else ""
        console.warn(f"{counted(len(evaluation.unreadable), unit)} could not be read, not counted: {named}{more}")


def save_evaluation(folder: Path, evaluation: Evaluation, pictures: Pictures, dataset: Dataset, unit: str, *, weights: str = "") -> None:
    """Write `metrics.json`, `per_class.csv`, `per_<unit>.csv`, the task's figures and `worst/`, all or nothing.

    Args:
        weights: sha256 of the weights that were evaluated; empty of several models.
    """
    scores = evaluation.scores
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        (temporary / "metrics.json").write_text(json_text({**evaluation_dict(evaluation), "weights": weights}), encoding="utf-8")
        if scores.per_class:
            rows = [["" if value is None else value for value in row.values()] for row in scores.per_class]
            (temporary / "per_class.csv").write_text(csv_text(list(scores.per_class[0]), rows), encoding="utf-8")
        names = [name for name in scores.per_case[0] if name != "index"]
        further = scores.case_values[0] if scores.case_values else []
        with (temporary / f"per_{unit}.csv").open("w", encoding="utf-8") as file:
            file.writelines(csv_lines([*names, *further], _case_rows(evaluation, names)))
        for panel in pictures.panels(evaluation):
            panel.figure.savefig(temporary / file_name(panel.name, ".png"), dpi=120)
        (temporary / "worst").mkdir()
        for name, _, picture in pictures.worst(evaluation, dataset, WORST):
            Image.fromarray(picture).save(temporary / "worst" / file_name(name, ".png"))


def _case_rows(evaluation: Evaluation, names: list[str]) -> Iterator[list[Any]]:
    scores = evaluation.scores
    for position, row in enumerate(scores.per_case):
        further = scores.case_values[1][position].tolist() if scores.case_values else []
        yield [_cell(value) for value in (*(row[name] for name in names), *further)]


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value
