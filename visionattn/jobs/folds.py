"""Cross-validation: a run per fold below one folder, and their mean and spread."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.files import atomic_write, csv_text, json_text
from visionattn.jobs.train import complete_config, runs_folder, train
from visionattn.names import shown
from visionattn.report.page import write_folds_page
from visionattn.runs.folder import RunFolder, fold_folders, numbered_folder
from visionattn.runs.state import resume_command
from visionattn.tasks import name_plugins, run_config, task_of
from visionattn.tasks.base import Display

# Trains the fold in a run folder, with `key=value` strings that differ from its config.
TrainFold = Callable[[Path, Sequence[str]], object]


@dataclass(frozen=True)
class FoldsResult:
    """Result of a cross-validation.

    Attributes:
        run: folder of the folds.
        folds: per fold `fold`, `run`, `epoch` of its best checkpoint, `count` of the samples it was validated on, and `metrics`.
        metrics: `mean` and `std` over the folds by metric; None where it is not defined.
    """

    run: Path
    folds: list[dict[str, Any]]
    metrics: dict[str, dict[str, float | None]]

    def as_dict(self) -> dict[str, Any]:
        """The object that `train --json` prints and `folds.json` holds."""
        return {"run": str(self.run), "folds": self.folds, "metrics": self.metrics}


def train_folds(
    config: RunConfig | str | Path | None = None,
    folds: int = 5,
    *,
    strict: bool = False,
    console: Console | None = None,
    train_fold: TrainFold | None = None,
    options: Sequence[str] = (),
    **overrides: Any,
) -> FoldsResult:
    """Cross-validate: for each fold of the training and validation samples, train on the others and validate on it.

    Args:
        config, strict, console, overrides: as in `train`.
        folds: number of folds.
        train_fold: trains one; default: `train` in this process.
        options: further words of the command that resumes, which is printed when a fold does not end.

    Raises:
        UserError: as `train`; VA-D003, the data have no such folds; VA-C002, of a task that draws none.
    """
    _require_one_process()
    config = complete_config(config, None, overrides)
    configs = [_with_fold(config, number, folds) for number in range(1, folds + 1)]
    name = _require_folds(configs)
    parent = numbered_folder(runs_folder(config, name))
    for number, fold in enumerate(configs, 1):
        RunFolder.create_fold(parent, number, fold)
    return resume_folds(parent, strict=strict, console=console, train_fold=train_fold, options=options)


def resume_folds(
    run: str | Path,
    *,
    settings: Sequence[str] = (),
    strict: bool = False,
    console: Console | None = None,
    train_fold: TrainFold | None = None,
    options: Sequence[str] = (),
) -> FoldsResult:
    """Train the folds that are not done; with settings, resume those that are done too.

    Args:
        run: folder of the folds.
        settings: `key=value` strings that differ from the folds' configs.
        strict, console, train_fold, options: as in `train_folds`.
    """
    _require_one_process()
    run, console = Path(run), console or Console()
    settings = name_plugins(settings)
    runs = _all_folds(run)

    def train_here(path: Path, settings: Sequence[str]) -> object:
        changed = run_config(path / "config.yaml", settings)
        return train(changed, resume=path, strict=strict, console=console)

    for number, fold in enumerate(runs, 1):
        if fold.read_state().get("state") == "done" and not settings:
            console.field("fold", f"{number} of {len(runs)}: done, {fold.path}")
            continue
        console.field("fold", f"{number} of {len(runs)}: {fold.path}")
        try:
            (train_fold or train_here)(fold.path, settings)
        except BaseException:
            console.field("", f"all folds resume with:  {resume_command(run, options)}")
            raise
    return _finish(run, runs, console)


# ---------------------------------------------------------------- prepare


def _require_one_process() -> None:
    """Stop within a launch: processes find each other once, and each fold is a launch of its own.

    Raises:
        UserError: VA-C002.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        fix = f"without the launcher: visionattn train --folds 5 --processes {world} ..."
        raise UserError("VA-C002", f"folds are trained one after the other, each by its own processes, not in a launch of {world}", fix=fix)


