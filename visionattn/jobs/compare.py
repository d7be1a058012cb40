"""Put runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import shown
from visionattn.report.compare import Comparison, write_comparison
from visionattn.report.summary import RunSummary
from visionattn.runs.folder import RunFolder, fold_folders
from visionattn.tasks import name_plugins, run_config, task_of

_COLUMNS = 4  # metrics on the terminal


def compare(
    runs: Sequence[str | Path], *, html: str | Path | None = None, settings: Sequence[str] = (), console: Console | None = None
) -> Comparison:
    """Compare runs: metrics with intervals, settings that differ, curves, time and parameters. Nothing is computed anew.

    Args:
        runs: run folders; that of `train --folds` stands for its folds.
        html: new file for a page with curves.
        settings: `plugins=[...]` of runs with code of the user's.
        console: where the tables are printed.

    Raises:
        UserError: VA-C005, fewer than two runs; VA-R003, VA-R008, no run there; VA-R007, the file exists; VA-C001 to VA-C006, its config.
    """
    console = console or Console()
    rest = name_plugins(settings)
    if rest:
        raise UserError("VA-C001", f'compare takes no settings, got "{shown(rest[0])}"', fix="leave it out")
    folders = [folder for run in runs for folder in fold_folders(Path(run)) or [Path(run)]]
    if len(folders) < 2:
        what = f"a comparison needs two runs or more, got {counted(len(folders), 'run')}"
        raise UserError("VA-C005", what, fix="visionattn compare RUN RUN")
    page = None if html is None else Path(html).expanduser()
    if page is not None and page.exists():
        raise UserError("VA-R007", f"{shown(str(page))} exists already", fix="another --html FILE, or remove it")
    comparison = Comparison([_summary(folder) for folder in folders])
    _print(comparison, console)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(page, comparison)
        console.field("written", str(page))
    return comparison


def _summary(folder: Path) -> RunSummary:
    run = RunFolder.open(folder)
    config = run_config(folder / "config.yaml")
    return RunSummary.of(run, config, task_of(config))


def _print(comparison: Comparison, console: Console) -> None:
    """Print the tables."""
    metrics = comparison.metrics
    console.table(*comparison.results([*metrics[:_COLUMNS], *(["loss"] if "loss" in metrics[_COLUMNS:] else [])]))
    if settings := comparison.settings:
        console.line()
        columns = ["setting", *(str(place) for place in range(1, len(comparison.runs) + 1))]
        console.table(columns, [[key, *values] for key, values in settings.items()])
    console.line()
    for note in comparison.notes():
        console.warn(note)
    console.line(comparison.summary())
