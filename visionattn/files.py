"""Writes that are complete or absent (temporary name, fsync, rename), locks, hashes, the cache folder, CSV and JSON text."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from visionattn.errors import UserError
from visionattn.names import shown

TEMPORARY = ".tmp-"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)

_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20]")  # also in full width: spreadsheets compute both
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def atomic_write(path: Path, content: str | bytes | Iterable[str] | Iterable[bytes]) -> None:
    """Write a file so that it has its old or its new content, whatever interrupts the write.

    Args:
        content: the whole, or pieces that are written as they come.
    """
    pieces = [content] if isinstance(content, (str, bytes)) else content
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.writelines(piece.encode(errors="backslashreplace") if isinstance(piece, str) else piece for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name, with the ending of `path`, for a writer that takes one; on leaving, the file is synced and takes its place.

    On an error nothing of it remains. Folders above `path` are made at the end.
    """
    home = next(folder for folder in path.absolute().parents if folder.is_dir())
    temporary = home / f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving, its files are synced and it takes the place of `path`.

    On an error nothing of it remains and `path` is as it was. The folder above `path` has to be there: that of a run is not made again once
    somebody has moved it away.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        _take_place(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(folder: Path, path: Path) -> None:
    """Rename a folder to a path, in the place of what is there; another process may do the same at the same time."""
    old = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    while True:
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            folder.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                if old.exists() and not path.exists():
                    old.rename(path)
                raise
        else:
            break
        finally:
            shutil.rmtree(old, ignore_errors=True)


def cache_folder() -> Path:
    """The folder of downloads and of results that can be recomputed: VISIONATTN_CACHE, or the user's cache folder.

    Raises:
        UserError: VA-R007, the user has no home folder.
    """
    given = os.environ.get("VISIONATTN_CACHE")
    try:
        return Path(given).expanduser() if given else user_cache_path("visionattn", appauthor=False)
    except RuntimeError as error:
        fix = "VISIONATTN_CACHE=FOLDER (an environment variable), or HOME"
        raise UserError("VA-R007", "there is no home folder for downloads and caches", why=str(error), fix=fix) from error


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable, where the system supports it."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_temporary(folder: Path) -> list[Path]:
    """Delete the leftovers of interrupted writes and return their paths."""
    found = list(folder.glob(f"{TEMPORARY}*")) if folder.is_dir() else []
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock on a file against other processes and threads; the system releases it when its holder ends, killed or not.

    Args:
        waiting: called once if another process holds it.
    """
    lock = FileLock(path, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def require_space(folder: Path, needed: int, *, what: str = "the checkpoint", fix: str = "") -> None:
    """Stop before a write that does not fit on the disk; `what` and `fix` as in `disk_full`.

    Raises:
        UserError: VA-R004.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, f"{free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} MiB needed", what=what, fix=fix)


def disk_full(folder: Path, why: str, *, what: str = "the checkpoint", fix: str = "") -> UserError:
    """VA-R004: `what` was not written; everything written before is intact."""
    return UserError(
        "VA-R004",
        f"the disk is full: {what} was not written",
        where=str(folder),
        why=why,
        fix=fix or "free space, then visionattn train --resume RUN",
    )


def write_error(error: BaseException, fix: str) -> UserError | None:
    """The error for a user if the system refused a file: VA-R004 where the disk is full, VA-R007 where the place is not to be used.

    Libraries report a refused write in their own words, with the system's error somewhere in the chain or in the text.

    Args:
        fix: what to do.
    """
    system = _system_error(error)
    if system is None or system.errno not in (*_FULL, *_REFUSED):
        return None
    why, where = os.strerror(system.errno), "" if system.filename is None else shown(os.fsdecode(system.filename))
    if system.errno in _FULL:
        what = "the disk is full, or a quota or a limit on file sizes is reached"
        return UserError("VA-R004", what, where=where, why=f"{why}; what was written before is intact", fix=fix)
    return UserError("VA-R007", "cannot read or write there", where=where, why=why, fix=fix)


def _system_error(error: BaseException) -> OSError | None:
    """The system's error that an error is or stands for; of those along its causes only one of a full disk."""
    number = re.search(r"\(os error (\d+)\)", str(error))  # of libraries written in Rust
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (cause is error or cause.errno in _FULL):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def counted(number: int, word: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV with a header; no text in it is a formula to a spreadsheet.

    Text that begins like a formula gets an apostrophe before it: who needs it as it was removes one from cells that begin
    with apostrophes and one of `=+-@`. Numbers stay numbers.
    """
    return "".join(csv_lines(columns, rows))


def csv_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """`csv_text` row by row, for rows that may be many."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in itertools.chain([columns], rows):
        writer.writerow(map(_csv_cell, row))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def json_text(value: Any) -> str:
    """Format as JSON in ASCII; a byte of a path that is not UTF-8 is its escape as text, because only Python reads it otherwise."""
    return _NOT_ASCII.sub(_json_escape, json.dumps(value, ensure_ascii=False, indent=1))


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    text = shown(str(value))
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json_escape(found: re.Match[str]) -> str:
    escape = json.dumps(found[0])[1:-1]
    return f"\\{escape}" if "\ud800" <= found[0] <= "\udfff" else escape
