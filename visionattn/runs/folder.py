"""A run folder: its lock, its state, its config and its metrics."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from visionattn.config.read import changed_values, to_yaml
from visionattn.config.schema import RunConfig
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, csv_text, sweep_temporary

SCHEMA = 1  # of metrics.jsonl
LIBRARIES = ("visionattn", "torch", "torchvision", "timm", "accelerate", "albumentations", "numpy", "pillow", "triton")


class RunFolder:
    """`<output.dir>/<name>/<nnn>`; the process that writes in it holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path) -> RunFolder:
        """Make the folder with the next free number below `parent`."""
        return cls._made(numbered_folder(parent))

    @classmethod
    def create_fold(cls, parent: Path, number: int, config: RunConfig) -> RunFolder:
        """Make the folder of a fold, which `train --resume` starts, with its config."""
        (parent / f"fold{number}").mkdir(exist_ok=True)
        run = cls._made(parent / f"fold{number}")
        run.write_config(config)
        return run

    @classmethod
    def _made(cls, path: Path) -> RunFolder:
        for name in ("data", "checkpoints"):
            (path / name).mkdir(exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path, weights: Sequence[str] = ()) -> RunFolder:
        """An existing run folder. It may come from somebody else: nothing in it leads out of it.

        Args:
            weights: names of weights, one of which may be meant.

        Raises:
            UserError: VA-R003, no run there; VA-R008, a part of it is a link, a pipe or a device.
        """
        if not (path / "config.yaml").is_file():
            siblings = [str(item.parent) for item in path.parent.glob("*/config.yaml")] if path.parent.is_dir() else []
            inside = [str(item.parent) for item in sorted(path.glob("*/config.yaml"))] if path.is_dir() else []
            fix = f"Did you mean {inside[-1]}?" if inside else did_you_mean(str(path), [*siblings, *weights])
            fix = fix or "give a folder that visionattn train has made: runs/<name>/<nnn>"
            why = ", nor the name of weights" if weights else ": it has no config.yaml"
            fix += "\nList weights: visionattn weights list" if weights else ""
            raise UserError("VA-R003", f'"{path}" is not a run folder{why}', fix=fix, exit_code=2)
        _require_plain(path)
        return cls(path)

    @property
    def begun(self) -> bool:
        """Whether a job has written in it; the folders of folds are made before."""
        return any((self.path / name).exists() for name in ("run.json", "metrics.jsonl")) or any(self.checkpoints.glob("*"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the system releases the lock when this process ends, killed or not.

        Raises:
            UserError: VA-R005, another process holds it; VA-R007, its file system keeps no locks.
        """
        lock = FileLock(self.path / ".lock", preserve_lock_file=True)
        try:
            lock.acquire(timeout=0)
        except NotImplementedError as error:
            fix = "output.dir=FOLDER on another disk"
            raise UserError("VA-R007", "the file system keeps no locks", where=str(self.path), why=str(error), fix=fix) from error
        except Timeout:
            state = self.read_state()
            raise UserError(
                "VA-R005",
                f"the run is in use by process {state.get('pid', '?')} on {state.get('host', '?')}",
                where=str(self.path),
                fix="wait for it, or stop it",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def write_config(self, config: RunConfig) -> None:
        """Write `config.yaml`, which repeats the run, and `config.changed.yaml`, only what differs from the defaults."""
        atomic_write(self.path / "config.changed.yaml", to_yaml(changed_values(config)))
        atomic_write(self.path / "config.yaml", to_yaml(config.model_dump(mode="json")))

    def read_state(self) -> dict[str, Any]:
        """The content of `run.json`; empty if there is none, or a damaged one."""
        try:
            content = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_state(self, state: str, **facts: Any) -> None:
        """Update `run.json`.

        Args:
            state: running, done, failed or interrupted.
            **facts: further entries, for example the `reason`, an error code.
        """
        now = _now()
        ended = {} if state == "running" else {"stopped": now}
        content = {**self.read_state(), "state": state, "updated": now, **ended, **facts}
        atomic_write(self.path / "run.json", json.dumps(content, indent=1))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, **line}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl` but one that a kill cut off."""
        path = self.path / "metrics.jsonl"
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after a step, before the run resumes from there."""
        lines = [line for line in self.read_metrics() if line["step"] <= step]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        sweep_temporary(self.path)

    def write_epoch_table(self) -> None:
        """Write `metrics.csv`, a row per epoch."""
        rows = [line for line in self.read_metrics() if line["kind"] == "epoch"]
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("schema", "kind")))
        atomic_write(self.path / "metrics.csv", csv_text(columns, [[row.get(column, "") for column in columns] for row in rows]))


def numbered_folder(parent: Path) -> Path:
    """Make the folder with the next free number below `parent`."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in parent.iterdir() if re.fullmatch(r"\d{3,}", path.name)), default=0)
    while True:
        try:
            (parent / f"{number:03d}").mkdir()
            return parent / f"{number:03d}"
        except FileExistsError:  # another process took it
            number += 1


def fold_folders(path: Path) -> list[Path]:
    """The runs of `train --folds` below their common folder, in order; empty for any other folder.

    Raises:
        UserError: VA-R008, a part of them is a link, a pipe or a device.
    """
    if (path / "config.yaml").exists():
        return []
    found = {int(item.parent.name.removeprefix("fold")): item.parent for item in path.glob("fold[0-9]*/config.yaml") if _is_fold(item)}
    if found:
        _require_plain(path)
    return [found[number] for number in sorted(found)]


def _is_fold(config: Path) -> bool:
    return re.fullmatch(r"fold[1-9]\d*", config.parent.name) is not None


def process_facts() -> dict[str, Any]:
    """The process that holds a run, for `run.json`; for information only, since the system keeps the lock."""
    began = datetime.fromtimestamp(psutil.Process().create_time(), timezone.utc).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": began}


def _require_plain(run: Path) -> None:
    """Stop if a part of a run folder is not a regular file or folder.

    Raises:
        UserError: VA-R008.
    """
    folders = [run]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # a run that trains renames its checkpoints
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    kind = f"a link to {os.readlink(entry.path)}" if entry.is_symlink() else "a pipe, a socket or a device"
                    raise UserError(
                        "VA-R008",
                        f"{Path(entry.path).relative_to(run)} of the run is {kind}",
                        where=str(run),
                        why="a run is read, written and swept, and that must not reach out of its folder",
                        fix="replace it with a regular file or folder, if you trust what it leads to",
                        exit_code=2,
                    )


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for `run.json`."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "started": _now(),
        "versions": {"python": platform.python_version(), **versions},
        "machine": platform.platform(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of the checkout that this package is imported from, if there is one."""
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    found = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
