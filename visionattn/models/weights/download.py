"""Download published weights into the cache: once, resumed after an interruption, used only after a check of their sha256.

requests does the HTTP. What is added: a time limit for the first answer, resumption by range, a bound on the size, a check of
length and hash, quarantine, and encryption at every redirect. A file is named after its record, for example
`weights/swin_tiny.in1k.pth` in the cache folder. Without a published hash, the hash of the first download is stored in
`hashes.json` next to it and later downloads must match.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError, ReadTimeoutError

from visionattn import __version__
from visionattn.errors import UserError, did_you_mean
from visionattn.files import TEMPORARY, atomic_write, cache_folder, disk_full, locked, require_space, sha256_of, sync_folder
from visionattn.models.weights.records import Source, Weights, find_weights, records_of
from visionattn.names import shown, shown_lines

ANSWER_TIMEOUT = 8.0  # seconds to wait for the first answer of a host; silent hosts share them
STALL_TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # per source, as long as each receives something
SUFFIXES = (".safetensors", ".pth")
CHUNK = 2**18
MAX_BYTES = 4 * 2**30  # of a file whose size is not published; the largest model takes 1 GiB, 3 with its optimizer
LIMIT = "VISIONATTN_MAX_DOWNLOAD"  # environment variable: GiB instead of these
REDIRECTS = 10
LOCAL = ("localhost", "127.0.0.1", "::1")  # need no encryption
WEB_PAGE = "the host sent a web page (sign-in, consent or error) instead of the file"
FREE_SPACE = "free space, or move the cache: VISIONATTN_CACHE=FOLDER"

Report = Callable[[str], object]  # takes a line of text


@dataclass(frozen=True)
class CachedFile:
    """A checkpoint file in the cache whose hash was just checked; `checked` names what it was compared with."""

    path: Path
    sha256: str
    checked: str


class Unavailable(Exception):
    """A source failed to provide the file; `answered` is whether its host responded at all."""

    def __init__(self, reason: str, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.answered = answered


class CutOff(Unavailable):
    """The transfer ended early; the part that arrived is kept, and the download can be resumed."""


def print_line(text: str) -> None:
    """Print a line on standard error."""
    _terminal().print(shown_lines(text))


def fetch(
    record: Weights,
    *,
    report: Report | None = print_line,
    answer_timeout: float = ANSWER_TIMEOUT,
    stall_timeout: float = STALL_TIMEOUT,
) -> CachedFile:
    """Return the file of a record: from the cache, or downloaded from its first source that works.

    Args:
        record: the weights.
        report: called with lines about the download; None for no output, progress bar included.
        answer_timeout: seconds to wait for the first answer of a host; hosts that do not answer share them.
        stall_timeout: seconds without data after which a transfer is cut off.

    Raises:
        UserError: VA-W001 no source works, or downloads are off; VA-W002 unexpected hash; VA-R004 no space; VA-C002 not a
            number in VISIONATTN_MAX_DOWNLOAD.
    """
    show_bar, report = report is not None, report or (lambda text: None)
    if path := cached_path(record):
        return check_cached(record, path, report)
    if switch := offline():
        raise unavailable(record, [f"downloads are off: {switch}={os.environ[switch]}"])
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{record.file_stem}.lock", lambda: report(f"{record.name} is being downloaded by another process: waiting")):
        if path := cached_path(record):
            return check_cached(record, path, report)
        failures: list[str] = []
        sources = [source for source in record.sources if source.fetchable]
        deadline = time.monotonic() + answer_timeout
        for index, source in enumerate(sources):
            patience = (deadline - time.monotonic()) / (len(sources) - index)  # the time left is shared by the hosts left
            target = folder / f"{record.file_stem}{source.suffix}"
            try:
                part = receive(source, target, report, show_bar, patience=max(patience, 0.1), stall_timeout=stall_timeout)
            except Unavailable as error:
                failures.append(f"{source.host}: {error}")
                if error.answered:
                    deadline = time.monotonic() + answer_timeout
                continue
            return _accept(record, source, part, target, report)
        raise unavailable(record, failures)


def check_cached(record: Weights, path: Path, report: Report = print_line) -> CachedFile:
    """Check the sha256 of a record's file in the cache; where no hash is known, pin it.

    Raises:
        UserError: VA-W002; the file is then moved to quarantine.
    """
    published = [source.digits for source in record.sources if source.suffix == path.suffix]
    pinned = list(_pins().get(path.name, {}).values())
    return _compare(record, path, path.name, published, pinned, "found in the cache", report)


def store(path: Path, name: str, tag: str | None = None, *, report: Report = print_line) -> CachedFile:
    """Copy a manually downloaded file into the cache as the file of a record, and pin its hash.

    Raises:
        UserError: VA-W006 no such file; VA-W002 every source has a published hash and none matches; VA-R004 no space.
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
        raise UserError("VA-W002", f"{path.name} does not match any published file of {record.name}", where=str(path), why=why)
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{record.file_stem}{suffix}"
    with locked(folder / f".{record.file_stem}.lock"):
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
                target.with_name(record.file_stem + other).unlink(missing_ok=True)
        _pin(target.name, f"imported from {path.name}", digest)
    report(f"{record.name}: {path.name} copied to {target}")
    return CachedFile(target, digest, _as_published(digest, published) or "pinned on import")


