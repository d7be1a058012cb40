"""Load a model to use it: from a run, a checkpoint, published weights by name, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.models.weights.download import Report
from visionattn.models.weights.hub import is_run_folder, model_folder
from visionattn.models.weights.records import published_names
from visionattn.names import shown, shown_lines, typed
from visionattn.runs.calibration import read_calibration, with_calibration
from visionattn.runs.checkpoint import (
    is_checkpoint,
    latest_checkpoint,
    load_weights,
    missing_checkpoint,
    read_meta,
    read_while_written,
    weights_name,
)
from visionattn.runs.exported import open_onnx, open_weights
from visionattn.runs.folder import RunFolder, fold_folders
from visionattn.tasks import TASKS, saved_config, saved_target, task_of
from visionattn.tasks.base import Target, Task


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with everything its use needs.

    Attributes:
        task: its task.
        config: the run's config, or the defaults with the model of published weights.
        model: a backbone with a head.
        target: meaning of the outputs.
        run: run folder, if the source is in one.
        weights: sha256 of the weights of a run.
    """

    task: Task
    config: RunConfig
    model: Any
    target: Target
    run: RunFolder | None = None
    weights: str = ""


def load_model(source: str | Path, report: Report | None = None, *, calibrated: bool = True) -> LoadedModel:
    """Load the model of a run folder, of a checkpoint folder or a weights file in one, of published or imported weights by
    name (`swin_tiny.in1k`, `swin_tiny.upernet_ade20k`), of the Hugging Face hub (`hf-hub:OWNER/NAME`) or a folder laid out as there,
    of an exported file, or of a file that a task recognises.

    Nothing is written, and no code is imported that the source names.

    Args:
        report: called with lines about downloads and calibrations.
        calibrated: whether the config has the settings that were fitted for these weights.

    Raises:
        UserError: VA-R003, no run or checkpoint there; VA-R007, a file that needs an extra; VA-R008, a run with parts outside of it;
            VA-C002, an exported program; VA-C006, a run with code of its own that is not imported yet; VA-W001 to VA-W007.
    """
    folder = model_folder(source, report)
    source, path, name = folder or source, folder or Path(source), None
    if path.is_file() and (exported := _open_exported(path)) is not None:
        return exported
    if not path.exists() or (path.is_file() and not (path.parent / "meta.json").is_file()) or (folder and not is_run_folder(folder)):
        for task in TASKS.values():
            if (published := task.open_published(source, report)) is not None:
                return LoadedModel(task, published.config, published.model.eval(), published.target)
    if path.is_file():
        path, name = path.parent, path.name
    if folder is not None:
        return read_while_written(path, lambda: _load_checkpoint(path, None, None))
    if (path / "meta.json").is_file():
        above = path.resolve().parent.parent
        run = RunFolder.open(above) if (above / "config.yaml").is_file() else None
        return _with_calibration(read_while_written(path, lambda: _load_checkpoint(path, name, run)), report, calibrated)
    run = RunFolder.open(path, () if path.exists() or len(path.parts) > 1 else published_names())
    checkpoint = best_checkpoint(run)
    return _with_calibration(read_while_written(checkpoint, lambda: _load_checkpoint(checkpoint, name, run)), report, calibrated)


def load_models(sources: str | Path | Sequence[str | Path], report: Report | None = None, *, calibrated: bool = True) -> list[LoadedModel]:
    """Load one model, or several with the same outputs; the folder of `train --folds` stands for its folds.

    Args:
        sources: see `load_model`; so are the others.

    Raises:
        UserError: as `load_model`; VA-M004, models of different tasks, or whose outputs mean different things.
    """
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    every: list[str | Path] = []
    for source in given:
        every += fold_folders(Path(source)) or [source]
    models = []
    for source in every:
        models.append(load_model(source, report, calibrated=calibrated))
        _require_same_outputs(models[0], models[-1], str(every[0]), str(source))
    if not models:
        raise TypeError("expected a run, a checkpoint, weights, or several of them")
    return models


