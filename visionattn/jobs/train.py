"""Training, from a config or a run folder to the report: prepare, run, finish."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from accelerate import Accelerator
from accelerate.utils import set_seed

from visionattn.config.choices import Choice
from visionattn.config.schema import RunConfig
from visionattn.console import Console, duration
from visionattn.data.loading import eval_loader, worker_count
from visionattn.data.sampling import derive_seed, require_batches
from visionattn.data.splits import manifest_hash
from visionattn.data.statistics import Statistics, with_statistics, without_statistics
from visionattn.engine.batch_size import fit_batch, samples_per_step, with_batch
from visionattn.engine.devices import deterministic, open_accelerator
from visionattn.engine.evaluate import evaluate_model
from visionattn.engine.freezing import freeze, frozen_text
from visionattn.engine.optim import require_optimizer
from visionattn.engine.processes import Processes
from visionattn.engine.setup import Setup
from visionattn.engine.trainer import Trainer
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.jobs.check import CheckedData, check_data, write_data
from visionattn.jobs.choices import choose, print_choices, print_statistics, with_weights
from visionattn.jobs.doctor import diagnose, diagnosis_text
from visionattn.jobs.report import report_run
from visionattn.jobs.resume import require_same_batch, require_same_config, require_same_target, same_data, with_choices_of
from visionattn.jobs.weights import fetch_published, load_initial_weights
from visionattn.names import file_name, to_path, typed, typed_plugins
from visionattn.report.tables import evaluation_dict, print_evaluation, save_evaluation
from visionattn.report.trackers import require_packages, tracking
from visionattn.runs.checkpoint import load_weights, read_meta, recover_checkpoints
from visionattn.runs.folder import RunFolder, environment
from visionattn.runs.interrupts import interrupting, stop_signals
from visionattn.runs.load import best_weights
from visionattn.runs.state import running
from visionattn.tasks import load_config, run_config, task_of
from visionattn.tasks.base import Dataset
from visionattn.tasks.batch import GappedDataset


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        run: run folder.
        best: `metric`, `value` and `epoch` of the best checkpoint.
        metrics: all validation metrics of that checkpoint.
    """

    run: Path
    best: dict[str, Any]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Prepared:
    """Everything built before the first step.

    Attributes:
        setup: what is trained.
        checked: its data.
        weights: the line that reports which weights were loaded.
        choices: settings that the user left open.
    """

    setup: Setup
    checked: CheckedData
    weights: str
    choices: list[Choice]


@overload
def train(
    config: RunConfig | str | Path | None = ...,
    *,
    resume: str | Path | None = ...,
    dry_run: Literal[False] = ...,
    strict: bool = ...,
    console: Console | None = ...,
    **overrides: Any,
) -> TrainResult: ...
@overload
def train(
    config: RunConfig | str | Path | None = ...,
    *,
    resume: str | Path | None = ...,
    dry_run: bool,
    strict: bool = ...,
    console: Console | None = ...,
    **overrides: Any,
) -> TrainResult | None: ...
def train(
    config: RunConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    dry_run: bool = False,
    strict: bool = False,
    console: Console | None = None,
    **overrides: Any,
) -> TrainResult | None:
    """Train a model and evaluate it.

    Args:
        config: a config, or the path or name of one; None for the defaults.
        resume: run folder to resume; that of a fold which has not begun is started.
        dry_run: build everything and run one step, writing nothing; returns None.
        strict: warnings of the data check stop.
        console: where progress is printed.
        **overrides: settings by dotted key, for example `**{"train.epochs": 3}`.

    Returns:
        The result, on the first process.

    Raises:
        UserError: a mistake or a circumstance that the user can fix; see its `code`.
        Interrupted: Ctrl-C, SIGTERM or train.save_signal, after saving.
    """
    folder = RunFolder.open(Path(resume)) if resume is not None else None
    resumed = folder if folder is not None and folder.begun else None
    config = complete_config(config, folder, overrides)
    task = task_of(config)
    task.check_names(config)
    require_optimizer(config.optim, shard=config.train.shard)
    require_packages(config.log)
    signals = stop_signals(config.train.save_signal)
    with ExitStack() as stack:
        stack.enter_context(interrupting(signals))
        accelerator = stack.enter_context(open_accelerator(config.train, leaves_unused=task.leaves_unused))
        stack.enter_context(deterministic(config.train.deterministic))
        processes = Processes(accelerator, config.train.process_timeout)
        console = console or Console() if processes.is_main else Console(quiet=True)
        checkpoint = None if resumed is None or dry_run else _hold(resumed, config, processes, console, stack)
        prepared = _prepare(config, resumed, accelerator, processes, console, strict=strict, keep=not dry_run)
        if dry_run:
            _dry_run(prepared, accelerator, processes, console)
            return None
        run = resumed or _create_run(prepared, folder, processes, stack)
        facts = {} if resumed else {**environment(), **_data_facts(prepared), "device": str(accelerator.device)}
        stack.enter_context(running(run, console, rank=processes.rank, signals=signals, **facts))
        trainer = _start(prepared, run, checkpoint, resumed is not None, accelerator, processes, console)
        if processes.is_main:
            pictures = task.pictures(prepared.setup.target)
            trainer.trackers = stack.enter_context(tracking(run, trainer.config, task.display, pictures, console, trainer.step))
            if resumed is not None:
                run.rewind_metrics(trainer.step)
        trainer.fit()
        result = _finish(trainer, prepared, console) if processes.is_main else None
        processes.wait()
        return result


