"""Download models from the Hugging Face hub into the cache: `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`.

One request asks the hub for the commit of a revision and for the hash of each of its files; `config.json` and
`model.safetensors` are then downloaded under the rules of `download.py` (resumed, bounded, encrypted, used only if the hash is
right) into `hub/OWNER--NAME/COMMIT` of the cache folder. Pickles are never downloaded. Without a network, or offline, the commit
that was downloaded last for a revision is used. `local-dir:FOLDER`, as timm writes it, is a folder with these files.

The environment is that of huggingface_hub: HF_ENDPOINT for a mirror, HF_TOKEN or `hf auth login` for what is not public.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import requests
from huggingface_hub import get_token
from urllib3.exceptions import HTTPError

from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, cache_folder, locked, sha256_of
from visionattn.models.weights.download import Report, Unavailable, forget, offline, open_address, print_line, receive
from visionattn.models.weights.records import Source

HUB, LOCAL_DIR = "hf-hub:", "local-dir:"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
RUN = "visionattn"  # key of config.json with the config of a run and the meaning of its outputs
# What transformers keeps mean and deviation in, beside its config.
PREPROCESSOR = "preprocessor_config.json"
MAX_TEXT = 4 * 2**20  # bytes of a file of text, or of an answer of the hub
_FILES = "files.json"  # of a downloaded commit: name -> sha256
_REFS = "refs.json"  # of a model: revision -> commit

_ID = re.compile(r"(?![-.])[\w.-]{1,96}(?<![-.])/(?![-.])[\w.-]{1,96}(?<![-.])", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub(source: object) -> bool:
    """Whether a text or path is `hf-hub:OWNER/NAME` or `local-dir:FOLDER`."""
    return str(source).startswith((HUB, LOCAL_DIR))


def is_model_id(text: str) -> bool:
    """Whether a text has the form OWNER/NAME."""
    return bool(_ID.fullmatch(text)) and not any(pair in text for pair in ("--", ".."))


def endpoint() -> str:
    """Address of the hub, without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def weights_file(source: str | Path, report: Report | None = print_line) -> Path:
    """Return the weights of a source of the hub or of a folder laid out as there; any other path as it is.

    Raises:
        UserError: as `model_folder`.
    """
    folder = model_folder(source, report)
    return Path(source) if folder is None else folder / WEIGHTS


