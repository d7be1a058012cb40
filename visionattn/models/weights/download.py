"""Published weights on disk: fetched once, resumed when cut off, used only after their sha256 was checked.

The usual clients either retry for most of a minute without a network or take a file that was cut
off for whole; this one gives up within seconds and compares length and hash first. A file goes by
the name of its record, for example `weights/swin_tiny.in1k.pth` in the cache folder. Where nobody
published a hash, the one seen first is kept in `hashes.json` beside it and must stay the same.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import queue
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from visionattn import __version__
from visionattn.errors import UserError, did_you_mean
from visionattn.files import TEMPORARY, atomic_write, cache_folder, disk_full, locked, require_space, sha256_of, sync_folder
from visionattn.models.weights.records import Source, Weights, find_weights

ANSWER_TIMEOUT = 8.0  # seconds until a host must have answered; without a network, all of them together
STALL_TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # per source, as long as each brings the file further
SUFFIXES = (".safetensors", ".pth")
CHUNK = 2**18
FREE_SPACE = "free space, or move the cache: VISIONATTN_CACHE=FOLDER"

Say = Callable[[str], object]


@dataclass(frozen=True)
class CachedFile:
    """A checkpoint file in the cache whose hash was just checked.

    Attributes:
        path: the file.
        sha256: its hash.
        checked: what the hash was compared with.
    """

    path: Path
    sha256: str
    checked: str


class Unavailable(Exception):
    """One source did not give the file; `answered` tells whether its host was there at all."""

    def __init__(self, reason: str, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.answered = answered


class CutOff(Unavailable):
    """The transfer ended early; what came is kept, and the rest can be asked for."""


def tell(text: str) -> None:
    """Default of `say`: a line on standard error."""
    _terminal().print(text, markup=False)


def fetch(
    record: Weights, *, say: Say | None = tell, answer_timeout: float = ANSWER_TIMEOUT, stall_timeout: float = STALL_TIMEOUT
) -> CachedFile:
    """The file of a record: from the cache, or else from the first of its sources that gives it.

    Args:
        record: which weights.
        say: takes the lines that tell what is done; None for silence (and no bar).
        answer_timeout: seconds until a host must have answered; hosts that do not answer share them.
        stall_timeout: seconds after which a transfer without a byte has ended.

    Raises:
        UserError: VA-W001 no source gives it, or downloads are off; VA-W002 another hash than
            expected; VA-R004 no space.
    """
    hear: Say = say or (lambda text: None)
    if path := cached_path(record):
        return check_cached(record, path, hear)
    if switch := offline():
        raise unavailable(record, [f"downloads are off: {switch}={os.environ[switch]}"])
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{record.name}.lock", lambda: hear(f"{record.name} is being downloaded by another process: waiting")):
        if path := cached_path(record):
            return check_cached(record, path, hear)
        failures: list[str] = []
        sources = [source for source in record.sources if source.fetchable]
        deadline = time.monotonic() + answer_timeout
        for index, source in enumerate(sources):
            patience = (deadline - time.monotonic()) / (len(sources) - index)  # a silent host leaves the next its share
            target = folder / f"{record.name}{source.suffix}"
            try:
                part = _receive(source, target, hear, say is not None, max(patience, 0.1), stall_timeout)
            except Unavailable as error:
                failures.append(f"{source.host}: {error}")
                if error.answered:
                    deadline = time.monotonic() + answer_timeout
                continue
            return _accept(record, source, part, target, hear)
        raise unavailable(record, failures)


def check_cached(record: Weights, path: Path, say: Say = tell) -> CachedFile:
    """Hash the cached file of a record and compare; a hash nobody told is kept from now on.

    Raises:
        UserError: VA-W002; the file is in quarantine then.
    """
    published = [source.digits for source in record.sources if source.suffix == path.suffix]
    pinned = list(_pins().get(path.name, {}).values())
    return _compare(record, path, path.name, published, pinned, "found in the cache", say)


def store(path: Path, name: str, tag: str | None = None, *, say: Say = tell) -> CachedFile:
    """Copy a file that a person downloaded to the place of a record's file and pin its hash.

    Raises:
        UserError: VA-W006 no such file; VA-W002 every source has a published hash and none is this file's; VA-R004 no space.
    """
    record = find_weights(name, tag)
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError("VA-W006", f'file "{path}" not found', fix=did_you_mean(path.name, siblings))
    suffix = ".safetensors" if path.suffix == ".safetensors" else ".pth"
    digest = sha256_of(path)
    published = [source.digits for source in record.sources if source.suffix == suffix]
    if published and all(published) and not any(map(digest.startswith, published)):
        why = f"sha256 {digest}\npublished {', '.join(published)}"
        raise UserError("VA-W002", f"{path.name} is none of the published files of {record.name}", where=str(path), why=why)
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{record.name}{suffix}"
    with locked(folder / f".{record.name}.lock"):
        if not (target.exists() and path.samefile(target)):
            require_space(folder, path.stat().st_size, what=target.name, fix=FREE_SPACE)
            temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
            try:
                shutil.copyfile(path, temporary)
                _sync(temporary)
                temporary.replace(target)
                sync_folder(folder)
            finally:
                temporary.unlink(missing_ok=True)
        for other in SUFFIXES:
            if other != suffix:
                target.with_name(record.name + other).unlink(missing_ok=True)
        _pin(target.name, f"imported from {path.name}", digest)
    say(f"{record.name}: {path.name} is now {target}")
    return CachedFile(target, digest, "imported")


def weights_folder() -> Path:
    """Where downloaded files are kept."""
    return cache_folder() / "weights"


def cached_path(record: Weights) -> Path | None:
    """The file of a record in the cache, not yet checked."""
    paths = (weights_folder() / f"{record.name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def offline() -> str:
    """The environment variable that forbids downloads; empty if none does."""
    on = ("1", "true", "yes", "on")
    return next((name for name in ("VISIONATTN_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name, "").lower() in on), "")


def unavailable(record: Weights, failures: list[str]) -> UserError:
    """VA-W001 with all that was tried and how a person gets the file."""
    reasons = {"page_only": "a page for a browser, not the file", "reported_broken": "reported broken"}
    others = [f"{source.host}: {reasons[source.status]}" for source in record.sources if not source.fetchable]
    steps = []
    for source in record.sources:
        facts = [f"host {source.host}"]
        facts += [f"file {source.name}"] if source.name else []
        facts += [f"sha256 {source.digits}{'' if source.sha256 else '...'}"] if source.digits else []
        facts += [reasons[source.status]] if not source.fetchable else []
        steps.append(f"  {source.url}\n    ({', '.join(facts)})")
    return UserError(
        "VA-W001",
        f"{record.name} cannot be downloaded",
        where=str(weights_folder()),
        why="\n".join([*failures, *others, *([record.note] if record.note else [])]),
        fix="\n".join(
            [
                "download in a browser, the first that works:",
                *steps,
                "and run: visionattn weights import FILE",
                "or go without: model.weights=none, pretrained=False",
            ]
        ),
    )


# ---------------------------------------------------------------- one source


def _receive(source: Source, target: Path, say: Say, show_bar: bool, patience: float, stall_timeout: float) -> Path:
    """The whole file under a temporary name, its hash not yet checked; a cut-off transfer goes on where it ended."""
    part = target.with_name(f"{target.name}.part")
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            _transfer(source, part, say, show_bar, patience if attempt == 0 else ANSWER_TIMEOUT, stall_timeout)
            return part
        except CutOff as error:
            if attempt == ATTEMPTS - 1 or _size(part) <= before:
                raise
            say(f"{source.host}: {error}: going on from there")
    raise AssertionError("unreachable")


def _transfer(source: Source, part: Path, say: Say, show_bar: bool, patience: float, stall_timeout: float) -> None:
    memo = part.with_name(f"{part.name}.json")  # which file the part is of
    known = _read_json(memo)
    offset, total = (_size(part), known.get("total")) if known.get("url") == source.url else (0, None)
    if offset and offset == total:
        return  # all came, and the process ended before the hash was taken
    headers = {"User-Agent": f"visionattn/{__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = _open(urllib.request.Request(source.url, headers=headers), patience, stall_timeout)
    except Unavailable as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 416 and offset:
            _forget(part)  # the file at the host is shorter than ours
            return _transfer(source, part, say, show_bar, patience, stall_timeout)
        raise
    with response:
        page = "the host sent a web page (sign-in, consent or error) instead of the file"
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml", "application/json"):
            raise Unavailable(page)
        length = response.headers.get("Content-Length", "")
        announced = int(length) if length.isdecimal() else None
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != offset or (total is not None and match[2] not in (str(total), "*")):
                _forget(part)
                raise Unavailable("the file changed since the transfer began: try again")
            total = int(match[2]) if match[2] != "*" else total
        else:  # the whole file: a fresh start, or a host that knows no ranges
            offset, total = 0, announced
        if source.bytes and total not in (None, source.bytes):
            raise Unavailable(f"the file has {total:,} bytes, published are {source.bytes:,}")
        require_space(part.parent, (total or 0) - offset, what=part.name, fix=FREE_SPACE)
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        atomic_write(memo, json.dumps({"url": source.url, "validator": validator, "total": total}))
        size = f"{total / 2**20:,.1f} MiB" if total else "unknown size"
        rest = f", {offset / 2**20:,.1f} MiB of it are here" if offset else ""
        say(f"downloading {part.name.removesuffix('.part')} ({size}{rest}) from {source.host} to {part.parent}")
        try:
            with part.open("ab" if offset else "wb") as file, _bar(part.name, total, offset, show_bar) as update:
                while chunk := _read(response, offset, stall_timeout):
                    if offset == 0 and chunk.lstrip()[:1] == b"<":
                        raise Unavailable(page)
                    file.write(chunk)
                    offset += len(chunk)
                    update(offset)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of the file; those of the connection are a CutOff
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(part.parent, str(error), what=part.name, fix=FREE_SPACE) from error
            raise
        finally:
            if not offset:
                _forget(part)
    if total is not None and offset != total:
        raise CutOff(f"cut off after {offset:,} of {total:,} bytes")


def _open(request: urllib.request.Request, patience: float, stall_timeout: float) -> Any:
    """The answer of a host. Name look-up and the tries of all its addresses have one time limit, which sockets do not offer."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            results.put(urllib.request.build_opener(_Redirects).open(request, timeout=stall_timeout))
        except Exception as error:  # handed to the waiting thread
            results.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = results.get(timeout=patience)
    except queue.Empty:
        raise Unavailable(f"no answer within {patience:.1f} s", answered=False) from None
    if isinstance(result, urllib.error.HTTPError):
        result.close()
        raise Unavailable(f"HTTP {result.code} {result.reason}") from result
    if isinstance(result, (OSError, http.client.HTTPException)):
        raise Unavailable(f"cannot be reached: {getattr(result, 'reason', result)}", answered=False) from result
    if isinstance(result, Exception):
        raise result
    return result


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but not from an encrypted address to an open one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(newurl, code, "redirect to an unencrypted address refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(response: Any, offset: int, stall_timeout: float) -> bytes:
    try:
        chunk: bytes = response.read1(CHUNK)
    except TimeoutError:
        raise CutOff(f"nothing came for {stall_timeout:g} s, after {offset:,} bytes") from None
    except (OSError, http.client.HTTPException) as error:
        raise CutOff(f"cut off after {offset:,} bytes ({type(error).__name__})") from error
    return chunk


@contextmanager
def _bar(label: str, total: int | None, done: int, shown: bool) -> Iterator[Callable[[int], None]]:
    console = _terminal()
    if not (shown and console.is_terminal):
        yield lambda offset: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda offset: progress.update(task, completed=offset)


# ---------------------------------------------------------------- hashes


def _accept(record: Weights, source: Source, part: Path, target: Path, say: Say) -> CachedFile:
    pinned = _pins().get(target.name, {}).get(source.url)
    done = _compare(record, part, target.name, [source.digits], [pinned] if pinned else [], source.url, say)
    part.replace(target)
    sync_folder(target.parent)
    _forget(part)
    return CachedFile(target, done.sha256, done.checked)


def _compare(record: Weights, path: Path, name: str, published: list[str], pinned: list[str], origin: str, say: Say) -> CachedFile:
    """Accept a file whose hash is known, or the first one where a hash may be unknown; else put it into quarantine.

    `published` has the digits of each source the file may be from, empty where its publisher gives none.
    """
    digest = sha256_of(path)
    if digest in published:
        return CachedFile(path, digest, "as published")
    if digest in pinned:
        return CachedFile(path, digest, "as on first use")
    if match := next((digits for digits in published if digits and digest.startswith(digits)), None):
        return CachedFile(path, digest, f"first {len(match)} digits as published")
    if not pinned and not (published and all(published)):
        _pin(name, origin, digest)
        say(f"{record.name}: no hash was published; sha256 {digest} is pinned from now on")
        return CachedFile(path, digest, "pinned on first use")
    quarantine = cache_folder() / "quarantine"
    quarantine.mkdir(parents=True, exist_ok=True)
    jail = quarantine / f"{name}.{digest[:16]}"
    path.replace(jail)
    _forget(path)
    fix = f"download it again: visionattn weights download {record.name}"
    if pinned:
        fix += f"\nif its publisher replaced it and you trust the new one, remove {name} from {_hashes_file()} first"
    raise UserError(
        "VA-W002",
        f"{record.name}: the file has another sha256 than expected and is not used",
        where=f"moved to {jail}",
        why=f"sha256 {digest}\nexpected {' or '.join(filter(None, [*published, *pinned]))}\nfrom {origin}",
        fix=fix,
    )


def _hashes_file() -> Path:
    return weights_folder() / "hashes.json"


def _pins() -> dict[str, dict[str, str]]:
    """Hashes seen on first use: file name -> where it came from -> sha256."""
    return _read_json(_hashes_file())


def _pin(name: str, origin: str, digest: str) -> None:
    path = _hashes_file()
    with locked(path.with_name(".hashes.lock")):
        pins = _pins()
        pins.setdefault(name, {})[origin] = digest
        atomic_write(path, json.dumps(pins, indent=1, sort_keys=True) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("VA-W005", f"{path.name} is damaged", where=str(path), why=str(error), fix="repair or delete it") from error
    return content


def _forget(part: Path) -> None:
    """Remove a partial file and the note of what it is."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _terminal() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)