def weights_folder() -> Path:
    """Return the folder of downloaded files."""
    return cache_folder() / "weights"


def cached_path(record: Weights) -> Path | None:
    """Return the unchecked file of a record in the cache; None if it has not been downloaded."""
    paths = (weights_folder() / f"{record.file_stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def default_weights(model: str) -> str:
    """The tag of a model's first weights that a program can download or that are in the cache; none if there are none."""
    usable = (record.tag for record in records_of(model) if cached_path(record) or any(source.fetchable for source in record.sources))
    return next(usable, "none")


def offline() -> str:
    """Return the name of the environment variable that turns downloads off; empty if downloads are on."""
    on = ("1", "true", "yes", "on")
    return next((name for name in ("VISIONATTN_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name, "").lower() in on), "")


def unavailable(record: Weights, failures: list[str]) -> UserError:
    """VA-W001 with all failures and how to download the file manually."""
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
                "download one of these in a browser:",
                *steps,
                "then start from it: model.weights=FILE" if ":" in record.model else "then run: visionattn weights import FILE",
                "or train without: model.weights=none, pretrained=False",
            ]
        ),
    )


def receive(
    source: Source,
    target: Path,
    report: Report,
    show_bar: bool,
    *,
    patience: float = ANSWER_TIMEOUT,
    stall_timeout: float = STALL_TIMEOUT,
    authorization: Mapping[str, str] | None = None,
) -> Path:
    """Download the whole file under a temporary name, resuming after each cut-off; the hash is not checked yet.

    Args:
        patience: seconds to wait for the first answer.
        authorization: headers for the host of the source only, not for those that it redirects to.

    Raises:
        Unavailable: the source does not provide it.
        UserError: VA-R004 no space; VA-C002 not a number in VISIONATTN_MAX_DOWNLOAD.
    """
    part = target.with_name(f"{target.name}.part")
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            waiting = patience if attempt == 0 else ANSWER_TIMEOUT
            _transfer(source, part, report, show_bar, waiting, stall_timeout, authorization or {})
            return part
        except CutOff as error:
            if attempt == ATTEMPTS - 1 or _size(part) <= before:
                raise
            report(f"{source.host}: {error}: resuming")
    raise AssertionError("unreachable")


def _transfer(
    source: Source, part: Path, report: Report, show_bar: bool, patience: float, stall_timeout: float, authorization: Mapping[str, str]
) -> None:
    memo = part.with_name(f"{part.name}.json")  # which file the part belongs to
    known = _read_json(memo)
    offset, total = (_size(part), known.get("total")) if known.get("url") == source.url else (0, None)
    if offset and offset == total:
        return  # complete, and the process ended before the hash was taken
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    with open_address(source.url, headers, patience, stall_timeout, authorization) as response:
        if response.status_code == 416 and offset:  # the file at the host is shorter than ours
            forget(part)
            return _transfer(source, part, report, show_bar, patience, stall_timeout, authorization)
        if not response.ok:
            raise Unavailable(f"HTTP {response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").partition(";")[0] in ("text/html", "application/xhtml+xml", "application/json"):
            raise Unavailable(WEB_PAGE)
        if response.status_code == 206:
            match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != offset or (total is not None and match[2] not in (str(total), "*")):
                forget(part)
                raise Unavailable("the file changed since the transfer began: try again")
            total = int(match[2]) if match[2] != "*" else total
        else:  # the whole file: a fresh start, or a host without ranges
            length = response.headers.get("Content-Length", "")
            offset, total = 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        if source.bytes and total not in (None, source.bytes):
            raise Unavailable(f"the file has {total:,} bytes, published are {source.bytes:,}")
        total = total or source.bytes
        limit = source.bytes or _limit()
        if total and total > limit:
            raise _too_large(limit)
        require_space(part.parent, (total or 0) - offset, what=part.name, fix=FREE_SPACE)
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        atomic_write(memo, json.dumps({"url": source.url, "validator": validator, "total": total}))
        of_total = f" of {total:,}" if total else ""
        size = f"{total / 2**20:,.1f} MiB" if total else "unknown size"
        rest = f", {offset / 2**20:,.1f} MiB already downloaded" if offset else ""
        report(f"downloading {part.name.removesuffix('.part')} ({size}{rest}) from {source.host} to {part.parent}")
        try:
            with part.open("ab" if offset else "wb") as file, _bar(part.name, total, offset, show_bar) as update:
                while chunk := response.raw.read1(CHUNK):
                    if offset == 0 and chunk.lstrip()[:1] == b"<":
                        raise Unavailable(WEB_PAGE)
                    if offset + len(chunk) > limit:  # the host gave no length
                        offset = 0  # forget the part
                        raise _too_large(limit)
                    file.write(chunk)
                    offset += len(chunk)
                    update(offset)
                file.flush()
                os.fsync(file.fileno())
        except ReadTimeoutError:
            raise CutOff(f"no data for {stall_timeout:g} s, after {offset:,} bytes") from None
        except HTTPError as error:
            raise CutOff(f"cut off after {offset:,}{of_total} bytes") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(part.parent, str(error), what=part.name, fix=FREE_SPACE) from error
            raise
        finally:
            if not offset:
                forget(part)
    if total is not None and offset != total:
        raise CutOff(f"cut off after {offset:,}{of_total} bytes")


class _Session(requests.Session):
    """A session that follows no redirects: requests would read the text of each, however long, and go to any address."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


def open_address(
    url: str,
    headers: Mapping[str, str] | None = None,
    patience: float = ANSWER_TIMEOUT,
    stall_timeout: float = STALL_TIMEOUT,
    authorization: Mapping[str, str] | None = None,
) -> requests.Response:
    """Request a file, following redirects to addresses that are safe, and wait for the headers of the answer.

    `authorization` goes to the host of the address, and to no other that it redirects to. The thread gives name look-up and the
    attempts at all addresses one time limit, which sockets do not offer.
    """
    answer: Future[requests.Response] = Future()
    common = {"User-Agent": f"visionattn/{__version__}", **(headers or {})}

    def follow() -> requests.Response:
        session, address, encrypted = _Session(), url, False
        for _ in range(REDIRECTS):
            _require_safe(address, encrypted)
            encrypted |= urlsplit(address).scheme == "https"
            own = (authorization or {}) if urlsplit(address)[:2] == urlsplit(url)[:2] else {}
            response = session.get(address, headers={**common, **own}, stream=True, timeout=stall_timeout)
            if not response.is_redirect:
                return response
            response.close()
            address = urljoin(address, response.headers["Location"])
        raise Unavailable("too many redirects")

    def connect() -> None:
        try:
            answer.set_result(follow())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return answer.result(patience)
    except FutureTimeoutError:
        raise Unavailable(f"no answer within {patience:.1f} s", answered=False) from None
    except (requests.RequestException, ValueError) as error:  # ValueError: addresses that are none
        raise Unavailable(f"cannot be reached: {_without_secrets(str(error))}", answered=False) from error


def _require_safe(address: str, encrypted: bool) -> None:
    """Check the address of a file, or of a redirect, which must not leave encryption.

    Raises:
        Unavailable: it is not safe.
    """
    try:
        parts = urlsplit(address)
        local = parts.scheme == "http" and parts.hostname in LOCAL
        whole = parts.hostname and parts.username is None and parts.password is None
    except ValueError:
        local = whole = False
    if not whole:
        raise Unavailable("an address without a host, or with a password in it, is refused")
    if parts.scheme != "https" and (encrypted or not local):
        raise Unavailable(f"{'redirect to an' if encrypted else 'an'} unencrypted address refused ({parts.scheme}://{parts.hostname})")


def _without_secrets(text: str) -> str:
    """Remove what may be a password from the addresses in a message: user names, and what follows a question mark."""
    return re.sub(r"\?[^\s'\")]+", "?...", re.sub(r"//[^/@\s]+@", "//", text))


def _limit() -> int:
    given = os.environ.get(LIMIT, "")
    if not given:
        return MAX_BYTES
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given):
        raise UserError("VA-C002", f"{LIMIT}={given}: expected GiB, for example 20")
    return int(float(given) * 2**30)


def _too_large(limit: int) -> Unavailable:
    return Unavailable(f"the file has more than {limit:,} bytes; larger ones are allowed by {LIMIT}=GIB, where no size is published")


@contextmanager
def _bar(label: str, total: int | None, done: int, show: bool) -> Iterator[Callable[[int], None]]:
    console = _terminal()
    if not (show and console.is_terminal):
        yield lambda offset: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(shown(label), total=total, completed=done)
        yield lambda offset: progress.update(task, completed=offset)


def _accept(record: Weights, source: Source, part: Path, target: Path, report: Report) -> CachedFile:
    pinned = _pins().get(target.name, {}).get(source.url)
    done = _compare(record, part, target.name, [source.digits], [pinned] if pinned else [], source.url, report)
    part.replace(target)
    sync_folder(target.parent)
    forget(part)
    return CachedFile(target, done.sha256, done.checked)


def _compare(record: Weights, path: Path, name: str, published: list[str], pinned: list[str], origin: str, report: Report) -> CachedFile:
    """Accept a file whose hash is known, or pin the hash where none is; otherwise move the file to quarantine.

    `published` holds the hash digits of each possible source, empty where the publisher gives none.
    """
    digest = sha256_of(path)
    if digest not in published and digest in pinned:
        return CachedFile(path, digest, "as on first use")
    if known := _as_published(digest, published):
        return CachedFile(path, digest, known)
    if not pinned and not (published and all(published)):
        _pin(name, origin, digest)
        report(f"{record.name}: no published hash; sha256 {digest} is pinned")
        return CachedFile(path, digest, "pinned on first use")
    quarantine = cache_folder() / "quarantine"
    quarantine.mkdir(parents=True, exist_ok=True)
    isolated = quarantine / f"{name}.{digest[:16]}"
    path.replace(isolated)
    forget(path)
    fix = f"download it again: visionattn weights download {record.name}"
    if pinned:
        fix += f"\nif its publisher replaced the file and you trust the new one, first remove {name} from {_hashes_file()}"
    raise UserError(
        "VA-W002",
        f"{record.name}: the file has an unexpected sha256 and is not used",
        where=f"moved to {isolated}",
        why=f"sha256 {digest}\nexpected {' or '.join(filter(None, [*published, *pinned]))}\nfrom {origin}",
        fix=fix,
    )


def _as_published(digest: str, published: list[str]) -> str:
    """How much of a hash is as published, in words; empty if nothing is."""
    match = max((digits for digits in published if digits and digest.startswith(digits)), key=len, default="")
    return "as published" if match == digest else f"first {len(match)} digits as published" if match else ""


def _hashes_file() -> Path:
    return weights_folder() / "hashes.json"


def _pins() -> dict[str, dict[str, str]]:
    """Return the hashes seen on first use: file name -> origin -> sha256."""
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


def forget(part: Path) -> None:
    """Remove a partial file, and the memo beside it."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _terminal() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