def model_folder(source: str | Path, report: Report | None = print_line) -> Path | None:
    """Return the folder with `config.json` and `model.safetensors` that a source is or names; None for any other source.

    Args:
        source: `hf-hub:OWNER/NAME`, downloaded on first use; `local-dir:FOLDER`; or the folder itself.
        report: called with lines about a download; None for no output.

    Raises:
        UserError: VA-W001 not available, VA-W002 unexpected hash, VA-W004 only a pickle, VA-W006 not there, VA-W007 not a name.
    """
    text = str(source)
    if text.startswith(HUB):
        return _download(text, report)
    folder = Path(text.removeprefix(LOCAL_DIR)).expanduser()
    if is_model_folder(folder):
        return folder
    if text.startswith(LOCAL_DIR):
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
        fix = "" if folder.is_dir() else did_you_mean(folder.name, siblings)
        raise UserError("VA-W006", f'"{folder}" has no {" and no ".join(missing)}', fix=fix or "write one: visionattn push RUN FOLDER")
    return None


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder laid out as a model of the hub."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def is_run_folder(path: Path) -> bool:
    """Whether a path is a folder laid out as a model of the hub, with the model of a run.

    Raises:
        UserError: VA-W005, config.json is not readable.
    """
    return is_model_folder(path) and RUN in read_json(path / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON mapping of a model's folder, which may be a stranger's.

    Raises:
        UserError: VA-W005, not readable.
    """
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("VA-W005", f"{path.name} of the model is damaged", where=str(path), why=str(error)) from error
    return content


# ---------------------------------------------------------------- download


@dataclass(frozen=True)
class _Entry:
    """A file of a commit, as the hub lists it: its size, and its sha256 or the id of its blob in git."""

    name: str
    size: int
    sha256: str
    blob: str

    def fits(self, content: bytes) -> bool:
        return len(content) == self.size and hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob


@dataclass(frozen=True)
class _Commit:
    """Files of a revision."""

    id: str
    entries: dict[str, _Entry]


def _download(source: str, report: Report | None) -> Path:
    """The folder of a commit with all files that are used of it, checked."""
    name, _, revision = source.removeprefix(HUB).partition("@")
    revision = revision or "main"
    if not is_model_id(name) or not _REVISION.fullmatch(revision) or ".." in revision:
        raise UserError("VA-W007", f'"{source}" names no model of the hub', fix="hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION")
    show_bar, say = report is not None, report or (lambda text: None)
    home = cache_folder() / "hub" / name.replace("/", "--")
    known = home / (revision if _COMMIT.fullmatch(revision) else str(_read_refs(home).get(revision, "none")))
    if known.name == revision and _is_whole(known):
        return known  # a commit does not change
    if switch := offline():
        if _is_whole(known):
            return known
        raise _unavailable(source, f"downloads are off: {switch}={os.environ[switch]}")
    authorization = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    try:
        commit = _ask(name, revision, authorization)
    except Unavailable as error:
        if error.answered or not _is_whole(known):
            raise _unavailable(source, f"{_host()}: {error}") from error
        say(f"{_host()}: {error}: the files of commit {known.name[:12]} are used")
        return known
    folder = home / commit.id
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / ".lock", lambda: say(f"{source} is being downloaded by another process: waiting")):
        if not _is_whole(folder):
            _require_files(source, commit)
            folder.mkdir(exist_ok=True)
            try:
                _fill(folder, name, commit, say, show_bar, authorization)
            except Unavailable as error:
                raise _unavailable(source, f"{_host()}: {error}") from error
        refs = _read_refs(home)
        if refs.get(revision) != commit.id:
            atomic_write(home / _REFS, json.dumps({**refs, revision: commit.id}, indent=1))
    return folder


def _ask(name: str, revision: str, authorization: Mapping[str, str]) -> _Commit:
    """Ask the hub for the commit of a revision and its files.

    Raises:
        Unavailable: no answer, or none that can be used.
    """
    url = f"{endpoint()}/api/models/{name}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        content = json.loads(_text(url, MAX_TEXT, authorization))
        entries = {str(item["rfilename"]): item for item in content["siblings"]}
        found = {key: _entry(key, entries[key]) for key in (CONFIG, WEIGHTS, PREPROCESSOR) if key in entries}
        pickles = {key: _Entry(key, 0, "", "") for key in entries if key.endswith((".bin", ".pth", ".pt", ".ckpt"))}
        if not _COMMIT.fullmatch(content["sha"]):
            raise ValueError("sha")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Unavailable(f"the answer is not that of a hub ({type(error).__name__}: {str(error)[:80]})") from error
    return _Commit(content["sha"], pickles | found)


def _entry(name: str, facts: Mapping[str, Any]) -> _Entry:
    large = facts.get("lfs") or {}
    sha256, blob = str(large.get("sha256", "")), str(facts.get("blobId", ""))
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) and not re.fullmatch(r"[0-9a-f]{40}", blob):
        raise ValueError(f"{name} has no hash")
    return _Entry(name, int(facts["size"]), sha256, blob)


def _text(url: str, limit: int, authorization: Mapping[str, str]) -> bytes:
    """Content of a small file at the hub.

    Raises:
        Unavailable: no answer, an error, or more than `limit` bytes.
    """
    try:
        with open_address(url, {"Accept-Encoding": "identity"}, authorization=authorization) as response:
            if response.status_code in (401, 403, 404):
                raise Unavailable(_refusal(response, bool(authorization)))
            if not response.ok:
                raise Unavailable(f"HTTP {response.status_code} {response.reason}", answered=response.status_code < 500)
            content: bytes = response.raw.read(limit + 1)
    except (HTTPError, requests.RequestException, OSError) as error:
        raise Unavailable(f"cut off: {type(error).__name__}", answered=False) from error
    if len(content) > limit:
        raise Unavailable(f"more than {limit:,} bytes")
    return content


def _refusal(response: requests.Response, has_token: bool) -> str:
    if response.headers.get("X-Error-Code") == "GatedRepo":
        return "access to the model has to be asked for on its page"
    if response.headers.get("X-Error-Code") == "RevisionNotFound":
        return "the model has no such revision"
    return f"no such model, or {'none for this token' if has_token else 'a private one'} (HTTP {response.status_code})"


def _require_files(source: str, commit: _Commit) -> None:
    """Stop at a model that is not laid out as config.json and model.safetensors.

    Raises:
        UserError: VA-W004, VA-W006.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if name not in commit.entries]
    pickle = next((name for name in commit.entries if name not in (CONFIG, WEIGHTS, PREPROCESSOR)), "")
    if missing == [WEIGHTS] and pickle:
        why, fix = "a pickle can run code while it is loaded", "ask its author for model.safetensors"
        raise UserError("VA-W004", f"{source} has its weights as {pickle}, and was not loaded", why=why, fix=fix)
    if missing:
        raise UserError("VA-W006", f"{source} has no {' and no '.join(missing)}", where=f"commit {commit.id[:12]}")


