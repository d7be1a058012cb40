"""Evaluate a run, a checkpoint or published weights on a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.data.loading import eval_loader, worker_count
from visionattn.data.split_names import require_split
from visionattn.data.splits import Split
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.engine.evaluate import evaluate_model
from visionattn.errors import UserError
from visionattn.jobs.ensemble import Ensemble
from visionattn.jobs.report import report_run
from visionattn.names import typed
from visionattn.report.tables import print_evaluation, save_evaluation
from visionattn.runs.calibration import Calibration, with_calibration, write_calibration
from visionattn.runs.load import LoadedModel, best_weights, load_models
from visionattn.tasks import CHANGEABLE, change_config, name_plugins
from visionattn.tasks.base import Dataset, Display, Evaluation, Member, Metrics


def evaluate(
    source: str | Path | Sequence[str | Path],
    *,
    data: str | Path | None = None,
    split: str = "val",
    batch_size: int | None = None,
    settings: Sequence[str] = (),
    calibrate: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Measure a run or a checkpoint on a split; preprocessing, target and model come from it.

    The probabilities of several models are averaged. The result is printed. With the data, the settings and the best weights of the run
    itself it is also written to `eval/<split>/` in its folder, and that of the validation split to its report; if that is not possible,
    a line says so.

    Args:
        source: see `load_models`; the settings of the first of several are used for all.
        data: other data than the run's.
        split: train, val or test.
        batch_size: samples per step; default as in the run.
        settings: `key=value` strings that differ from the run, of the keys in `CHANGEABLE`: `eval.flips=both`.
        calibrate: first fit what the task can fit to the validation split of one run (a temperature, or thresholds), and write it to
            `calibration.json`, which `evaluate` and `predict` use from then on.
        console: where progress and the result are printed.

    Raises:
        UserError: VA-R003, VA-W001 to VA-W007, VA-M004 for the source; VA-D001, VA-D002, VA-M003 for the data; VA-C001, VA-C002 for the
            settings, for runs without common data and for what cannot be calibrated; VA-D005, a split that determines no calibration;
            VA-R001, out of memory; VA-R009, a loader process ended.
    """
    require_split(split)  # also a part of a path
    console = console or Console()
    settings = name_plugins(settings)
    fitted = _calibrate(source, data, split, batch_size, settings, console) if calibrate else None
    models = load_models(source, lambda text: console.field("", text))
    task, target = models[0].task, models[0].target
    result, dataset = measure(models, _name(source), data, split, batch_size, settings, console)
    print_evaluation(result, task.display, task.unit, console)
    if fitted is not None:
        console.field("calibrated", _changes(task.display, fitted.before, result.metrics))
    home = _home(source, models)
    if home is not None and data is None and not _change_result(settings):
        folder = home / "eval" / split
        try:
            save_evaluation(
                folder, result, task.pictures(target), dataset, task.unit, weights=models[0].weights if len(models) == 1 else ""
            )
            run, model = models[0].run, models[0].model
            if split == "val" and run is not None and Path(_name(source)) == run.path:
                device = next(model.parameters()).device
                report = report_run(run, task, models[0].config, target, model, result, dataset, device, console)
                console.field("report", str(report))
        except (OSError, UserError) as error:  # a disk that is full, or a run that lies where nothing can be written
            console.warn(f"not saved to {folder}: {error.what if isinstance(error, UserError) else error.strerror or error}")
    return result


def measure(
    models: Sequence[LoadedModel],
    name: str,
    data: str | Path | None,
    split: str,
    batch_size: int | None,
    settings: Sequence[str],
    console: Console,
) -> tuple[Evaluation, Dataset]:
    """Evaluate models on a split of the data in their configs, or of `data`; also returns its samples.

    Raises:
        UserError: VA-D001, there are no data; as `evaluate`.
    """
    task, target = models[0].task, models[0].target
    train = inference_settings(models[0].config.train, console.warn)
    configs = [change_config(loaded.config.model_copy(update={"train": train}), settings, CHANGEABLE) for loaded in models]
    configs = [_with_data(config, data) for config in configs]
    if not configs[0].data.has_source:
        raise UserError("VA-D001", f"{name} has no data to evaluate on", fix="--data FOLDER")
    splits = [task.read_split(config, split, target) for config in configs]
    _require_same_samples(configs, splits, split, task.unit)
    members = task.ensemble([Member(config, loaded.model) for config, loaded in zip(configs, models, strict=True)])
    datasets = [task.eval_dataset(config, model, part) for (config, model), part in zip(members, splits, strict=False)]  # or one of all
    ensemble, config = Ensemble.of(task, members, datasets), configs[0]
    objective = task.objective(config, target, datasets[0])
    loader = eval_loader(ensemble.dataset, batch_size or task.eval_batch_size(config), worker_count(config.data), warn=console.warn)
    with open_accelerator(config.train) as accelerator:
        device, autocast = accelerator.device, accelerator.autocast
        every = ensemble.to(device)
        predictor = ensemble.predictor(lambda member: task.predictor(member.config, target, member.model, device))
        result = evaluate_model(
            task,
            config,
            target,
            every,
            objective,
            loader,
            split=split,
            predictor=predictor,
            device=device,
            autocast=autocast,
            console=console,
        )
    return result, datasets[0]


