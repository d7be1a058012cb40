"""Initial weights of a model: published, imported, of the Hugging Face hub, of a file, or of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.models import load_checkpoint
from visionattn.models.weights.download import Report, fetch
from visionattn.models.weights.hub import WEIGHTS, is_hub, is_run_folder, model_folder
from visionattn.models.weights.records import find_record
from visionattn.names import to_path
from visionattn.runs.checkpoint import read_weights, read_while_written
from visionattn.runs.folder import RunFolder
from visionattn.runs.load import best_checkpoint
from visionattn.tasks.base import Task


def fetch_published(task: Task, config: RunConfig, console: Console) -> None:
    """Download the published weights that a config names, if it names some.

    Raises:
        UserError: VA-W001, VA-W002, VA-R004.
    """
    if (record := task.published_weights(config)) is not None:
        fetch(record, report=_reporting(console))


def load_initial_weights(task: Task, model: Any, config: RunConfig, console: Console) -> str:
    """Load model.weights into a model and return the line that reports it.

    Raises:
        UserError: VA-W001 to VA-W007; VA-R003, a folder that is not a run; VA-R008, one with parts outside of it.
    """
    source = config.model.weights
    if source == "none":
        return "none: training from scratch"
    path = Path(to_path(source)).expanduser()
    record = task.published_weights(config)
    if record is None and (source == "pretrained" or (path.name == source and not path.suffix and not path.exists())):
        record = find_record(task.backbone_name(config), None if source == "pretrained" else source)  # raises with what there is
    if record is not None:
        file = fetch(record, report=_reporting(console))
        source = f"{record.name}  sha256 {file.sha256[:8]} ({file.checked})"
        report = load_checkpoint(model, file.path)
    elif (folder := model_folder(source if is_hub(source) else path, _reporting(console))) is not None:
        weights = read_weights(folder) if is_run_folder(folder) else folder / WEIGHTS
        report = load_checkpoint(model, weights)
    elif path.is_dir():
        checkpoint = path if (path / "meta.json").is_file() else best_checkpoint(RunFolder.open(path))
        report = load_checkpoint(model, read_while_written(checkpoint, lambda: read_weights(checkpoint)))
    else:
        report = load_checkpoint(model, path)
    if report.skipped:
        console.warn(f"VA-M003 {report.skipped[0]} ({report.matched} tensors loaded)")
    if report.not_finite:
        console.warn(f"VA-W005 {report.not_finite}")
    return f"{source}  {report.reason}"


def _reporting(console: Console) -> Report | None:
    """Where lines about a download go."""
    return None if console.quiet else lambda text: console.field("", text)
