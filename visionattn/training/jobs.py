"""Training, from a config or a run folder to the report."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from visionattn.config import AnyConfig, load_config
from visionattn.data.check import CheckReport
from visionattn.data.sampling import mix, require_batches
from visionattn.data.segmentation import MaskData
from visionattn.data.sets import Samples, manifest_hash
from visionattn.errors import Interrupted, UserError
from visionattn.files import atomic_write
from visionattn.models import Segmenter, load_checkpoint
from visionattn.models.download import fetch
from visionattn.models.records import Weights, find_record
from visionattn.tasks import Task
from visionattn.training.build import (
    Model,
    backbone_name,
    build_model,
    build_task,
    check_names,
    eval_batch_size,
    import_plugins,
    make_accelerator,
    published_weights,
    worker_count,
)
from visionattn.training.checkpoint import latest_checkpoint, read_meta, read_weights
from visionattn.training.console import Console, duration, percent
from visionattn.training.datasets import AnyData, checked_data, preview_training, read_data, training_sets, write_data
from visionattn.training.doctor import diagnose, diagnosis_text
from visionattn.training.evaluation import eval_loader, evaluate_model
from visionattn.training.report import evaluation_dict, print_evaluation, save_evaluation, write_report
from visionattn.training.run import RunFolder, environment
from visionattn.training.trainer import Trainer

# What may differ when a run goes on: it does not change what is computed, or only how long.
RESUMABLE_KEYS = (
    "train.epochs",
    "train.steps",
    "train.save_every",
    "train.device",
    "data.workers",
    "data.cache",
    "log",
    "output",
    "eval.batch_size",
)


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        run: run folder.
        best: `metric`, `value` and `epoch` of the best checkpoint.
        metrics: all validation metrics of that checkpoint.
    """

    run: Path
    best: dict[str, Any]
    metrics: dict[str, float | None]


