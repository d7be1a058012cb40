"""A run folder: who writes in it, what was asked, and what came of it."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visionattn.config import AnyConfig, changed_values, to_yaml
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, sweep_temporary

SCHEMA = 1  # of metrics.jsonl
LIBRARIES = ("visionattn", "torch", "torchvision", "timm", "accelerate", "albumentations", "numpy", "pillow", "triton")


class RunFolder:
    """`<output.dir>/<name>/<nnn>`, locked by the process that writes in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path) -> RunFolder:
        """The next free number below `parent`, locked."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in parent.iterdir() if re.fullmatch(r"\d{3,}", path.name)), default=0)
        while True:
            try:
                (parent / f"{number:03d}").mkdir()
                break
            except FileExistsError:  # another process took it
                number += 1
        run = cls(parent / f"{number:03d}")
        run.lock()
        for name in ("data", "checkpoints"):
            (run.path / name).mkdir()
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            UserError: VA-R003, no run there.
        """
        if not (path / "config.yaml").is_file():
            siblings = [str(item.parent) for item in path.parent.glob("*/config.yaml")] if path.parent.is_dir() else []
            inside = [str(item.parent) for item in sorted(path.glob("*/config.yaml"))] if path.is_dir() else []
            fix = f"Did you mean {inside[-1]}?" if inside else did_you_mean(str(path), siblings)
            raise UserError("VA-R003", f'"{path}" is no run folder: it has no config.yaml', fix=fix, exit_code=2)
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Take the folder for this process.

        Raises:
            UserError: VA-R005, another process has it.
        """
        path = self.path / ".lock"
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        for _ in range(2):
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(content)
                return
            except FileExistsError:
                owner = _owner(path)
                if owner["host"] != socket.gethostname() or _alive(owner["pid"]):
                    raise UserError(
                        "VA-R005",
                        f"the run is in use by process {owner['pid']} on {owner['host']}",
                        where=str(self.path),
                        fix=f"wait for it or stop it; if it is gone, delete {path}",
                    ) from None
                path.unlink(missing_ok=True)  # its process died
        raise UserError("VA-R005", "the run is being taken by several processes", where=str(self.path))

    def unlock(self) -> None:
        (self.path / ".lock").unlink(missing_ok=True)

    def write_config(self, config: AnyConfig) -> None:
        """`config.yaml` repeats the run; `config.changed.yaml` holds only what differs from the defaults."""
        atomic_write(self.path / "config.changed.yaml", to_yaml(changed_values(config)))
        atomic_write(self.path / "config.yaml", to_yaml(config.model_dump(mode="json")))

    def read_state(self) -> dict[str, Any]:
        path = self.path / "run.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    def write_state(self, state: str, **facts: Any) -> None:
        """Update `run.json`: running, done, failed or interrupted, with a reason code."""
        now = _now()
        ended = {} if state == "running" else {"stopped": now}
        content = {**self.read_state(), "state": state, "updated": now, **ended, **facts}
        atomic_write(self.path / "run.json", json.dumps(content, indent=1))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, **line}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`; a line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged after a step, before the run goes on from there."""
        lines = [line for line in self.read_metrics() if line["step"] <= step]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        sweep_temporary(self.path)

    def write_epoch_table(self) -> None:
        """`metrics.csv`, a row per epoch."""
        rows = [line for line in self.read_metrics() if line["kind"] == "epoch"]
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("schema", "kind")))
        atomic_write(self.path / "metrics.csv", csv_text(columns, [[row.get(column, "") for column in columns] for row in rows]))


def csv_text(columns: list[str], rows: list[list[Any]]) -> str:
    """Rows as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


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
    """Commit of the checkout this package is imported from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    found = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _owner(path: Path) -> dict[str, Any]:
    for _ in range(10):  # the other process may be between creating and writing it
        try:
            owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return owner
        except (ValueError, FileNotFoundError):
            time.sleep(0.02)
    return {"pid": -1, "host": socket.gethostname()}


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
