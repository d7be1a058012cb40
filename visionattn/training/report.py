"""What an evaluation and a run leave behind for people: tables, pictures, one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from visionattn.data.sets import ImageSet
from visionattn.files import atomic_folder, atomic_write
from visionattn.training.console import Console, percent
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import confusion_figure, curves_figure, label_text, picture_grid, readable_picture, worst_rows
from visionattn.training.run import RunFolder, csv_text

WORST = 16


def evaluation_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The object that `eval --json` prints and `metrics.json` holds."""
    return {
        "task": "classify",
        "split": evaluation.split,
        "count": evaluation.count,
        "metrics": evaluation.metrics,
        "interval": {"top1": evaluation.interval} if evaluation.interval else {},
        "per_class": evaluation.per_class,
        "unreadable": len(evaluation.unreadable),
    }


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The table per class and the summary."""
    if len(evaluation.per_class) <= 60:
        columns = list(evaluation.per_class[0])
        rows = [[f"{100 * value:.1f}" if isinstance(value, float) else value for value in row.values()] for row in evaluation.per_class]
        console.table(columns, rows)
    shown = "  ".join(f"{name} {percent(value)}" for name, value in evaluation.metrics.items() if name != "loss")
    console.say(evaluation.split, f"{evaluation.count} images  {shown}  loss {evaluation.metrics['loss']:.3f}")
    if evaluation.interval:
        console.say("", f"95 % interval of top1: {100 * evaluation.interval[0]:.1f}-{100 * evaluation.interval[1]:.1f}")
    if evaluation.unreadable:
        console.warn(f"{len(evaluation.unreadable)} images could not be read and are not counted")


def save_evaluation(folder: Path, evaluation: Evaluation, images: ImageSet, classes: list[str]) -> None:
    """`metrics.json`, `per_class.csv`, `per_image.csv`, `confusion.png` and `worst/`, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        (temporary / "metrics.json").write_text(json.dumps(evaluation_dict(evaluation), indent=1), encoding="utf-8")
        columns = list(evaluation.per_class[0])
        rows = [["" if row[name] is None else row[name] for name in columns] for row in evaluation.per_class]
        (temporary / "per_class.csv").write_text(csv_text(columns, rows), encoding="utf-8")
        (temporary / "per_image.csv").write_text(_per_image(evaluation, images, classes), encoding="utf-8")
        if evaluation.labels.ndim == 1:
            confusion_figure(evaluation, classes).savefig(temporary / "confusion.png", dpi=120)
        _save_worst(temporary / "worst", evaluation, images, classes)


def write_report(run: RunFolder, evaluation: Evaluation, images: ImageSet, classes: list[str], facts: dict[str, str]) -> Path:
    """`report.html` of a run: facts, curves, table, confusion matrix and worst images in one file."""
    history = run.read_metrics()
    parts = [f"<h2>Learning curves</h2>{_img(curves_figure(history))}"]
    parts.append(f"<h2>Validation, {evaluation.count} images</h2>{_table(evaluation)}")
    if evaluation.labels.ndim == 1:
        parts.append(f"<h2>Confusion matrix</h2>{_img(confusion_figure(evaluation, classes))}")
    worst = worst_rows(evaluation, WORST)
    if worst:
        figure = _worst_figure(evaluation, images, classes, worst)
        parts.append(f"<h2>Worst images</h2><p>truth -> prediction, with its probability</p>{_img(figure)}")
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


def _per_image(evaluation: Evaluation, images: ImageSet, classes: list[str]) -> str:
    rows = []
    for row, index in enumerate(evaluation.indices):
        label, probabilities = evaluation.labels[row], evaluation.probabilities[row]
        if np.ndim(label) == 0:
            guess = classes[int(probabilities.argmax())]
        else:
            guess = ";".join(name for name, value in zip(classes, probabilities, strict=True) if value >= 0.5)
        truth = label_text(label, classes).replace(", ", ";")
        rows.append([images.ids[int(index)], truth, guess, f"{probabilities.max():.6f}", *(f"{value:.6f}" for value in probabilities)])
    return csv_text(["id", "label", "prediction", "probability", *(f"p({name})" for name in classes)], rows)


def _worst_figure(evaluation: Evaluation, images: ImageSet, classes: list[str], worst: list[int]) -> Figure:
    shown = [(row, readable_picture(images, int(evaluation.indices[row]))) for row in worst]
    pictures = [(row, picture) for row, picture in shown if picture is not None]
    titles = [f"{label_text(evaluation.labels[row], classes)} ->\n{_guess(evaluation, row, classes)}" for row, _ in pictures]
    return picture_grid([picture for _, picture in pictures], titles) if pictures else Figure()


def _save_worst(folder: Path, evaluation: Evaluation, images: ImageSet, classes: list[str]) -> None:
    folder.mkdir()
    for rank, row in enumerate(worst_rows(evaluation, WORST)):
        picture = readable_picture(images, int(evaluation.indices[row]))
        if picture is not None:
            name = f"{rank + 1:02d}_{label_text(evaluation.labels[row], classes)}_as_{_guess(evaluation, row, classes)}"
            safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:100]
            Image.fromarray(picture).save(folder / f"{safe}.png")


def _guess(evaluation: Evaluation, row: int, classes: list[str]) -> str:
    probabilities = evaluation.probabilities[row]
    if evaluation.labels.ndim == 2:
        return label_text(probabilities, classes)
    return f"{classes[int(probabilities.argmax())]} {probabilities.max():.2f}"


def _table(evaluation: Evaluation) -> str:
    def cell(value: Any) -> str:
        return "n/a" if value is None else f"{100 * value:.1f}" if isinstance(value, float) else str(value)

    columns = list(evaluation.per_class[0])
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(row[name]))}</td>" if name == "class" else f'<td class="n">{cell(row[name])}</td>' for name in columns
        )
        + "</tr>"
        for row in evaluation.per_class
    )
    summary = ", ".join(f"{name} {cell(value)}" if name != "loss" else f"loss {value:.3f}" for name, value in evaluation.metrics.items())
    return f"<p>{summary}</p><table><tr>{head}</tr>{body}</table>"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _img(figure: Figure) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(_png(figure)).decode()}">'
