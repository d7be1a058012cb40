"""Writes that are whole or not there: temporary name, fsync, rename; locks and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from visionattn.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

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


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock on a file against other processes and threads; the system takes it back when its holder ends, killed or not.

    `waiting` is called once if somebody else holds it. A file system without locks gives none.
    """
    with path.open("a") as file:
        told = False
        while True:
            try:
                if sys.platform == "win32":
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    break
            if not told:
                waiting()
                told = True
            time.sleep(0.1)
        yield


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def require_space(folder: Path, needed: int, *, what: str = "the checkpoint", fix: str = "") -> None:
    """Stop before a write that the disk cannot hold; `what` and `fix` as in `disk_full`.

    Raises:
        UserError: VA-R004.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, f"{free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} MiB needed", what=what, fix=fix)


def disk_full(folder: Path, why: str, *, what: str = "the checkpoint", fix: str = "") -> UserError:
    """VA-R004: `what` was not written; what was written before stays whole."""
    return UserError(
        "VA-R004",
        f"the disk is full: {what} was not written",
        where=str(folder),
        why=why,
        fix=fix or "free space, then visionattn train --resume RUN",
    )