def train(
    config: AnyConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    dry_run: bool = False,
    strict: bool = False,
    console: Console | None = None,
    **overrides: Any,
) -> TrainResult | None:
    """Train a model and evaluate it.

    Args:
        config: a `Config`, a path or the name of a shipped config; None for the defaults.
        resume: run folder to go on with.
        dry_run: build everything and run one step, writing nothing; returns None.
        strict: warnings of the data check stop.
        console: where progress is printed.
        **overrides: settings by dotted key, for example `**{"train.epochs": 3}`.

    Raises:
        UserError: whatever the user can mend; see its `code`.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    console = console or Console()
    settings = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
    if isinstance(config, AnyConfig) and settings:
        raise TypeError("overrides go with a config name or path; a Config is complete")
    resumed = RunFolder.open(Path(resume)) if resume is not None else None
    if not isinstance(config, AnyConfig):
        config = load_config(resumed.path / "config.yaml" if resumed and config is None else config, settings)
    if resumed is not None:
        _same_config(resumed, config)
    import_plugins(config)
    check_names(config)

    accelerator = make_accelerator(config)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    with accelerator.main_process_first():
        checked = checked_data(config, console, strict=strict, keep=not dry_run)
    data, rows = checked.data, checked.manifest()
    if resumed is not None:
        _same_data(resumed, manifest_hash(rows))
    require_batches(len(data.train), config.train.batch_size * config.train.accum, accelerator.num_processes)

    set_seed(config.seed)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling fresh memory is a debugging aid that costs time at every allocation.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = build_model(config, data.classes)
    weights = _initial_weights(model, config, console) if resumed is None else ""
    palette = data.palette if isinstance(data, MaskData) else None
    task = build_task(config, data.classes, checked.class_weight_labels(), palette)
    train_set, val_set = training_sets(config, model, data)
    set_seed(mix(config.seed, 1 + accelerator.process_index))  # dropout differs between processes

    if dry_run:
        _dry_run(config, model, task, train_set, val_set, accelerator, console)
        return None
    run = resumed or _create_run(config, data, accelerator)
    if accelerator.is_main_process:
        if resumed is not None:
            run.lock()
        console.log_to(run.path / "log.txt")
    try:
        if accelerator.is_main_process:
            facts = {} if resumed is not None else {**environment(), "device": str(accelerator.device)}
            run.write_state("running", reason=None, pid=os.getpid(), stopped=None, **facts)
            if resumed is None:
                write_data(run.path / "data", config, model, checked, rows)
                run.write_state("running", data=manifest_hash(rows))
                atomic_write(run.path / "env.txt", diagnosis_text(diagnose(self_check=False)) + "\n")
            run.write_config(config)
        trainer = Trainer(config, model, task, train_set, val_set, run, accelerator, console)
        checkpoint = _resume_point(run, accelerator) if resumed is not None else None
        if resumed is not None and checkpoint is None:
            weights = _initial_weights(model, config, console)
        _say_start(console, config, data, model, weights, run, accelerator, trainer, resumed is not None, checkpoint)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        if resumed is not None and accelerator.is_main_process:
            run.rewind_metrics(trainer.step)
        trainer.fit()
        result = _finish(trainer, run, data, val_set, console) if accelerator.is_main_process else None
        accelerator.wait_for_everyone()
        return result
    except (Interrupted, KeyboardInterrupt) as error:
        if accelerator.is_main_process:
            run.write_state("interrupted", reason="interrupted")
            saved = (run.checkpoints / "last").exists()
            console.say("", (f"saved checkpoints/last ({error})\n" if saved else "") + f"go on:  visionattn train --resume {run.path}")
        raise
    except UserError as error:
        if accelerator.is_main_process:
            run.write_state("failed", reason=error.code)
            console.log(error.block())
        raise
    except BaseException:
        if accelerator.is_main_process:
            run.write_state("failed", reason="internal")
            console.log(traceback.format_exc())
        raise
    finally:
        if accelerator.is_main_process:
            run.unlock()


def check(config: AnyConfig, *, console: Console | None = None, strict: bool = False) -> CheckReport:
    """Decode every image of data.root once and say what training would stumble over.

    Raises:
        UserError: the first error found; with `strict` also the first warning.
    """
    return checked_data(config, console or Console(), strict=strict).report


def preview_data(config: AnyConfig, path: Path, count: int) -> None:
    """Write a picture of augmented training images, with their classes."""
    data = read_data(config)
    preview_training(config, build_model(config, data.classes), data, count, path)


def _same_config(run: RunFolder, after: AnyConfig) -> None:
    """Only settings that leave the result alone may differ from those the run began with.

    Raises:
        UserError: VA-C010 with all others that differ.
    """
    before = load_config(run.path / "config.yaml")
    changes = _changes(before.model_dump(mode="json"), after.model_dump(mode="json"), "")
    refused = [line for key, line in changes if not any(key == free or key.startswith(f"{free}.") for free in RESUMABLE_KEYS)]
    if refused:
        raise UserError(
            "VA-C010",
            "a run goes on only with the settings it began with\n  " + "\n  ".join(refused),
            where=str(run.path / "config.yaml"),
            fix=f"leave them out, or start a new run; these may change: {', '.join(RESUMABLE_KEYS)}",
        )


def _changes(before: Any, after: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [item for name in keys for item in _changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)]
    return [] if before == after else [(key, f"{key}: {before} -> {after}")]


def _same_data(run: RunFolder, digest: str) -> None:
    known = run.read_state().get("data")
    if known is not None and known != digest:
        raise UserError(
            "VA-C010",
            "the data are not those the run began with",
            where=str(run.path / "data" / "manifest.csv"),
            why=f"manifest hash {digest}, at the start {known}",
            fix="restore the files, or start a new run",
        )


def _initial_weights(model: Model, config: AnyConfig, console: Console) -> str:
    """Load model.weights; returns the line that says what was loaded."""
    source = config.model.weights
    if source == "none":
        return "none: training from scratch"
    path = Path(source).expanduser()
    record: Weights | None = published_weights(config)
    if record is None and (source == "pretrained" or (path.name == source and not path.suffix and not path.exists())):
        record = find_record(backbone_name(config), None if source == "pretrained" else source)  # says what there is
    if record is not None:
        file = fetch(record, say=None if console.rich.quiet else lambda text: console.say("", text))
        source = f"{record.name}  sha256 {file.sha256[:8]} ({file.checked})"
        report = load_checkpoint(model, file.path)
    elif path.is_dir():
        checkpoint = path if (path / "meta.json").is_file() else latest_checkpoint(RunFolder.open(path).checkpoints)
        if checkpoint is None:
            raise UserError("VA-W006", "the run has no checkpoint yet", where=str(path))
        report = load_checkpoint(model, read_weights(checkpoint))
    else:
        report = load_checkpoint(model, path)
    if report.skipped:
        console.warn(f"VA-M003 {report.skipped[0]} ({report.matched} tensors loaded)")
    return f"{source}  {report.reason}"


def _resume_point(run: RunFolder, accelerator: Accelerator) -> Path | None:
    """The checkpoint to go on from; one process looks, because leftovers of a killed save are removed on the way."""
    found = [str(latest_checkpoint(run.checkpoints) or "") if accelerator.is_main_process else ""]
    broadcast_object_list(found)
    return Path(found[0]) if found[0] else None


def _create_run(config: AnyConfig, data: AnyData, accelerator: Accelerator) -> RunFolder:
    name = config.output.name or f"{data.name}-{config.model.name}"
    path = [str(RunFolder.create(Path(config.output.dir).expanduser() / name).path) if accelerator.is_main_process else ""]
    broadcast_object_list(path)
    return RunFolder(Path(path[0]))


def _say_start(
    console: Console,
    config: AnyConfig,
    data: AnyData,
    model: Model,
    weights: str,
    run: RunFolder,
    accelerator: Accelerator,
    trainer: Trainer,
    resumed: bool,
    checkpoint: Path | None,
) -> None:
    params = sum(parameter.numel() for parameter in model.parameters())
    height, width = config.model.size
    name = f"{config.model.name}, {model.head}" if isinstance(model, Segmenter) else config.model.name
    console.say("model", f"{name}  {params / 1e6:.2f} M parameters  {height}x{width} px  {len(data.classes)} classes")
    if checkpoint is not None:
        meta = read_meta(checkpoint)
        epoch, step = divmod(meta["step"], trainer.steps_per_epoch)
        console.say(
            "resume",
            f"{checkpoint.name}: epoch {epoch + 1} step {step}/{trainer.steps_per_epoch}: weights, optimizer, EMA, random state, position",
        )
    else:
        if resumed:
            console.say("resume", "no checkpoint was saved yet: starting from the beginning")
        console.say("weights", weights)
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    processes = f" x {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
    batch = f"{config.train.batch_size}" + (f" x {config.train.accum}" if config.train.accum > 1 else "")
    speed = f"device {accelerator.device}{processes} ({precision})   batch {batch}   steps/epoch {trainer.steps_per_epoch}"
    console.say("run", f"{run.path}   seed {config.seed}   {speed}")


def _dry_run(
    config: AnyConfig,
    model: Model,
    task: Task,
    train_set: Samples,
    val_set: Samples,
    accelerator: Accelerator,
    console: Console,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, model, task, train_set, val_set, RunFolder(Path(folder)), accelerator, console)
        loss, norm = trainer.train_step(next(iter(trainer.train_loader)))
        console.say(
            "dry run",
            f"one step: loss {loss:.3f}, gradient norm {norm:.2f}; {trainer.total_steps} steps would follow. Nothing was written.",
        )


def _finish(trainer: Trainer, run: RunFolder, data: AnyData, val_set: Samples, console: Console) -> TrainResult:
    """Evaluate the best checkpoint once more and write what people read."""
    config = trainer.config
    best = trainer.best or {"metric": trainer.monitor, "value": None, "epoch": trainer.epochs}
    folder = run.checkpoints / ("best" if (run.checkpoints / "best").is_dir() else "last")
    model = build_model(config, data.classes)
    load_checkpoint(model, read_weights(folder), allow=())
    model.to(trainer.accelerator.device)
    loader = eval_loader(val_set, eval_batch_size(config), worker_count(config))
    evaluation = evaluate_model(
        model, trainer.task, loader, split="val", device=trainer.accelerator.device, autocast=trainer.accelerator.autocast
    )
    save_evaluation(run.path / "eval" / "val", evaluation, val_set, data.classes)
    if isinstance(model, Segmenter):
        print_evaluation(evaluation, console)
    seconds = sum(line["seconds"] for line in run.read_metrics() if line["kind"] == "epoch")
    bounds = evaluation.scores.intervals.get(best["metric"])
    interval = f", 95 % interval {100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}" if bounds else ""
    summary = f"best {best['metric']} {percent(best['value'])} at epoch {best['epoch']} (val, {evaluation.count} images{interval})"
    facts = {
        "model": config.model.name,
        "data": f"{data.name}: train {len(data.train)}, val {len(data.val)}, {len(data.classes)} classes",
        "result": summary,
        "training": f"{trainer.epochs} epochs, {duration(seconds)}, seed {config.seed}, "
        f"batch {config.train.batch_size} x {config.train.accum}, {config.optim.name}, lr {config.optim.lr:g}",
        "repeat": f"visionattn train --config {run.path / 'config.yaml'}",
    }
    report = write_report(run, evaluation, val_set, data.classes, facts)
    run.write_state("done", reason=None, best=best, metrics=evaluation_dict(evaluation)["metrics"])
    console.line(f"done in {duration(seconds)}.  {summary}")
    console.line(f"next:  visionattn eval {run.path}{' --split test' if data.test is not None else ''}")
    console.line(f"       visionattn predict {run.path} --source FILE_OR_FOLDER")
    if config.log.tensorboard:
        console.line(f"       tensorboard --logdir {run.path / 'tb'}")
    console.line(f"report {report}")
    return TrainResult(run.path, best, evaluation.metrics)
