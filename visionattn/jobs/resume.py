"""What a run may change when it resumes, and what it must find again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.data.splits import ManifestRow, manifest_hash
from visionattn.engine.batch_size import with_batch
from visionattn.errors import UserError
from visionattn.files import csv_text
from visionattn.jobs.check import CheckedData
from visionattn.runs.checkpoint import read_meta
from visionattn.runs.folder import RunFolder
from visionattn.runs.load import first_names
from visionattn.tasks import run_config
from visionattn.tasks.base import Target

# Settings that may differ when a run resumes: they do not affect what is computed, or only for how long, or it is checked whether
# they do: the data by their content, batch and accumulation by their product.
RESUMABLE_KEYS = (
    "train.epochs",
    "train.steps",
    "train.max_time",
    "train.patience",
    "train.min_delta",
    "train.batch_size",
    "train.accum",
    "train.save_every",
    "train.save_signal",
    "train.on_nan",
    "train.nan_limit",
    "train.process_timeout",
    "train.device",
    "data.root",
    "data.workers",
    "data.cache",
    "data.on_error",
    "log",
    "output",
    "eval.batch_size",
)


def with_choices_of(run: RunFolder, config: RunConfig) -> RunConfig:
    """The config in which auto is what it meant when the run began."""
    before = run_config(run.path / "config.yaml")
    if config.train.batch_size == "auto":
        config = with_batch(config, int(before.train.batch_size), before.train.accum)
    values = _filled(config.model_dump(mode="json"), before.model_dump(mode="json"))
    return type(config).model_validate(values)


def _filled(after: Any, before: Any) -> Any:
    if isinstance(after, dict) and isinstance(before, dict):
        return {key: _filled(value, before.get(key, value)) for key, value in after.items()}
    return before if after == "auto" else after


def require_same_config(run: RunFolder, after: RunConfig) -> None:
    """Stop if a setting that affects the result differs from those the run started with.

    Raises:
        UserError: VA-C010 with all that differ.
    """
    before = run_config(run.path / "config.yaml")
    changes = _changes(before.model_dump(mode="json"), after.model_dump(mode="json"), "")
    refused = [line for key, line in changes if not any(key == free or key.startswith(f"{free}.") for free in RESUMABLE_KEYS)]
    if refused:
        raise UserError(
            "VA-C010",
            "a run resumes only with the settings it started with\n  " + "\n  ".join(refused),
            where=str(run.path / "config.yaml"),
            fix=f"leave them out, or start a new run; these may change: {', '.join(RESUMABLE_KEYS)}",
        )


def require_same_target(run: RunFolder, target: Target) -> None:
    """Stop if outputs of the model would mean something else than when the run started.

    Raises:
        UserError: VA-C010.
    """
    known = run.read_state().get("target")
    if known is None or known == json.loads(json.dumps(target)):  # which makes lists of tuples
        return
    before, after = (kept.get("classes", []) if isinstance(kept, dict) else [] for kept in (known, target))
    what = "the meaning of the outputs changed since the run started"
    if before != after:
        order = "order of the classes" if sorted(before) == sorted(after) else "classes"
        what = f"the {order} changed since the run started: {first_names(before)} -> {first_names(after)}"
    raise UserError("VA-C010", what, where=str(run.path / "data"), fix="restore classes.txt or data.classes, or start a new run")


def require_same_batch(checkpoint: Path, config: RunConfig, processes: int) -> None:
    """Stop if a step has another number of samples than those before: the position of a run is counted in steps.

    Raises:
        UserError: VA-C010, with a batch size that keeps the number if there is one.
    """
    meta = read_meta(checkpoint)
    before, after = meta.get("samples_per_step"), int(config.train.batch_size) * config.train.accum * processes
    if before is None or before == after:
        return
    share, rest = divmod(before, config.train.accum * processes)
    keep = f"train.batch_size={share}" if share and not rest else f"start {meta.get('processes')} processes, as before"
    raise UserError(
        "VA-C010",
        f"a step of the run has {before} samples, now it would have {after}",
        where=str(checkpoint),
        why=f"train.batch_size {config.train.batch_size} x train.accum {config.train.accum} x {processes} processes",
        fix=keep,
    )


def same_data(run: RunFolder, checked: CheckedData) -> CheckedData:
    """The data of a run, where samples may be missing that the run itself listed as unreadable.

    Such a training sample leaves a gap, so that all others keep their place in the order.

    Raises:
        UserError: VA-C010, with what differs.
    """
    state, path = run.read_state(), run.path / "data" / "manifest.csv"
    known = state.get("data")
    if known is None or known == manifest_hash(checked.rows):
        return checked
    before, after = _read_manifest(path), _as_written(checked.rows)
    listed = {name for (name,) in _as_written([(name,) for name in state.get("unreadable", ())])}
    now, then = set(after), set(before)
    gone = {row[0] for row in before if row not in now}
    new = [row[0] for row in after if row not in then]
    if not before or new or gone - listed or [row for row in before if row in now] != after:
        differences = [f"- {name}" for name in sorted(gone - listed)] + [f"+ {name}" for name in new]
        raise UserError(
            "VA-C010",
            "the data changed since the run started",
            where=str(path),
            why="\n".join([f"manifest hash {manifest_hash(checked.rows)}, at the start {known}", *differences[:6]]),
            fix="restore the files, or start a new run",
        )
    return replace(checked, **_with_gaps(checked.data, [row for row in before if row[2] == "train"], gone))


def _with_gaps(data: Any, rows: Sequence[tuple[str, ...]], gone: set[str]) -> dict[str, Any]:
    """Data whose training set has a stand-in of the same label at each gap, and the gaps, by position.

    Args:
        rows: of the manifest that the run began with: path, label, ...
        gone: paths that are not there any more.
    """
    place = {name: index for index, (name,) in enumerate(_as_written([(name,) for name in data.train.ids]))}
    by_label = {row[1]: place[row[0]] for row in rows if row[0] not in gone}
    indices = [by_label.get(row[1], 0) if row[0] in gone else place[row[0]] for row in rows]
    gaps = {index: row[0] for index, row in enumerate(rows) if row[0] in gone}
    return {"data": replace(data, train=data.train.take(indices)), "gaps": gaps}


def _as_written(rows: Iterable[Sequence[Any]]) -> list[tuple[str, ...]]:
    """Rows as a CSV file has them, in which odd characters are escapes."""
    return [tuple(row) for row in csv.reader(io.StringIO(csv_text([], rows)))][1:]


def _read_manifest(path: Path) -> list[tuple[str, ...]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [tuple(row) for row in csv.reader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return rows[1:] if rows and rows[0] == ManifestRow._fields else []


def _changes(before: Any, after: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [item for name in keys for item in _changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)]
    return [] if before == after else [(key, f"{key}: {before} -> {after}")]
