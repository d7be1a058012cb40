"""What an evaluation and a run leave behind for people: tables, pictures, one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from visionattn.data.sets import Samples
from visionattn.files import atomic_folder, atomic_write
from visionattn.training.console import Console
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import curves_figure, picture_grid
from visionattn.training.run import RunFolder, csv_text
from visionattn.training.view import view_of

WORST = 16
# Floats that are no fractions: not shown as percent.
PLAIN = ("loss", "hd95", "n_defined", "n_missed")
# Counts of pairs of case and class, said in a sentence.
COUNTS = ("n_defined", "n_missed")
# Names of metrics and columns for people, where they are others.
NAMES = {
    "miou": "mIoU",
    "macc": "mAcc",
    "mdice": "mDice",
    "aacc": "aAcc",
    "iou": "IoU",
    "acc": "Acc",
    "dice": "Dice",
    "pixel_share": "pixels",
    "boundary_iou": "boundary IoU",
    "case_dice": "case Dice",
    "case_iou": "case IoU",
    "hd95": "HD95",
    "nsd": "NSD",
    "n_defined": "cases",
    "n_missed": "missed",
}
# Metrics of a split that columns of classes name otherwise.
METRIC_NAMES = NAMES | {"dice": "case Dice", "iou": "case IoU", "dice_pooled": "pooled Dice", "ignored": "ignored pixels"}


def shown(name: str, value: Any, decimals: int) -> str:
    """A value of a table or a summary for people: fractions as percent, `n/a` where there is none."""
    if isinstance(value, float):
        return f"{value if name in PLAIN else 100 * value:.{decimals}f}"
    return "n/a" if value is None else str(value)


def distances_text(evaluation: Evaluation) -> str:
    """What HD95 is a mean of: its unit and rule, pairs of case and class it is defined for, and those missed; empty without cases."""
    row = next((row for row in evaluation.scores.per_class if row.get("hd95_unit")), None)
    if row is None:
        return ""
    defined, missed = (int(evaluation.metrics[name] or 0) for name in COUNTS)
    pairs = evaluation.count * (len(evaluation.scores.per_class) - 1)
    return (
        f"HD95 in {row['hd95_unit']} ({row['hd95_variant']}): {defined} of {pairs} cases defined, {pairs - defined} empty in both; "
        f"{missed} missed, counted with the diagonal of the image"
    )


def evaluation_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The object that `eval --json` prints and `metrics.json` holds."""
    return {
        "task": evaluation.task,
        "split": evaluation.split,
        "count": evaluation.count,
        "metrics": evaluation.metrics,
        "interval": evaluation.scores.intervals,
        "per_class": evaluation.scores.per_class,
        "unreadable": len(evaluation.unreadable),
    }


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The table per class and the summary."""
    per_class = evaluation.scores.per_class
    if len(per_class) <= 60:
        columns = _columns(per_class)
        rows = [[shown(name, row[name], 1) if isinstance(row[name], float) else row[name] for name in columns] for row in per_class]
        console.table([NAMES.get(name, name) for name in columns], rows)
    else:
        console.say("", f"{len(per_class)} classes: each is in per_class of metrics.json, and of --json")
    metrics = "  ".join(
        f"{METRIC_NAMES.get(name, name)} {shown(name, value, 2)}"
        for name, value in evaluation.metrics.items()
        if name not in ("loss", *COUNTS)
    )
    console.say(evaluation.split, f"{evaluation.count} images  {metrics}  loss {evaluation.metrics['loss']:.3f}")
    if text := distances_text(evaluation):
        console.say("", text)
    for name, (low, high) in evaluation.scores.intervals.items():
        console.say("", f"95 % interval of {METRIC_NAMES.get(name, name)}: {100 * low:.1f}-{100 * high:.1f}")
    if evaluation.unreadable:
        console.warn(f"{len(evaluation.unreadable)} images could not be read and are not counted")


def save_evaluation(folder: Path, evaluation: Evaluation, dataset: Samples, classes: list[str]) -> None:
    """`metrics.json`, `per_class.csv`, `per_image.csv`, the task's figures and `worst/`, all or nothing."""
    view = view_of(evaluation.task)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        (temporary / "metrics.json").write_text(json.dumps(evaluation_dict(evaluation), indent=1), encoding="utf-8")
        per_class = evaluation.scores.per_class
        rows = [["" if value is None else value for value in row.values()] for row in per_class]
        (temporary / "per_class.csv").write_text(csv_text(list(per_class[0]), rows), encoding="utf-8")
        (temporary / "per_image.csv").write_text(_per_image(view.image_rows(evaluation, classes), dataset.ids), encoding="utf-8")
        for panel in view.panels(evaluation, classes):
            panel.figure.savefig(temporary / f"{panel.name}.png", dpi=120)
        (temporary / "worst").mkdir()
        for name, _, picture in view.worst(evaluation, dataset, classes, WORST):
            safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:100]
            Image.fromarray(picture).save(temporary / "worst" / f"{safe}.png")


