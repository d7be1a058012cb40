"""`visionattn train`, `eval` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionattn.cli.options import Changes, Json, Overrides, console_for, key_value, print_json, with_task
from visionattn.errors import UserError
from visionattn.names import shown


def train(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="Path or shipped name, see: visionattn config list.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of the data (data.root).")] = None,
    model: Annotated[str | None, typer.Option(help="Backbone (model.name).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set (train.epochs).")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Hold out this share for validation (data.val_fraction).")] = None,
    resume: Annotated[str | None, typer.Option(help="Run folder to resume, bit for bit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, run one step, write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings of the data check stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model and evaluate it; the task follows from the layout of --data, or from the config (task)."""
    settings = list(overrides or [])
    flags = {"data.root": data, "model.name": model, "train.epochs": epochs, "data.val_fraction": val_fraction}
    settings += [key_value(key, value) for key, value in flags.items() if value is not None]
    if data is not None and config is None and resume is None:
        settings = with_task(data, settings)
    if config is None and resume is None and not settings:
        fix = "visionattn train --config quickstart\nvisionattn train --data FOLDER"
        raise UserError("VA-C005", "nothing to train on: give --data or --config", fix=fix)
    from visionattn.tasks import load_config, run_config, task_of

    saved = None if resume is None else Path(resume) / "config.yaml"
    # Before torch is loaded: a mistake is reported at once. The job reports what is wrong with a run that has no config.
    given = run_config(saved, settings) if config is None and saved is not None and saved.is_file() else load_config(config, settings)
    if resume is None:
        task_of(given).check_source(given)
    from visionattn.jobs.train import train as run_training

    result = run_training(given, resume=resume, dry_run=dry_run, strict=strict, console=console_for(as_json))
    if as_json and result is not None:
        print_json({"run": str(result.run), "best": result.best, "metrics": result.metrics})


def evaluate(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, checkpoint folder or weights file in one.")],
    overrides: Changes = None,
    data: Annotated[str | None, typer.Option(help="Other data than the run's.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per step.")] = None,
    as_json: Json = False,
) -> None:
    """Metrics of a run or a checkpoint on a split."""
    from visionattn.jobs.evaluate import evaluate as run_evaluation
    from visionattn.report.tables import evaluation_dict

    console = console_for(as_json)
    result = run_evaluation(source, data=data, split=split, batch_size=batch_size, settings=overrides or (), console=console)
    if as_json:
        print_json(evaluation_dict(result))


def predict(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, checkpoint folder or weights file in one.")],
    source: Annotated[list[str], typer.Option(help="File, folder or glob; may be given several times.")],
    overrides: Changes = None,
    out: Annotated[str | None, typer.Option(help="Folder for the results.")] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write to --out: json,csv; of segmentation also mask,overlay,coco.", show_default="json,csv or mask,overlay"
        ),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, of classification.")] = 32,
    as_json: Json = False,
) -> None:
    """Predict on files: classes of images, or of their pixels."""
    from visionattn.jobs.predict import predict as run_prediction
    from visionattn.jobs.predict import predictions_json

    formats = [] if save is None else [name.strip() for name in save.split(",")]
    console = console_for(as_json)
    predictions, unreadable = run_prediction(
        run, source, topk=topk, batch_size=batch_size, out=out, save=formats, settings=overrides or (), console=console
    )
    rows = [item.display_row() for item in predictions[:20]]
    console.table(list(rows[0]), [list(row.values()) for row in rows])
    if len(predictions) > len(rows):
        console.line(f"... and {len(predictions) - len(rows)} more")
    for path, reason in unreadable:
        console.warn(f"unreadable: {shown(path)} ({shown(reason)})")
    if as_json:
        for piece in predictions_json(predictions, unreadable):
            typer.echo(piece, nl=False)