# ---------------------------------------------------------------- prepare


def complete_config(config: RunConfig | str | Path | None, folder: RunFolder | None, overrides: dict[str, Any]) -> RunConfig:
    """The config that a run is trained with.

    Args:
        folder: its folder, if it has one already.

    Raises:
        UserError: VA-C001 to VA-C006; VA-C010, it differs from that of a run that has begun.
    """
    if config is None or isinstance(config, (str, Path)):
        settings = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
        config = run_config(folder.path / "config.yaml", settings) if folder and config is None else load_config(config, settings)
    elif overrides:
        raise TypeError("overrides go with the name or path of a config; a RunConfig is complete")
    if folder is None or not folder.begun:
        return with_weights(config)
    complete = with_choices_of(folder, with_weights(config))
    require_same_config(folder, complete)
    return complete


def _prepare(
    config: RunConfig,
    resumed: RunFolder | None,
    accelerator: Accelerator,
    processes: Processes,
    console: Console,
    *,
    strict: bool,
    keep: bool,
) -> Prepared:
    """Check the data, build the model and the objective, load initial weights; an error on one process stops all."""
    task = task_of(config)

    def check() -> CheckedData:
        checked = check_data(task, config, console, strict=strict, keep=keep)
        if resumed is not None:
            require_same_target(resumed, checked.target)
            checked = same_data(resumed, checked)
        require_batches(len(checked.data.train), samples(checked), processes.world)
        return checked

    def samples(checked: CheckedData) -> int:
        """Samples of a step on each process."""
        train = config.train
        if train.batch_size == "auto":
            return samples_per_step(config, len(checked.data.train), processes.world)
        return train.batch_size * train.accum

    def statistics(checked: CheckedData) -> tuple[RunConfig, Statistics | None]:
        if resumed is None:
            return with_statistics(checked.config, checked.data.train)
        return without_statistics(checked.config), None

    if resumed is None:  # before the data are decoded, so that it is known soon whether they can be downloaded
        processes.together(lambda: fetch_published(task, config, console), main_first=True)
    checked = processes.together(check, main_first=True)  # the others find what was decoded in the cache
    config, found = processes.from_main(processes.together(lambda: statistics(checked) if processes.is_main else None)) or (config, None)
    print_statistics(found, len(checked.data.train), console)
    batch, size = samples(checked) * processes.world, len(checked.data.train)
    config, choices = processes.together(lambda: choose(task, config, checked.target, checked.report, samples=size, batch=batch))
    if config.train.batch_size == "auto":
        whole = with_batch(config, samples(checked), 1)
        trial = processes.together(lambda: _build(whole, checked, [], resumed, Console(quiet=True)), main_first=True)
        config = fit_batch(trial.setup, accelerator, processes)
        del trial
        console.field("batch", _found_batch(config, accelerator, processes))
    # Weights that were downloaded are there for the others.
    prepared = processes.together(lambda: _build(config, checked, choices, resumed, console), main_first=True)
    set_seed(derive_seed(config.seed, 1 + processes.rank))  # dropout differs between processes
    return prepared


