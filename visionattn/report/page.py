"""`report.html`: one self-contained page of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from visionattn.config.read import changed_values, to_yaml
from visionattn.files import atomic_write
from visionattn.names import shown, typed, typed_plugins
from visionattn.report.charts import Line, confused_pairs, confusion_chart, line_chart, reliability_chart
from visionattn.report.summary import RunSummary, flat
from visionattn.report.tables import WORST, class_columns
from visionattn.report.verdicts import verdicts
from visionattn.tasks.base import Confidence, Confusion, Dataset, Display, Evaluation, Example, Panel, Target

BEST = 8  # cases that went best, shown in the report
MOST_ROWS = 60  # of the table of classes; of more the lowest and the highest are shown
_LOWEST, _HIGHEST = 25, 10
_WIDTH = 1040  # of the page in pixels
_LONG = 300  # letters of a setting


@dataclass(frozen=True)
class Look:
    """What a model looked at in an image: a title, and pictures `[H, W, 3]` uint8 with their captions."""

    title: str
    pictures: Sequence[tuple[str, np.ndarray]]


def write_report(summary: RunSummary, evaluation: Evaluation, target: Target, dataset: Dataset, looks: Sequence[Look] = ()) -> Path:
    """Write the page: a headline with verdicts, curves, the table of classes, figures, examples, attention, and how to repeat it all.

    Args:
        summary: of the run.
        evaluation: of the validation set, by its best checkpoint.
        dataset: its samples.
        looks: what the model looked at in some of them.

    Returns:
        The file in the folder of the run.
    """
    task, config, display = summary.task, summary.config, summary.display
    pictures = task.pictures(target)
    page = template("report.html").render(
        title=f"{config.model.name} on {summary.data_name}",
        run=summary.name,
        state=str(summary.state.get("state") or "unknown"),
        stopped=str(summary.state.get("stopped") or summary.state.get("updated") or "")[:16].replace("T", " "),
        lead=_lead(summary, evaluation, target),
        headline=_headline(summary, evaluation),
        verdicts=verdicts(summary, evaluation, pictures),
        tiles=_tiles(summary, evaluation),
        curves=_curves(summary),
        unit=task.unit,
        count=f"{evaluation.count:,}",
        remarks=evaluation.scores.remarks,
        table=_class_table(evaluation, display),
        panels=[_panel(panel) for panel in pictures.panels(evaluation) if panel.in_report],
        worst=_examples(pictures.worst(evaluation, dataset, WORST)),
        best=_examples(pictures.best(evaluation, dataset, BEST)),
        caption=pictures.worst_caption,
        column=_WIDTH // pictures.worst_columns - 14,
        looks=[(look.title, [(caption, picture_url(pixels)) for caption, pixels in look.pictures]) for look in looks],
        training=_training(summary, target),
        settings={key: _setting(value) for key, value in flat(changed_values(config)).items()},
        config=to_yaml(config.model_dump(mode="json")),
        environment=_environment(summary),
        path=typed(summary.path),
        plugins=typed_plugins(config.plugins),
    )
    path = summary.path / "report.html"
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
    loader = PackageLoader("visionattn.report")
    environment = Environment(
        loader=loader, autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def data_url(figure: Figure) -> tuple[str, bytes]:
    """A figure as a data URL, and as the PNG in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}", content


def picture_url(pixels: np.ndarray) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return shown(value) if isinstance(value, str) else value


# ---------------------------------------------------------------- the head of the page


def _lead(summary: RunSummary, evaluation: Evaluation, target: Target) -> str:
    """What the model does, and what its figures are of."""
    purpose, unit = summary.task.purpose(summary.config, target), summary.task.unit
    trained = summary.samples.get("train")
    on = f"trained on {trained:,} {unit}s, and measured" if trained is not None else "measured"
    lead = f"It {purpose}. It was {on}" if purpose else f"It was {on}"
    return f"{lead} on {evaluation.count:,} {unit}s of the {evaluation.split} split, which it was not trained on."


def _headline(summary: RunSummary, evaluation: Evaluation) -> dict[str, Any]:
    """The metric that the best checkpoint was chosen by."""
    return _tile(summary.display, evaluation, summary.monitor)