def _calibrate(
    source: str | Path | Sequence[str | Path],
    data: str | Path | None,
    split: str,
    batch_size: int | None,
    settings: Sequence[str],
    console: Console,
) -> Calibration:
    """Fit what a task can fit to the validation split of a run, and write it there.

    Raises:
        UserError: VA-C002, several models, a model without a run, other data, another split or other settings; as `Task.calibrate`.
    """
    models = load_models(source, lambda text: console.field("", text), calibrated=False)
    run, name = models[0].run, _name(source)
    wrong = {
        "a calibration is of one run: each is calibrated on its own": len(models) > 1,
        "the model has no run in which a calibration could be kept": run is None,
        f"it is fitted to the validation split, not to {split}": split != "val",
        "it is fitted to the run's own data and settings": data is not None or _change_result(settings),
    }
    for reason in (reason for reason, holds in wrong.items() if holds):
        fix = f"visionattn eval {typed(models[0].run.path)} --calibrate" if models[0].run is not None else ""
        raise UserError("VA-C002", f"--calibrate: {reason}", fix=fix)
    assert run is not None
    task, (loaded,) = models[0].task, models
    before, _ = measure(models, name, None, "val", batch_size, settings, console)
    values = task.calibrate(loaded.config, loaded.target, before)
    fitted = Calibration(loaded.weights, before.count, values, before.metrics)
    with_calibration(loaded.config, run.path, fitted)  # what cannot be read again is not written
    write_calibration(run.path, fitted)
    return fitted


def _changes(display: Display, before: Metrics, after: Metrics) -> str:
    """The metrics that changed."""
    changes = []
    for key in (key for key, value in after.items() if before.get(key) != value):
        old, new = (display.text(key, metrics.get(key), 3 if key == "loss" else 2) for metrics in (before, after))
        changes.append(f"{display.metric_name(key)} {old} -> {new}")
    return ", ".join(changes) or "no metric changed"


def _with_data(config: RunConfig, data: str | Path | None) -> RunConfig:
    return config.model_copy(update={"data": (config.data if data is None else config.data.at(str(data))).read_once()})


def _require_same_samples(configs: Sequence[RunConfig], splits: Sequence[Split], split: str, unit: str) -> None:
    """Stop where models would be evaluated on different samples, which some of them were trained on.

    Raises:
        UserError: VA-C002.
    """
    kinds = [(config.data.root, part.ids) for config, part in zip(configs, splits, strict=True)]
    if all(kind == kinds[0] for kind in kinds):
        return
    folds = all(config.data.fold is not None for config in configs)
    why = "each fold was trained on what the others validate on" if folds else f"each of them names other data, or holds out other {unit}s"
    fix = f"--data FOLDER, with {unit}s that none of them was trained on"
    fix = f"--split test, if there is one\n{fix}\nthe figures of the folds are in folds.json of their folder" if folds else fix
    raise UserError("VA-C002", f"the runs have no common {split} split", why=why, fix=fix)


def _home(source: str | Path | Sequence[str | Path], models: Sequence[LoadedModel]) -> Path | None:
    """The folder of a run, or of folds, that an evaluation belongs to."""
    given = [source] if isinstance(source, (str, Path)) else list(source)
    if len(given) > 1:
        return None
    if len(models) > 1:
        return Path(given[0])
    run = models[0].run
    return run.path if run is not None and models[0].weights == best_weights(run) else None  # not that of another checkpoint


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return str(source if isinstance(source, (str, Path)) else source[0])


def _change_result(settings: Sequence[str]) -> bool:
    """Whether any of these settings changes what is computed."""
    return any(text.partition("=")[0].strip() != "train.device" for text in settings)