def _build(config: RunConfig, checked: CheckedData, choices: list[Choice], resumed: RunFolder | None, console: Console) -> Prepared:
    """The model with initial weights, the objective and the samples, a function of the config and the data alone."""
    task = task_of(config)
    set_seed(config.seed)
    model = task.build_model(config, checked.target)
    weights = "" if resumed is not None else load_initial_weights(task, model, config, console)
    freeze(model, config.train.frozen)
    train_set: Dataset = task.train_dataset(config, model, checked.data, checked.report)
    val_set = task.eval_dataset(config, model, checked.data.val)
    objective = task.objective(config, checked.target, train_set)
    classes = task.sample_classes(config, train_set) if config.data.sampler == "balanced" else None
    if checked.gaps:
        train_set = GappedDataset(train_set, checked.gaps)
    setup = Setup(config, task, checked.target, model, objective, train_set, val_set, classes)
    return Prepared(setup, checked, weights, choices)


def _found_batch(config: RunConfig, accelerator: Accelerator, processes: Processes) -> str:
    """What train.batch_size=auto found."""
    train = config.train
    samples = f"{int(train.batch_size) * train.accum * processes.world} samples per step"
    what = "those of optim.lr_batch" if config.optim.lr_batch is not None else "the default"
    return f"auto: train.batch_size={train.batch_size} train.accum={train.accum} fits {accelerator.device}: {samples}, {what}"


def _hold(run: RunFolder, config: RunConfig, processes: Processes, console: Console, stack: ExitStack) -> Path | None:
    """Lock a run until the stack is left; returns the checkpoint to resume from.

    Raises:
        UserError: VA-R005, another process holds it; VA-W005, its checkpoints are damaged or gone; VA-C010, of other batches.
    """

    def find() -> Path | None:
        if not processes.is_main:
            return None
        stack.enter_context(run.locked())
        found = recover_checkpoints(run.checkpoints, console.warn)
        if found is not None:
            require_same_batch(found, config, processes.world)
        elif any(line["kind"] == "epoch" for line in run.read_metrics()):
            fix = "restore a copy of them, or start a new run"
            raise UserError("VA-W005", "the checkpoints of the run are gone", where=str(run.checkpoints), fix=fix)
        return found

    return processes.from_main(processes.together(find))


def runs_folder(config: RunConfig, data_name: str) -> Path:
    """The folder of all runs of a kind."""
    name = to_path(config.output.name) or file_name(f"{data_name}-{config.model.name}")
    return Path(to_path(config.output.dir)).expanduser() / name


def _create_run(prepared: Prepared, folder: RunFolder | None, processes: Processes, stack: ExitStack) -> RunFolder:
    """A new run folder, or the one of a fold, locked."""

    def create() -> Path | None:
        if not processes.is_main:
            return None
        run = folder or RunFolder.create(runs_folder(prepared.setup.config, prepared.checked.data.name))
        stack.enter_context(run.locked())
        return run.path

    path = processes.from_main(processes.together(create))
    assert path is not None
    return RunFolder(path)


