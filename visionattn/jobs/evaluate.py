"""Evaluate a run, a checkpoint or published weights on a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionattn.console import Console
from visionattn.data.images.layouts import SPLITS
from visionattn.data.loading import eval_loader, worker_count
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.engine.evaluate import evaluate_model
from visionattn.errors import UserError, did_you_mean
from visionattn.report.tables import print_evaluation, save_evaluation
from visionattn.runs.load import CHANGEABLE, load_model
from visionattn.tasks import change_config, name_plugins
from visionattn.tasks.base import Evaluation


def evaluate(
    source: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    batch_size: int | None = None,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Metrics of a run or a checkpoint; preprocessing, target and model come from it.

    The result is printed. With the data and the settings of the run itself it is also written to `eval/<split>/` in its folder; if
    that is not possible, a line says so.

    Args:
        source: see `load_model`.
        data: other data than the run's.
        split: train, val or test.
        batch_size: samples per step; default as in the run.
        settings: `key=value` strings that differ from the run, of the keys in `CHANGEABLE`: `eval.flips=both`.
        console: where progress and the result are printed.

    Raises:
        UserError: VA-R003, VA-W001 to VA-W007 for the source; VA-D001, VA-D002, VA-M003 for the data; VA-C001, VA-C002 for the settings;
            VA-R001, out of memory; VA-R009, a loader process ended.
    """
    if split not in SPLITS:  # also a part of a path
        raise UserError("VA-D002", f'no split "{split}"', why=f"found: {', '.join(SPLITS)}", fix=did_you_mean(split, SPLITS))
    console = console or Console()
    settings = name_plugins(settings)
    loaded = load_model(source, lambda text: console.field("", text))
    task, target, model = loaded.task, loaded.target, loaded.model
    config = loaded.config.model_copy(update={"train": inference_settings(loaded.config.train, console.warn)})
    config = change_config(config, settings, CHANGEABLE)
    config = config.model_copy(update={"data": (config.data if data is None else config.data.at(str(data))).read_once()})
    if not config.data.has_source:
        raise UserError("VA-D001", f"{source} has no data to evaluate on", fix="--data FOLDER")
    dataset = task.eval_dataset(config, model, task.read_split(config, split, target))
    objective = task.objective(config, target, dataset)
    loader = eval_loader(dataset, batch_size or task.eval_batch_size(config), worker_count(config.data), warn=console.warn)
    with open_accelerator(config.train) as accelerator:
        model.to(accelerator.device)
        device, autocast = accelerator.device, accelerator.autocast
        result = evaluate_model(
            task, config, target, model, objective, loader, split=split, device=device, autocast=autocast, console=console
        )
    print_evaluation(result, task.display, task.unit, console)
    if loaded.run is not None and data is None and not settings:
        folder = loaded.run.path / "eval" / split
        try:
            save_evaluation(folder, result, task.pictures(target), dataset, task.unit)
        except (OSError, UserError) as error:  # a disk that is full, or a run that lies where nothing can be written
            console.warn(f"not saved to {folder}: {error.what if isinstance(error, UserError) else error.strerror or error}")
    return result