def _tiles(summary: RunSummary, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The other metrics, those that are printed after an epoch first, and the loss."""
    display = summary.display
    names = [name for name in dict.fromkeys((*display.metrics, *evaluation.metrics)) if name in evaluation.metrics]
    names = [name for name in names if name not in display.hidden_metrics and name not in ("loss", summary.monitor)]
    return [_tile(display, evaluation, name) for name in [*names, "loss"]]


def _tile(display: Display, evaluation: Evaluation, name: str) -> dict[str, Any]:
    value = evaluation.metrics.get(name)
    fraction = name not in display.plain and name != "loss" and value is not None
    bounds = evaluation.scores.intervals.get(name)
    texts = None if bounds is None else [display.text(name, bound, 1) for bound in bounds]
    return {
        "name": display.metric_name(name),
        "value": display.text(name, value, 3 if name == "loss" else 1),
        "unit": " %" if fraction else "",
        "meaning": display.meanings.get(name, "what training minimises, on the validation split" if name == "loss" else ""),
        "interval": None if texts is None else f"{texts[0]} to {texts[1]}{' %' if fraction else ''}",
        "bar": None if bounds is None or not fraction else [_share(bounds[0]), _share(bounds[1]), _share(value or 0.0)],
    }


def _share(value: float) -> str:
    """A fraction as a length of CSS."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%"


# ---------------------------------------------------------------- results


def _curves(summary: RunSummary) -> list[Markup]:
    """Loss, metrics and learning rate over the epochs."""
    display, mark = summary.display, summary.best_epoch
    loss = [
        Line("train, step", summary.step_points("loss"), 1, faint=True),
        Line("train", summary.points("train_loss"), 1),
        Line("validation", summary.points("val_loss"), 2),
    ]
    charts = [line_chart("Loss", loss, mark=mark)]
    for plain in (False, True):
        names = [name for name in dict.fromkeys((*display.curves, summary.monitor)) if (name in display.plain) == plain]
        lines = [Line(display.metric_name(name), summary.points(f"val_{name}"), place % 6 + 1) for place, name in enumerate(names)]
        charts.append(line_chart("Validation metrics", lines, percent=not plain, mark=mark))
    charts.append(line_chart("Learning rate", [Line("learning rate", summary.step_points("lr") or summary.points("lr"), 3)]))
    return [chart for chart in charts if chart]


def _class_table(evaluation: Evaluation, display: Display) -> dict[str, Any] | None:
    """The table per class, fractions with bars; of many classes those with the lowest and the highest figures."""
    rows, columns = evaluation.scores.per_class, class_columns(evaluation, display)
    if not rows:
        return None
    left_out = 0
    if len(rows) > MOST_ROWS:
        rank = display.class_rank
        order = sorted(rows, key=lambda row: -1.0 if row.get(rank) is None else float(row[rank])) if rank else rows
        rows, left_out = [*order[:_LOWEST], *order[-_HIGHEST:]], len(rows) - _LOWEST - _HIGHEST
    return {
        "columns": [(display.name(name), display.meanings.get(name, "")) for name in columns],
        "rows": [[_class_cell(display, name, row[name]) for name in columns] for row in rows],
        "left_out": left_out,
        "rank": display.name(display.class_rank),
        "lowest": _LOWEST,
        "highest": _HIGHEST,
    }


def _class_cell(display: Display, name: str, value: Any) -> tuple[str, str | None]:
    """Text of a cell, and the length of its bar."""
    fraction = isinstance(value, float) and name not in display.plain
    return display.text(name, value, 1), _share(value) if fraction else None


def _panel(panel: Panel) -> dict[str, Any]:
    """A figure, or what the report draws in its place."""
    found: dict[str, Any] = {"title": panel.title, "note": panel.note, "chart": Markup(""), "image": None, "pairs": [], "what": ""}
    if isinstance(panel.data, Confusion):
        pairs = [(true, guess, f"{count:,}", f"{100 * share:.1f} %") for true, guess, count, share in confused_pairs(panel.data)]
        return found | {"chart": confusion_chart(panel.data), "pairs": pairs, "what": panel.data.what}
    if isinstance(panel.data, Confidence):
        return found | {"chart": reliability_chart(panel.data)}
    return found | {"image": data_url(panel.figure)[0]}


def _examples(cases: Sequence[Example]) -> list[tuple[str, str]]:
    return [(case.title, picture_url(case.picture)) for case in cases]


# ---------------------------------------------------------------- how it was made


def _training(summary: RunSummary, target: Target) -> dict[str, str]:
    """How the model was trained."""
    config, task, best, weights = summary.config, summary.task, summary.best_epoch, summary.config.model.weights
    batch = f"{config.train.batch_size}" + (f" x {config.train.accum}" if config.train.accum > 1 else "")
    facts = {
        "model": f"{config.model.name}, {summary.parameters} parameters" if summary.parameters != "n/a" else config.model.name,
        "started from": "scratch" if weights == "none" else str(weights),
        "input": task.describe_input(config),
        "task": ", ".join(filter(None, (task.name, task.describe(config, target)))),
        "data": f"{summary.data_name}: {summary.split_text()}",
        "fold": _fold(summary),
        "training": f"{summary.trained}, {summary.time}" + (f"; ended by {summary.ended}" if summary.ended else ""),
        "best checkpoint": "" if best is None else f"epoch {best:.4g}, by {summary.display.metric_name(summary.monitor)}",
        "optimizer": f"{config.optim.name}, learning rate {_setting(config.optim.lr)}, batch {batch}",
        "seed": str(config.seed),
    }
    return {name: text for name, text in facts.items() if text}


def _fold(summary: RunSummary) -> str:
    """Which fold a run is."""
    fold = summary.config.data.fold
    if fold is None:
        return ""
    whole = "; mean and spread over all: ../report.html" if summary.path.name == f"fold{fold[0]}" else ""
    return f"{fold[0]} of {fold[1]}{whole}"


def _environment(summary: RunSummary) -> dict[str, str]:
    """The machine and the versions that the run began with."""
    state = summary.state
    versions = state.get("versions")
    command = state.get("command")
    facts: Mapping[str, Any] = {
        "started": state.get("started"),
        "ended": state.get("stopped"),
        "command": " ".join(["visionattn", *(typed(word) for word in command[1:])]) if isinstance(command, list) and command else None,
        "device": state.get("device"),
        "machine": state.get("machine"),
        "host": state.get("host"),
        "commit": state.get("commit"),
        **(versions if isinstance(versions, dict) else {}),
    }
    return {str(name): str(text) for name, text in facts.items() if text}


def _setting(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]} ..."
