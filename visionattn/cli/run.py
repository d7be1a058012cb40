"""`visionattn train`, `eval` and `predict`."""

from __future__ import annotations

import glob
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionattn.cli.options import (
    TYPED,
    Json,
    Overrides,
    Sources,
    Thresholds,
    UsedDevice,
    console_for,
    key_value,
    print_json,
    sources_and_settings,
    with_task,
)
from visionattn.errors import UserError
from visionattn.names import shown

if TYPE_CHECKING:
    from visionattn.cli.launch import Launch


def train(
    context: typer.Context,
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="Path or name of a config, see: visionattn config list.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or file of the data (data.root).")] = None,
    model: Annotated[str | None, typer.Option(help="Backbone, see: visionattn models list (model.name).")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to start from: a tag, a file, a run or none (model.weights).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set (train.epochs).")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Samples per step and device (train.batch_size).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (optim.lr).")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Hold out this share for validation (data.val_fraction).")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate: train one run per fold.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps (train.device).")] = None,
    devices: Annotated[str | None, typer.Option(help="Train on several GPUs, for example 0,1.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Number of processes to train with, on GPUs or on the CPU.")] = None,
    resume: Annotated[str | None, typer.Option(help="Run folder (or the folder of --folds) to resume, bit for bit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, run one step, write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at warnings of the data check.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model and evaluate it; the task follows from the config, or from the layout of --data."""
    settings = list(overrides or [])
    _require_settings(settings, context)
    flags = {
        "data.root": data,
        "model.name": model,
        "model.weights": weights,
        "train.epochs": epochs,
        "optim.lr": lr,
        "data.val_fraction": val_fraction,
        "train.device": device,
    }
    settings += [key_value(key, value) for key, value in flags.items() if value is not None]
    settings += [] if batch_size is None else [f"train.batch_size={batch_size}"]
    settings += [f"data.fold=[1,{folds}]", "data.val_fraction=null"] if folds is not None and dry_run else []
    if data is not None and config is None and resume is None:
        settings = with_task(data, settings)
    if config is None and resume is None and not settings:
        fix = "visionattn train --config quickstart\nvisionattn train --data FOLDER"
        raise UserError("VA-C005", "nothing to train on: give --data or --config", fix=fix)
    _require_one_split(folds, val_fraction, resume)
    from visionattn.cli.launch import plan_launch, run_processes
    from visionattn.report.trackers import require_packages
    from visionattn.runs.folder import fold_folders
    from visionattn.tasks import load_config, run_config, task_of

    several = [] if resume is None else fold_folders(Path(resume))
    if several and config is not None:
        raise UserError(
            "VA-C002", "--config and --resume: folds resume with their own configs", fix=_command("train", "--resume", resume or "")
        )
    saved = None if resume is None else (several[0] if several else Path(resume)) / "config.yaml"
    # Before torch is loaded: a mistake is reported at once. The job reports what is wrong with a run that has no config.
    given = run_config(saved, settings) if config is None and saved is not None and saved.is_file() else load_config(config, settings)
    if resume is None:
        task_of(given).check_source(given)
    require_packages(given.log)
    launch = plan_launch(processes, devices, given.train)
    program = [sys.executable, "-m", "visionattn", *(["-v"] if context.find_root().params.get("verbose") else []), "train"]

    def run_launched(words: Sequence[str], launch: Launch, *, to_stderr: bool = False) -> None:
        chosen = ["--strict"] if strict else []
        if code := run_processes([*program, *words, *chosen], launch, save_signal=given.train.save_signal, to_stderr=to_stderr):
            raise SystemExit(code)

    if (folds or several) and not dry_run:
        how: dict[str, Any] = {"strict": strict, "console": console_for(as_json)}
        if launch is not None:
            how["options"] = _words({"--processes": processes, "--devices": devices})
            plugins = [key_value("plugins", given.plugins)] if given.plugins else []
            how["train_fold"] = lambda path, changes: run_launched(["--resume", str(path), *plugins, *changes], launch, to_stderr=as_json)
        from visionattn.jobs.folds import resume_folds, train_folds

        done = train_folds(given, folds, **how) if folds else resume_folds(resume or "", settings=settings, **how)
        if as_json:
            print_json(done.as_dict())
        return
    if launch is not None:
        words = [*_words({"--config": config, "--resume": resume}), *["--dry-run"] * dry_run, *["--json"] * as_json]
        run_launched([*words, *settings], launch)
        return
    from visionattn.jobs.train import train as run_training

    result = run_training(given, resume=several[0] if several else resume, dry_run=dry_run, strict=strict, console=console_for(as_json))
    if as_json and result is not None:
        print_json({"run": str(result.run), "best": result.best, "metrics": result.metrics})


def evaluate(
    arguments: Sources,
    data: Annotated[str | None, typer.Option(help="Data to measure on; default: those of the run.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per step.")] = None,
    threshold: Thresholds = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="First fit a temperature (several labels: thresholds) to val, which eval and predict then use."),
    ] = False,
    device: UsedDevice = None,
    as_json: Json = False,
) -> None:
    """Measure a run, a checkpoint or an exported file on a split; of several models, the mean of their probabilities."""
    sources, settings = sources_and_settings(arguments, device, threshold)
    require_models(sources, "eval")
    for number, word in enumerate(sources[1:], 1):
        if data is None and Path(word).exists() and not is_model(word):
            words = [*sources[:number], *sources[number + 1 :], "--data", word, *settings]
            raise UserError("VA-C005", f'"{word}" is not a run: data to evaluate on are given by --data', fix=_command("eval", *words))
    from visionattn.jobs.evaluate import evaluate as run_evaluation
    from visionattn.report.tables import evaluation_dict

    console = console_for(as_json)
    result = run_evaluation(sources, data=data, split=split, batch_size=batch_size, settings=settings, calibrate=calibrate, console=console)
    if as_json:
        print_json(evaluation_dict(result))