def _data_facts(prepared: Prepared) -> dict[str, Any]:
    """What `run.json` knows of the data, to compare when the run resumes, and of the model, for the report."""
    checked, model = prepared.checked, prepared.setup.model
    return {
        "data": manifest_hash(checked.rows),
        "data_name": checked.data.name,
        "samples": {split.name: len(split) for split in checked.data.sets},
        "target": checked.target,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


# ---------------------------------------------------------------- run


def _start(
    prepared: Prepared,
    run: RunFolder,
    checkpoint: Path | None,
    resumed: bool,
    accelerator: Accelerator,
    processes: Processes,
    console: Console,
) -> Trainer:
    """Write what a run starts with, and bring the trainer to its first step."""
    setup, weights = prepared.setup, prepared.weights
    if processes.is_main:
        if not resumed:
            write_data(run.path / "data", setup.task, setup.config, setup.model, prepared.checked)
            atomic_write(run.path / "env.txt", diagnosis_text(diagnose(self_check=False)) + "\n")
        run.write_config(setup.config)
    trainer = Trainer(setup, run, accelerator, processes, console)
    trainer.unreadable = set(processes.from_main(run.read_state().get("unreadable", ())))
    if resumed and checkpoint is None:
        weights = load_initial_weights(setup.task, trainer.bare_model, setup.config, console)
    _print_start(trainer, run, weights, prepared.choices, resumed, checkpoint)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    return trainer


def _print_start(trainer: Trainer, run: RunFolder, weights: str, choices: list[Choice], resumed: bool, checkpoint: Path | None) -> None:
    setup, config, console = trainer.setup, trainer.config, trainer.console
    params = sum(parameter.numel() for parameter in setup.model.parameters())
    head = getattr(setup.model, "head", "")
    name = f"{config.model.name}, {head}" if isinstance(head, str) and head else config.model.name
    facts = [f"{params / 1e6:.2f} M parameters", setup.task.describe_input(config), setup.task.describe(config, setup.target)]
    about = "  ".join(filter(None, facts))
    console.field("model", f"{name}  {about}")
    if checkpoint is not None:
        epoch, step = divmod(read_meta(checkpoint)["step"], trainer.steps_per_epoch)
        restored = "weights, optimizer, EMA, random state, position"
        console.field("resume", f"{checkpoint.name}: epoch {epoch + 1} step {step}/{trainer.steps_per_epoch}: {restored}")
    else:
        if resumed:
            console.field("resume", "no checkpoint was saved yet: starting from the beginning")
        console.field("weights", weights)
        print_choices(choices, console)
    if config.train.frozen:
        console.field("frozen", frozen_text(setup.model, config.train.frozen))
    accelerator, train = trainer.accelerator, config.train
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    processes = f" x {trainer.processes.world}" if trainer.processes.world > 1 else ""
    batch = f"{train.batch_size}" + (f" x {train.accum}" if train.accum > 1 else "")
    speed = f"device {accelerator.device}{processes} ({precision})   batch {batch}   steps/epoch {trainer.steps_per_epoch}"
    console.field("run", f"{run.path}   seed {config.seed}   {speed}")


def _dry_run(prepared: Prepared, accelerator: Accelerator, processes: Processes, console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(prepared.setup, RunFolder(Path(folder)), accelerator, processes, console)
        loss, norm, _ = trainer.train_step(next(iter(trainer.train_loader)))
    steps = f"{trainer.total_steps} steps would follow"
    print_choices(prepared.choices, console)
    shown = "n/a (nothing was updated)" if loss is None else f"{loss:.3f}"
    console.field("dry run", f"one step: loss {shown}, gradient norm {norm:.2f}; {steps}. Nothing was written.")


# ---------------------------------------------------------------- finish


def _finish(trainer: Trainer, prepared: Prepared, console: Console) -> TrainResult:
    """Evaluate the best checkpoint once more and write the report."""
    setup, run, data = trainer.setup, trainer.run, prepared.checked.data
    config, task, target = setup.config, setup.task, setup.target
    best = trainer.best or {"metric": trainer.monitor, "value": None, "epoch": trainer.epochs}
    folder = run.checkpoints / ("best" if (run.checkpoints / "best").is_dir() else "last")
    model: Any = task.build_model(config, target)
    load_weights(model, folder)
    model.to(trainer.accelerator.device)
    loader = eval_loader(setup.val_set, task.eval_batch_size(config), worker_count(config.data))
    device, autocast = trainer.accelerator.device, trainer.accelerator.autocast
    evaluation = evaluate_model(task, config, target, model, setup.objective, loader, split="val", device=device, autocast=autocast)
    pictures, display, unit = task.pictures(target), task.display, task.unit
    save_evaluation(run.path / "eval" / "val", evaluation, pictures, setup.val_set, unit, weights=best_weights(run))
    print_evaluation(evaluation, display, unit, console)

    def text(value: float | None, decimals: int) -> str:
        return display.text(best["metric"], value, decimals)

    seconds = trainer.progress.elapsed
    bounds = evaluation.scores.intervals.get(best["metric"])
    interval = f", 95 % interval {text(bounds[0], 1)}-{text(bounds[1], 1)}" if bounds else ""
    summary = f"best {best['metric']} {text(best['value'], 2)} at epoch {best['epoch']:.4g} (val, {evaluation.count} {unit}s{interval})"
    if trainer.trackers is not None:
        trainer.trackers.log_best(evaluation.metrics, trainer.step)
    how = {"trained": trainer.trained, "ended": trainer.ended, "seconds": round(seconds, 1)}
    run.write_state("done", reason=None, best=best, metrics=evaluation_dict(evaluation)["metrics"], **how)
    report = report_run(run, task, config, target, model, evaluation, setup.val_set, trainer.accelerator.device, console)
    console.line(f"done in {duration(seconds)}.  {summary}")
    named = f"{typed(run.path)}{typed_plugins(config.plugins)}"
    console.line(f"next:  visionattn eval {named}{' --split test' if data.test is not None else ''}")
    console.line(f"       visionattn predict {named} --source FILE_OR_FOLDER")
    if "tensorboard" in config.log.to:
        console.line(f"       tensorboard --logdir {typed(run.path / 'tb')}")
    console.line(f"report {report}")
    return TrainResult(run.path, best, evaluation.metrics)
