"""Writes that are whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visionattn.errors import UserError

TEMPORARY = ".tmp-"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it has its old or its new content, whatever happens meanwhile."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving, its files are synced and it takes the place of `path`.

    On an error nothing of it remains and `path` is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        if path.exists():
            old = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where results that can be made again are kept: VISIONATTN_CACHE, or ~/.cache/visionattn."""
    return Path(os.environ.get("VISIONATTN_CACHE", "~/.cache/visionattn")).expanduser()


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_temporary(folder: Path) -> list[Path]:
    """Delete what an interrupted write left behind; returns what was deleted."""
    found = list(folder.glob(f"{TEMPORARY}*")) if folder.is_dir() else []
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


def require_space(folder: Path, needed: int) -> None:
    """Stop before a write that the disk cannot hold.

    Raises:
        UserError: VA-R004.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, f"{free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} MiB needed")


def disk_full(folder: Path, why: str) -> UserError:
    """VA-R004; what was written before stays whole."""
    return UserError(
        "VA-R004",
        "the disk is full: the checkpoint was not written",
        where=str(folder),
        why=why,
        fix="free space, then visionattn train --resume RUN",
    )
