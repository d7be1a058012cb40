"""`report.html`: one self-contained page of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from visionattn.figures import curves_figure, picture_grid
from visionattn.files import atomic_write
from visionattn.names import shown
from visionattn.report.tables import WORST, class_columns, metrics_text
from visionattn.runs.folder import RunFolder
from visionattn.tasks.base import Dataset, Display, Evaluation, Pictures


def write_report(
    run: RunFolder, evaluation: Evaluation, display: Display, pictures: Pictures, dataset: Dataset, unit: str, facts: dict[str, str]
) -> Path:
    """Write facts, curves, the table per class, the task's figures and the worst cases of a run.

    Args:
        evaluation: of the validation set.
        dataset: its samples.
        unit: what a case is called.
        facts: name and text, for the head of the page.
    """
    figures = {panel.title: _image(panel.figure) for panel in pictures.panels(evaluation)}
    worst = pictures.worst(evaluation, dataset, WORST)
    worst_image = None
    if worst:
        grid = picture_grid([case.picture for case in worst], [case.title for case in worst], columns=pictures.worst_columns)
        worst_image = _image(grid)
    columns = class_columns(evaluation, display)
    page = template("report.html").render(
        title=f"{run.path.parent.name}/{run.path.name}",
        facts=facts,
        curves=_image(curves_figure(run.read_metrics(), display.curves)),
        count=evaluation.count,
        unit=unit,
        summary=f"{metrics_text(evaluation, display, ', ', 1)}, loss {evaluation.metrics['loss']:.3f}",
        remarks=evaluation.scores.remarks,
        columns=[display.name(name) for name in columns],
        rows=[[display.text(name, row[name], 1) for name in columns] for row in evaluation.scores.per_class],
        figures=figures,
        worst=worst_image,
        worst_caption=pictures.worst_caption,
    )
    path = run.path / "report.html"
    atomic_write(path, page)
    return path


def write_folds_page(
    folder: Path, summary: str, notes: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], runs: Sequence[str], unit: str
) -> Path:
    """Write the table of a cross-validation, with links to the reports of its folds.

    Args:
        folder: of the folds.
        rows: the first of them are those of `runs`, in their order.
        runs: folders of the folds, relative to `folder`.
        unit: what a case is called.
    """
    title = f"{folder.parent.name}/{folder.name}"
    path = folder / "report.html"
    facts = {"title": title, "summary": summary, "unit": unit, "notes": notes, "columns": columns, "rows": rows, "runs": runs}
    atomic_write(path, template("folds.html").render(facts))
    return path


def template(name: str) -> Template:
    """A page of `templates`, in which all text is escaped."""
    environment = Environment(loader=PackageLoader("visionattn.report"), autoescape=True, finalize=_shown, undefined=StrictUndefined)
    return environment.get_template(name)


def data_url(figure: Figure) -> tuple[str, bytes]:
    """A figure as a data URL, and as the PNG in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}", content


def _image(figure: Figure) -> str:
    return data_url(figure)[0]


def _shown(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value
