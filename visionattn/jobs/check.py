"""Check the data of a config, and preview it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.data.check import CheckReport
from visionattn.data.readers import LIMIT_SETTING
from visionattn.data.splits import ManifestRow
from visionattn.data.statistics import channels_of, with_statistics
from visionattn.errors import UserError
from visionattn.files import atomic_write, cache_folder, counted, csv_text, json_text
from visionattn.jobs.choices import choose, with_weights
from visionattn.names import file_name, shown
from visionattn.tasks import task_of
from visionattn.tasks.base import Target, Task


@dataclass(frozen=True)
class CheckedData:
    """Splits without unreadable samples, and what the check found.

    Attributes:
        config: with the number of channels that the images have.
        data: the task's splits.
        report: findings.
        target: meaning of a model's outputs for these data.
        rows: of manifest.csv.
        gaps: id by position of training samples that a resumed run began with and that are gone; stand-ins take their place.
    """

    config: RunConfig
    data: Any
    report: CheckReport
    target: Target
    rows: list[ManifestRow]
    gaps: dict[int, str] = field(default_factory=dict)


def check(config: RunConfig, *, console: Console | None = None, strict: bool = False) -> CheckReport:
    """Decode every file of data.root once and report what training would stumble over.

    Raises:
        UserError: the errors found; with `strict` also the first warning.
    """
    return check_data(task_of(config), config, console or Console(), strict=strict).report


def preview_data(config: RunConfig, path: Path, count: int) -> None:
    """Write a picture of augmented training samples.

    Raises:
        UserError: VA-D002, the task draws none; VA-D010, no sample could be read.
    """
    config, task = with_weights(config), task_of(config)
    config, data = read_data(task, config)
    config, _ = with_statistics(config, data.train)
    target = task.target(config, data)
    config, _ = choose(task, config, target, None, samples=len(data.train), batch=1)
    model = task.build_model(config, target)
    if not task.preview(config, model, data, data.train, count, path, augmented=True):
        raise UserError("VA-D002", f"task {task.name} has no preview of its data")


def check_data(task: Task, config: RunConfig, console: Console, *, strict: bool = False, keep: bool = True) -> CheckedData:
    """List, decode and label all samples.

    Args:
        strict: warnings stop.
        keep: remember decoded files in the user's cache, and write the findings where errors stop.

    Raises:
        UserError: the errors found, with the code of the first; with `strict` also the first warning.
    """
    config, data = read_data(task, config)
    with tempfile.TemporaryDirectory() as folder, console.progress("check", sum(len(part) for part in data.sets)) as bar:
        cache = cache_folder() / "check" if keep else Path(folder)
        report = task.check_data(config, data, cache_dir=cache, progress=bar.update)
    _stop_at_errors(report, data.name, console, keep=keep)
    data = task.usable_data(config, data, report)
    target = task.target(config, data)
    warnings = [note for note in report.notes if note.level == "warning"]
    about = task.describe(config, target)
    test = f", test {len(data.test):,}" if data.test is not None else ""
    console.field("task", task.name + (f" ({about})" if about else ""))
    console.field(
        "data", f"train {len(data.train):,} {task.unit}s, val {len(data.val):,}{test}   check: {counted(len(warnings), 'warning')}"
    )
    _print_notes(report, console)
    if strict and warnings:
        raise UserError(warnings[0].code or "VA-D002", warnings[0].text, why="--strict makes warnings of the data check stop")
    return CheckedData(config, data, report, target, task.manifest(data, report))


def read_data(task: Task, config: RunConfig) -> tuple[RunConfig, Any]:
    """List all samples; the config gets what follows from them: the number of channels, where it is auto.

    Raises:
        UserError: those of `task.read_data`.
    """
    data = task.read_data(config)
    if config.model.in_chans == "auto":
        found = 3 if data.train.images is None else channels_of(data.train.images)
        config = config.model_copy(update={"model": config.model.model_copy(update={"in_chans": found})})
        if found != 3:  # what they are loaded with unless told
            data = task.read_data(config)
    return task.with_data(config, data), data


def write_data(folder: Path, task: Task, config: RunConfig, model: Any, checked: CheckedData) -> None:
    """Write the run's `data/`: classes, manifest, findings, and pictures of both splits as the network sees them."""
    data = checked.data
    if "classes" in checked.target:
        atomic_write(folder / "classes.txt", "".join(f"{shown(name)}\n" for name in checked.target["classes"]))
    atomic_write(folder / "manifest.csv", csv_text(ManifestRow._fields, checked.rows))
    atomic_write(folder / "check.json", json_text(checked.report.as_dict()))
    task.preview(config, model, data, data.train, 24, folder / "preview_train.png", augmented=True)
    task.preview(config, model, data, data.val, 24, folder / "preview_val.png", augmented=False)


def _stop_at_errors(report: CheckReport, name: str, console: Console, *, keep: bool) -> None:
    """Stop with all errors at once, after the other findings were printed."""
    errors = [note for note in report.notes if note.level == "error"]
    if not errors:
        return
    _print_notes(report, console)
    if keep:
        path = Path(file_name(name, "-check.json"))
        atomic_write(path, json_text(report.as_dict()))
        console.field("", f"full list: {path}")
    count = sum(note.level == "warning" for note in report.notes)
    what = f"the data check found {counted(len(errors), 'error')} and {counted(count, 'warning')}"
    limits = [int(reason.rpartition(LIMIT_SETTING)[2]) for reason in report.too_large.values() if LIMIT_SETTING in reason]
    fix = f"if you trust all of the large files: {LIMIT_SETTING}{max(limits)}" if len(limits) > 1 else ""
    raise UserError(errors[0].code, what, where="\n".join(f"{note.code}  {note.text}" for note in errors), fix=fix)


def _print_notes(report: CheckReport, console: Console) -> None:
    """Print information and warnings; errors are reported by what stops at them."""
    for note in report.notes:
        if note.level == "info":
            console.field("", note.text)
        elif note.level == "warning":
            console.warn(" ".join(filter(None, (note.code, note.text))))