def predict(
    arguments: Sources,
    source: Annotated[
        list[str] | None,
        typer.Option(help="File, folder or glob; may be given several times, or follow RUN.", show_default=False),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the results; without it they are only printed.")] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write to --out. Classes: json,csv,probs. Segmentation also mask,overlay,coco,confidence. Volumes: "
            "mask,overlay,json,csv. Bags: json,csv,attention,heatmap.",
            show_default="by task",
        ),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes per image in the results.")] = 5,
    threshold: Thresholds = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step (classifiers).")] = 32,
    device: UsedDevice = None,
    as_json: Json = False,
) -> None:
    """Predict on files: classes of images, pixels, voxels or bags; of several models, the mean of their probabilities."""
    models, settings = sources_and_settings(arguments, device, threshold)
    require_models(models, "predict")
    if not source:
        models, source = _models_and_files(models, settings)
    from visionattn.jobs.predict import predict as run_prediction
    from visionattn.jobs.predict import predictions_json

    formats = [] if save is None else [name.strip() for name in save.split(",")]
    console = console_for(as_json)
    predictions, unreadable = run_prediction(
        models, source, topk=topk, batch_size=batch_size, out=out, save=formats, settings=settings, console=console
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


# ---------------------------------------------------------------- train


def _words(options: dict[str, Any]) -> list[str]:
    """Options with their values, of those that are given."""
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]


def _require_one_split(folds: int | None, val_fraction: float | None, resume: str | None) -> None:
    """Stop at --folds beside what also decides on the validation samples.

    Raises:
        UserError: VA-C002.
    """
    if folds is not None and val_fraction is not None:
        raise UserError("VA-C002", "--folds and --val-fraction: both hold out validation samples", fix="leave --val-fraction out")
    if folds is not None and resume is not None:
        fix = _command("train", "--resume", resume)
        raise UserError("VA-C002", "--folds and --resume: a run that resumes has its folds, or has none", fix=fix)


def _require_settings(words: Sequence[str], context: typer.Context) -> None:
    """Stop at an argument that is not of the form key=value, with what was probably meant.

    Raises:
        UserError: VA-C001.
    """
    for word in words:
        if "=" in word:
            continue
        typed = list(context.meta.get(TYPED, ["train", *words]))
        place = typed.index(word)
        before, after = typed[:place], typed[place + 1 :]
        option, what = _meaning(word)
        if not option:
            instead = [f"{word}={after.pop(0) if after and not after[0].startswith('-') else 'VALUE'}"]
        elif any(other.partition("=")[0] == option for other in typed):
            instead, what = [], f"not of the form key=value, and there is {option} already"
        else:
            instead = [option, word]
        raise UserError("VA-C001", f'"{word}": {what}', fix=_command(*before, *instead, *after))


def _meaning(word: str) -> tuple[str, str]:
    """The option that an argument is probably the value of, and the reason; no option for a key."""
    from visionattn.cli.unknown import config_keys
    from visionattn.config.read import shipped_names
    from visionattn.runs.folder import fold_folders

    if word in config_keys():
        return "", "a key takes its value after ="
    if (Path(word) / "config.yaml").is_file() or fold_folders(Path(word)):
        return "--resume", "a run that exists is resumed with --resume"
    if word in shipped_names() or Path(word).suffix in (".yaml", ".yml"):
        return "--config", "a config is given by --config"
    return "--data", "data are given by --data"


# ---------------------------------------------------------------- eval, predict


def require_models(sources: Sequence[str], command: str) -> None:
    """Stop without a model.

    Raises:
        UserError: VA-C005.
    """
    if not sources:
        rest = {
            "predict": " --source FILE_OR_FOLDER",
            "explain": " --image FILE",
            "features": " FILE_OR_FOLDER --out FOLDER",
            "neighbors": " FILE_OR_FOLDER",
        }.get(command, "")
        raise UserError("VA-C005", f"visionattn {command} needs a run, a checkpoint or weights", fix=f"visionattn {command} RUN{rest}")


def _models_and_files(words: Sequence[str], settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models and, behind them, what to predict on: whatever exists and is no model, or is a glob.

    Raises:
        UserError: VA-C005, there is nothing to predict on.
    """
    files = [word for word in words[1:] if not is_model(word) and (Path(word).exists() or glob.has_magic(word))]
    models = [word for word in words if word not in files]
    if not files and len(models) > 1 and not is_model(models[-1]):
        return models[:-1], models[-1:]  # reported as a source that is not there
    if not files:
        fix = _command("predict", *models, "--source", "FILE_OR_FOLDER", *settings)
        raise UserError("VA-C005", "nothing to predict on: give --source", fix=fix)
    return models, files


def is_model(word: str) -> bool:
    """Whether a word is a run, a checkpoint, the folder of folds, a file of weights or a model of the hub."""
    from visionattn.models.weights.hub import is_hub, is_model_folder
    from visionattn.runs.folder import fold_folders

    path = Path(word)
    if path.is_file():
        return path.suffix.lower() in (".safetensors", ".onnx", ".pth", ".pt", ".pt2", ".bin", ".ckpt", ".tar")
    names = ("config.yaml", "meta.json")
    return is_hub(word) or is_model_folder(path) or any((path / name).is_file() for name in names) or bool(fold_folders(path))


def _command(*words: str) -> str:
    return f"visionattn {shlex.join(words)}"