def _require_same_outputs(first: LoadedModel, other: LoadedModel, name: str, other_name: str) -> None:
    """Stop if outputs of two models cannot be averaged.

    Raises:
        UserError: VA-M004.
    """
    what = ""
    known, found = (model.target.get("classes", model.target) for model in (first, other))
    if first.task.name != other.task.name:
        what = f"different tasks: {first.task.name} and {other.task.name}"
    elif known != found and isinstance(known, list) and isinstance(found, list):
        if sorted(known) == sorted(found):
            what = f"the same classes in another order: {first_names(known)}; {first_names(found)}"
        else:
            odd = [label for label in (*known, *found) if label not in known or label not in found]
            what = f"different classes: {first_names(odd)} only in one of them"
    elif known != found:
        what = "outputs of different meanings"
    if what:
        where = shown_lines(f"{name}\n{other_name}")
        raise UserError("VA-M004", f"the models cannot be averaged, they have {what}", where=where, fix="use them one at a time")


def first_names(names: Sequence[str]) -> str:
    """The first names of many, to show."""
    return shown(", ".join(names[:8])) + (", ..." if len(names) > 8 else "")


def _open_exported(path: Path) -> LoadedModel | None:
    """The model of an exported file; None if it is another kind of file.

    Raises:
        UserError: VA-C002, an exported program.
    """
    if path.suffix == ".pt2":
        what = f"{path.name} is an exported program, which is loaded by torch.export.load and not by visionattn"
        raise UserError("VA-C002", what, where=str(path), fix="use the run, or export it as onnx or safetensors")
    found = open_onnx(path) if path.suffix == ".onnx" else open_weights(path) if path.suffix == ".safetensors" else None
    if found is None:
        return None
    facts, model = found
    return LoadedModel(facts.task, facts.config, model.eval(), facts.target)


def _load_checkpoint(checkpoint: Path, name: str | None, run: RunFolder | None) -> LoadedModel:
    meta = read_meta(checkpoint)
    config = saved_config(meta.get("config"))
    task, target = task_of(config), target_of(meta)
    try:
        model: Any = task.build_model(config, saved_target(task, config, target))
    except (KeyError, TypeError, AttributeError) as error:  # the target is whatever the file says
        why = f"{type(error).__name__}: {error}"
        raise UserError("VA-W005", "the checkpoint describes no model", where=str(checkpoint), why=why) from error
    load_weights(model, checkpoint, name)
    return LoadedModel(task, config, model.eval(), target, run, meta["sha256"][name or weights_name(meta["sha256"])])


def _with_calibration(loaded: LoadedModel, report: Report | None, calibrated: bool) -> LoadedModel:
    """The model with what was fitted for its weights; that of other weights is reported."""
    if loaded.run is None or not calibrated:
        return loaded
    path = loaded.run.path
    calibration = read_calibration(path)
    if calibration is None:
        return loaded
    report = report or (lambda text: None)
    if calibration.weights != loaded.weights:
        report(f"calibration.json is of other weights, and not used; to fit it anew: visionattn eval {typed(path)} --calibrate")
        return loaded
    report(f"calibration.json: {calibration.text()}, fitted on {counted(calibration.count, 'validation sample')}")
    return replace(loaded, config=with_calibration(loaded.config, path, calibration))


def config_of_run(path: Path) -> RunConfig:
    """The config of a run folder, of a checkpoint folder in one, or of a folder that `visionattn push` wrote.

    Raises:
        UserError: VA-R003, VA-R008, VA-W005, VA-W006; VA-C006, code of its own that is not imported yet.
    """
    checkpoint = path if is_checkpoint(path) else best_checkpoint(RunFolder.open(path))
    return saved_config(read_while_written(checkpoint, lambda: read_meta(checkpoint)).get("config"))


def target_of(meta: dict[str, Any]) -> Target:
    """Meaning of the outputs of a checkpoint."""
    return meta["target"] if "target" in meta else {key: meta[key] for key in ("classes", "palette") if key in meta}


def best_weights(run: RunFolder) -> str:
    """sha256 of the weights that a run is used with.

    Raises:
        UserError: as `best_checkpoint`.
    """
    hashes = read_meta(best_checkpoint(run))["sha256"]
    return str(hashes[weights_name(hashes)])


def best_checkpoint(run: RunFolder) -> Path:
    """The checkpoint to use: the best one, or the latest while there is no best.

    Raises:
        UserError: VA-W005, all are damaged; VA-W006, none was saved yet.
    """
    best = run.checkpoints / "best"
    found = best if best.is_dir() else latest_checkpoint(run.checkpoints)
    if found is None:
        raise missing_checkpoint(run.checkpoints)
    return found