def _fill(folder: Path, name: str, commit: _Commit, say: Report, show_bar: bool, authorization: Mapping[str, str]) -> None:
    """Download the files of a commit, check them and note their hashes, that of all last."""
    hashes: dict[str, str] = {}
    for key in (CONFIG, PREPROCESSOR, WEIGHTS):
        entry = commit.entries.get(key)
        if entry is None:
            continue
        url = f"{endpoint()}/{name}/resolve/{commit.id}/{key}"
        path = folder / key
        if key == WEIGHTS:
            facts = {"url": url, "publisher": "author", "status": "ok", "bytes": entry.size, "sha256": entry.sha256 or None}
            source = Source.model_validate(facts)
            part = receive(source, path, say, show_bar, authorization=authorization)
            digest = sha256_of(part)
            whole = digest == entry.sha256 if entry.sha256 else entry.fits(part.read_bytes())
            if not whole:
                _refuse(part, name, digest, entry)
            part.replace(path)
            forget(part)
        else:
            content = _text(url, MAX_TEXT, authorization)
            digest = hashlib.sha256(content).hexdigest()
            if not (digest == entry.sha256 if entry.sha256 else entry.fits(content)):
                raise Unavailable(f"{key} is not the file that the hub lists")
            atomic_write(path, content)
        hashes[key] = digest
    atomic_write(folder / _FILES, json.dumps(hashes, indent=1))


def _refuse(part: Path, name: str, digest: str, entry: _Entry) -> NoReturn:
    forget(part)
    why = f"sha256 {digest}\nexpected {entry.sha256 or f'the blob {entry.blob}'}"
    raise UserError("VA-W002", f"{entry.name} of {name} has an unexpected hash and is not used", why=why, fix="try again")


def _is_whole(folder: Path) -> bool:
    """Whether a commit was downloaded completely and no file of it changed."""
    if not (folder / _FILES).is_file():
        return False
    try:
        hashes = read_json(folder / _FILES)
    except UserError:
        return False
    return {CONFIG, WEIGHTS} <= hashes.keys() <= {CONFIG, WEIGHTS, PREPROCESSOR} and all(
        (folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in hashes.items()
    )


def _read_refs(home: Path) -> dict[str, Any]:
    return read_json(home / _REFS) if (home / _REFS).is_file() else {}


def _host() -> str:
    return urlsplit(endpoint()).netloc


def _unavailable(source: str, why: str) -> UserError:
    model = source.removeprefix(HUB).partition("@")[0]
    fix = (
        f"a private model needs HF_TOKEN, or: hf auth login\nor download the files of {endpoint()}/{model} elsewhere into FOLDER, "
        "and give that folder"
    )
    return UserError("VA-W001", f"{source} cannot be downloaded", where=str(cache_folder() / "hub"), why=why, fix=fix)