def write_report(run: RunFolder, evaluation: Evaluation, dataset: Samples, classes: list[str], facts: dict[str, str]) -> Path:
    """`report.html` of a run: facts, curves, table, the task's figures and worst images in one file."""
    view = view_of(evaluation.task)
    parts = [f"<h2>Learning curves</h2>{_img(curves_figure(run.read_metrics(), view.CURVES))}"]
    parts.append(f"<h2>Validation, {evaluation.count} images</h2>{_table(evaluation)}")
    parts += [f"<h2>{panel.title}</h2>{_img(panel.figure)}" for panel in view.panels(evaluation, classes)]
    worst = view.worst(evaluation, dataset, classes, WORST)
    if worst:
        figure = picture_grid([item.picture for item in worst], [item.title for item in worst], columns=view.WORST_COLUMNS)
        parts.append(f"<h2>Worst images</h2><p>{view.WORST_CAPTION}</p>{_img(figure)}")
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
        "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2em .9em .2em 0;text-align:left;border-bottom:1px solid #eee}"
        "td.n{text-align:right;font-variant-numeric:tabular-nums}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}"
    )
    title = html.escape(f"{run.path.parent.name}/{run.path.name}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>'
        f"<body><h1>{title}</h1><table>{rows}</table>{''.join(parts)}</body></html>"
    )
    path = run.path / "report.html"
    atomic_write(path, page)
    return path


def _per_image(rows: list[dict[str, Any]], ids: list[str]) -> str:
    def cell(value: Any) -> Any:
        return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value

    columns = [name for name in rows[0] if name != "index"]
    return csv_text(["id", *columns], [[ids[row["index"]], *(cell(row[name]) for name in columns)] for row in rows])


def _columns(per_class: list[dict[str, Any]]) -> list[str]:
    """Those of a table for people: what is the same in all rows is said in `distances_text`."""
    return [name for name in per_class[0] if name not in ("hd95_unit", "hd95_variant")]


def _table(evaluation: Evaluation) -> str:
    per_class = evaluation.scores.per_class
    columns = _columns(per_class)
    head = "".join(f"<th>{NAMES.get(name, name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(row[name]))}</td>" if name == "class" else f'<td class="n">{shown(name, row[name], 1)}</td>'
            for name in columns
        )
        + "</tr>"
        for row in per_class
    )
    summary = ", ".join(
        f"{METRIC_NAMES.get(name, name)} {shown(name, value, 3 if name == 'loss' else 1)}"
        for name, value in evaluation.metrics.items()
        if name not in COUNTS
    )
    said = " ".join(f"<p>{text}</p>" for text in (summary, distances_text(evaluation)) if text)
    return f"{said}<table><tr>{head}</tr>{body}</table>"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _img(figure: Figure) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(_png(figure)).decode()}">'