def _with_fold(config: RunConfig, number: int, folds: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": (number, folds), "val_fraction": None})})


def _require_folds(configs: Sequence[RunConfig]) -> str:
    """Check that the data have folds, before anything is written; returns the name of the data.

    Raises:
        UserError: VA-D001 to VA-D005; VA-C002, the task pays no regard to data.fold.
    """
    task = task_of(configs[0])
    first, second = (task.read_data(config) for config in configs[:2])
    if set(first.val.ids) & set(second.val.ids):
        why = "its read_data() has to use data.fold, for example with visionattn.data.splits.split_folds"
        raise UserError("VA-C002", f"the task {task.name} draws no folds of its data", why=why, fix="train without --folds")
    return str(first.name)


def _all_folds(run: Path) -> list[RunFolder]:
    """The folds below a folder; those that a kill left without a folder are made.

    Raises:
        UserError: VA-R003, no folds there.
    """
    found = fold_folders(run)
    if not found:
        fix = "give a folder that visionattn train --folds has made: runs/<name>/<nnn>"
        raise UserError("VA-R003", f'"{run}" has no folds', fix=fix, exit_code=2)
    config = run_config(found[0] / "config.yaml")
    if config.data.fold is None:
        fix = f"visionattn train --resume {shlex.quote(str(found[0]))}"
        raise UserError("VA-R003", f'"{found[0]}" is not a fold: data.fold is null', fix=fix, exit_code=2)
    for number in range(1, config.data.fold[1] + 1):
        if not (run / f"fold{number}" / "config.yaml").exists():
            RunFolder.create_fold(run, number, _with_fold(config, number, config.data.fold[1]))
    return [RunFolder.open(run / f"fold{number}") for number in range(1, config.data.fold[1] + 1)]


# ---------------------------------------------------------------- finish


def _finish(run: Path, runs: Sequence[RunFolder], console: Console) -> FoldsResult:
    """Write and print the table of the folds."""
    configs = [run_config(fold.path / "config.yaml") for fold in runs]
    display = task_of(configs[0]).display
    unit = task_of(configs[0]).unit
    rows = [_row(number, fold) for number, fold in enumerate(runs, 1)]
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    metrics = {name: _spread([row["metrics"].get(name) for row in rows]) for name in names}
    result = FoldsResult(run, rows, metrics)
    notes = _differences(configs)
    atomic_write(run / "folds.json", json_text({**result.as_dict(), "notes": notes}))
    lines = [[row["fold"], row["run"], row["epoch"], row["count"], *(row["metrics"].get(name, "") for name in names)] for row in rows]
    ends = [[kind, "", "", "", *(metrics[name][kind] for name in names)] for kind in ("mean", "std")]
    cells = [["" if value is None else value for value in line] for line in [*lines, *ends]]
    atomic_write(run / "folds.csv", csv_text(["fold", "run", "epoch", f"{unit}s", *names], cells))
    columns, table = _table(rows, metrics, [name for name in (*display.metrics, "loss") if name in names], display, unit)
    console.table(columns, table)
    for note in notes:
        console.warn(note)
    monitor = runs[0].read_state()["best"]["metric"]
    summary = _summary(monitor, metrics[monitor], display, len(rows))
    report = write_folds_page(run, summary, notes, columns, table, [fold.path.name for fold in runs], unit)
    console.line(f"done.  {summary}")
    console.line(f"next:  visionattn predict {shlex.quote(str(run))} --source FILE_OR_FOLDER")
    console.line(f"report {report}")
    return result


def _row(number: int, fold: RunFolder) -> dict[str, Any]:
    state = fold.read_state()
    evaluated = json.loads((fold.path / "eval" / "val" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "fold": number,
        "run": fold.path.name,
        "epoch": state["best"]["epoch"],
        "count": evaluated["count"],
        "metrics": evaluated["metrics"],
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the defined values."""
    defined = [value for value in values if value is not None]
    return {"mean": mean(defined) if defined else None, "std": stdev(defined) if len(defined) > 1 else None}


def _differences(configs: Sequence[RunConfig]) -> list[str]:
    """A line if folds were trained with different settings."""
    plain = [_with_fold(config, 1, 2).model_dump(mode="json") for config in configs]
    sections = sorted({name for other in plain[1:] for name, value in other.items() if value != plain[0][name]})
    return [f"the folds were trained with different settings: {', '.join(sections)}"] if sections else []


def _table(
    rows: Sequence[dict[str, Any]], metrics: dict[str, dict[str, float | None]], names: Sequence[str], display: Display, unit: str
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people: the metrics of a task's own choice."""
    columns = ["fold", f"{unit}s", "epoch", *map(display.metric_name, names)]
    table = [
        [str(row["fold"]), str(row["count"]), str(row["epoch"]), *(display.text(name, row["metrics"].get(name), 2) for name in names)]
        for row in rows
    ]
    table += [[kind, "", "", *(display.text(name, metrics[name][kind], 2) for name in names)] for kind in ("mean", "std")]
    return columns, table


def _summary(name: str, spread: dict[str, float | None], display: Display, count: int) -> str:
    middle, width = (display.text(name, spread[kind], 2) for kind in ("mean", "std"))
    return shown(f"{display.metric_name(name)} {middle}, standard deviation {width}, over {count} folds")
