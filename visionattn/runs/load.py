"""Load a model to use it: from a run, a checkpoint, published weights by name, or a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.errors import UserError
from visionattn.models.weights.download import Report
from visionattn.runs.checkpoint import latest_checkpoint, load_weights, missing_checkpoint, read_meta, read_while_written
from visionattn.runs.folder import RunFolder
from visionattn.tasks import TASKS, saved_config, task_of
from visionattn.tasks.base import Target, Task

# Keys that may change on a trained model: they affect neither the network nor the meaning of its outputs.
CHANGEABLE = ("eval", "data", "augment.resize", "train.device", "train.precision")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with everything its use needs.

    Attributes:
        task: its task.
        config: the run's config, or the defaults with the model of published weights.
        model: a backbone with a head.
        target: meaning of the outputs.
        run: run folder, if the source is in one.
    """

    task: Task
    config: RunConfig
    model: Any
    target: Target
    run: RunFolder | None = None

    def with_config(self, config: RunConfig) -> LoadedModel:
        """The same model with other settings."""
        return replace(self, config=config)


def load_model(source: str | Path, report: Report | None = None) -> LoadedModel:
    """Load the model of a run folder, of a checkpoint folder or a weights file in one, of published or imported weights by
    name (`swin_tiny.in1k`, `swin_tiny.upernet_ade20k`), or of a file that a task recognises.

    Nothing is written, and no code is imported that the source names.

    Args:
        report: called with lines about downloads.

    Raises:
        UserError: VA-R003, no run or checkpoint there; VA-R008, a run with parts outside of it; VA-C006, a run with code of its own
            that is not imported yet; VA-W001 to VA-W007.
    """
    path, name = Path(source), None
    if not path.exists() or (path.is_file() and not (path.parent / "meta.json").is_file()):
        for task in TASKS.values():
            if (published := task.open_published(source, report)) is not None:
                return LoadedModel(task, published.config, published.model.eval(), published.target)
    if path.is_file():
        path, name = path.parent, path.name
    if (path / "meta.json").is_file():
        folder = path.resolve().parent.parent
        run = RunFolder.open(folder) if (folder / "config.yaml").is_file() else None
        return read_while_written(path, lambda: _load_checkpoint(path, name, run))
    run = RunFolder.open(path)
    checkpoint = best_checkpoint(run)
    return read_while_written(checkpoint, lambda: _load_checkpoint(checkpoint, name, run))


def _load_checkpoint(checkpoint: Path, name: str | None, run: RunFolder | None) -> LoadedModel:
    meta = read_meta(checkpoint)
    config = saved_config(meta.get("config"))
    task, target = task_of(config), target_of(meta)
    try:
        model: Any = task.build_model(config, target)
    except (KeyError, TypeError, AttributeError) as error:  # the target is whatever the file says
        why = f"{type(error).__name__}: {error}"
        raise UserError("VA-W005", "meta.json of the checkpoint describes no model", where=str(checkpoint), why=why) from error
    load_weights(model, checkpoint, name)
    return LoadedModel(task, config, model.eval(), target, run)


def config_of_run(path: Path) -> RunConfig:
    """The config of a run folder, or of a checkpoint folder in one.

    Raises:
        UserError: VA-R003, VA-R008, VA-W005, VA-W006; VA-C006, code of its own that is not imported yet.
    """
    checkpoint = path if (path / "meta.json").is_file() else best_checkpoint(RunFolder.open(path))
    return saved_config(read_while_written(checkpoint, lambda: read_meta(checkpoint)).get("config"))


def target_of(meta: dict[str, Any]) -> Target:
    """Meaning of the outputs of a checkpoint."""
    return meta["target"] if "target" in meta else {key: meta[key] for key in ("classes", "palette") if key in meta}


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
