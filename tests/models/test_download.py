"""Downloads from a server of our own that cuts off, stalls, redirects and lies; nothing here needs a network."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import save

import visionattn as va
from visionattn.errors import UserError
from visionattn.files import locked
from visionattn.models.weights import download, records
from visionattn.models.weights.download import cached_path, check_cached, fetch, store
from visionattn.models.weights.records import Record

CONTENT = bytes(range(256)) * 2000  # 512 kB
SHA = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Page:
    """What the server does with one path; lists are used up request by request."""

    content: bytes = CONTENT
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which the connection is closed
    stalls: list[int] = field(default_factory=list)  # bytes after which nothing more comes
    pause: float = 0.0  # between pieces of 16 kB


@dataclass
class Server:
    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def page(self, path: str, **facts: Any) -> str:
        self.pages[path] = Page(**facts)
        return self.address + path

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.seen]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ours.seen.append((self.path, dict(self.headers)))
            page = ours.pages.get(self.path) or Page(b"", status=404)
            wanted, start = self.headers.get("Range"), 0
            fresh = self.headers.get("If-Range") in (None, page.headers.get("ETag"), page.headers.get("Last-Modified"))
            self.close_connection = True
            if wanted and page.ranges and fresh and page.status == 200:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(page.content):
                    self.send_response(416)
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
            else:
                self.send_response(page.status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if page.length:
                self.send_header("Content-Length", str(len(page.content) - start))
            self.end_headers()
            cut, stall = (pieces.pop(0) if pieces else None for pieces in (page.cuts, page.stalls))
            end = min(limit for limit in (cut, stall, len(page.content)) if limit is not None)
            for position in range(start, end, 2**14):
                self.wfile.write(page.content[position : min(position + 2**14, end)])
                self.wfile.flush()
                time.sleep(page.pause)
            if stall is not None:
                ours.release.wait(20)

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:  # a client that went away
            pass

    running = Quiet(("127.0.0.1", 0), Handler)
    ours = Server(f"http://127.0.0.1:{running.server_address[1]}")
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield ours
    ours.release.set()
    running.shutdown()
    running.server_close()


def record(*sources: str | dict[str, Any], model: str = "eca_resnet18", tag: str = "in1k", **facts: Any) -> Record:
    """A record with these sources (an address, or the fields of a source)."""
    given = [{"url": item} if isinstance(item, str) else item for item in sources]
    values: dict[str, Any] = {
        "model": model,
        "tag": tag,
        "code_license": "MIT",
        "weights_license": "MIT",
        "input_size": (3, 64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "num_classes": 1000,
        "label_set": "imagenet-1k",
        **facts,
        "sources": [{"publisher": "author", "status": "unverified", **item} for item in given],
    }
    return Record.model_validate(values)


def refused(code: str, item: Record, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch(item, **options)
    assert caught.value.code == code and caught.value.exit_code == {"W": 4, "R": 7}[code[3]]
    assert cached_path(item) is None
    return caught.value


def folder() -> Path:
    return download.weights_folder()


def files() -> set[str]:
    """Names in the weights folder, without locks."""
    return {path.name for path in folder().iterdir() if not path.name.endswith(".lock")}


# ---------------------------------------------------------------- a good day


@pytest.mark.parametrize("length", [True, False])
def test_complete(server: Server, length: bool) -> None:
    said: list[str] = []
    item = record({"url": server.page("/a/file.pth", length=length), "sha256": SHA})
    file = fetch(item, report=said.append)
    assert file.path == folder() / "eca_resnet18.in1k.pth" and file.path.read_bytes() == CONTENT
    assert (file.sha256, file.checked) == (SHA, "as published")
    assert files() == {"eca_resnet18.in1k.pth"}
    assert len(said) == 1 and "127.0.0.1" in said[0] and ("0.5 MiB" in said[0]) == length
    assert server.seen[0][1]["User-Agent"].startswith("visionattn/")
    assert fetch(item, report=said.append) == file and len(server.seen) == len(said) == 1, "the second time it is in the cache"


def test_safetensors_keep_their_suffix_and_redirects_are_followed(server: Server) -> None:
    target = server.page("/storage/1234")
    url = server.page("/model.safetensors", content=b"", status=302, headers={"Location": target})
    assert fetch(record({"url": url, "sha256": SHA})).path.name == "eca_resnet18.in1k.safetensors"


def test_the_second_source_after_the_first_fails(server: Server) -> None:
    item = record(server.address + "/gone.pth", {"url": server.page("/there.pth"), "sha256_prefix": SHA[:8]})
    assert fetch(item).checked == "first 8 digits as published"
    assert [path for path, _ in server.seen] == ["/gone.pth", "/there.pth"]


# ---------------------------------------------------------------- cut off


@pytest.mark.parametrize("headers", [{}, {"ETag": '"abc"'}, {"ETag": 'W/"abc"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_a_cut_off_transfer_goes_on(server: Server, headers: dict[str, str]) -> None:
    item = record({"url": server.page("/file.pth", cuts=[100_000, 300_000], headers=headers), "sha256": SHA})
    said: list[str] = []
    assert fetch(item, report=said.append).path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-"]
    assert server.seen[1][1].get("If-Range") == (headers.get("Last-Modified") or headers.get("ETag"))
    assert "cut off after 100,000 of 512,000 bytes" in said[1]


def test_a_later_call_goes_on(server: Server) -> None:
    url = server.page("/file.pth", cuts=[200_000, 200_000])  # the second try brings nothing
    item = record({"url": url, "sha256": SHA})
    error = refused("VA-W001", item)
    assert "cut off after 200,000 of 512,000 bytes" in error.why
    assert files() == {"eca_resnet18.in1k.pth.part", "eca_resnet18.in1k.pth.part.json"}
    assert fetch(item).path.read_bytes() == CONTENT and server.ranges[-1] == "bytes=200000-"
    assert files() == {"eca_resnet18.in1k.pth"}


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    item = record({"url": server.page("/file.pth", ranges=False, cuts=[200_000]), "sha256": SHA})
    assert fetch(item).path.read_bytes() == CONTENT and len(server.seen) == 2


def test_another_file_at_the_same_address_starts_over(server: Server) -> None:
    url = server.page("/file.pth", cuts=[200_000, 200_000], headers={"ETag": '"old"'})
    item = record({"url": url, "sha256": hashlib.sha256(CONTENT[::-1]).hexdigest()})
    refused("VA-W001", item)
    server.page("/file.pth", content=CONTENT[::-1], headers={"ETag": '"new"'})
    assert fetch(item).path.read_bytes() == CONTENT[::-1]
    server.page("/short.pth", content=CONTENT[:1000])
    other = record({"url": server.address + "/short.pth", "sha256": hashlib.sha256(CONTENT[:1000]).hexdigest()}, tag="short")
    (folder() / "eca_resnet18.short.pth.part").write_bytes(CONTENT)
    memo = {"url": server.address + "/short.pth", "total": 600_000}
    (folder() / "eca_resnet18.short.pth.part.json").write_text(json.dumps(memo))
    assert fetch(other).path.read_bytes() == CONTENT[:1000], "416: the file is shorter than what is here"


def test_a_part_of_another_source_is_not_used(server: Server) -> None:
    first = server.page("/first.pth", content=CONTENT[::-1], cuts=[200_000, 200_000])
    item = record(first, {"url": server.page("/second.pth"), "sha256": SHA})
    assert fetch(item).path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=200000-", None]


def test_a_file_that_came_whole_before_the_process_ended(server: Server) -> None:
    url = server.page("/file.pth")
    folder().mkdir(parents=True)
    (folder() / "eca_resnet18.in1k.pth.part").write_bytes(CONTENT)
    (folder() / "eca_resnet18.in1k.pth.part.json").write_text(json.dumps({"url": url, "total": len(CONTENT)}))
    assert fetch(record({"url": url, "sha256": SHA})).path.read_bytes() == CONTENT and not server.seen


@pytest.mark.slow
def test_a_killed_process_leaves_what_came_and_no_lock(server: Server) -> None:
    url = server.page("/file.pth", pause=0.05)
    item = record({"url": url, "sha256": SHA})
    code = (
        "import sys; from visionattn.models.weights.download import fetch; from visionattn.models.weights.records import Record\n"
        "fetch(Record.model_validate_json(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, item.model_dump_json()], stderr=subprocess.DEVNULL)
    part = folder() / "eca_resnet18.in1k.pth.part"
    end = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size > 50_000):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert fetch(item).path.read_bytes() == CONTENT
    assert int(str(server.ranges[-1]).removeprefix("bytes=").removesuffix("-")) > 0


def test_two_at_once_download_once(server: Server) -> None:
    item = record({"url": server.page("/file.pth", pause=0.02), "sha256": SHA})
    said: list[str] = []
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(item, report=said.append).path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(results)) == 1 and len(server.seen) == 1
    assert sum("another process" in text for text in said) == 2


def test_a_lock_of_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from visionattn.files import locked\n"
        "with locked(Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"1\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        child.kill()

    with locked(tmp_path / "lock", kill):
        child.wait()
    assert waited == [True]
    child.stdout.close()


# ---------------------------------------------------------------- hosts that fail


@pytest.mark.parametrize("status", [404, 403, 500])
def test_http_errors(server: Server, status: int) -> None:
    url = server.page("/file.pth", content=b"", status=status)
    error = refused("VA-W001", record({"url": url, "sha256": SHA}, server.address + "/other.pth"))
    assert f"HTTP {status}" in error.why and "HTTP 404" in error.why
    assert url in error.fix and "file file.pth" in error.fix and SHA in error.fix and "127.0.0.1" in error.fix
    assert "visionattn weights import FILE" in error.fix


@pytest.mark.parametrize("kind", ["type", "content"])
def test_a_web_page_instead_of_the_file(server: Server, kind: str) -> None:
    content = b"\n <!DOCTYPE html><html>Sign in to download</html>"
    headers = {"Content-Type": "text/html; charset=utf-8" if kind == "type" else "application/octet-stream"}
    error = refused("VA-W001", record(server.page("/file.pth", content=content, headers=headers)))
    assert "web page" in error.why and files() == set()


def test_a_stall_ends_the_transfer(server: Server) -> None:
    item = record({"url": server.page("/file.pth", stalls=[100_000, 100_000]), "sha256": SHA})
    started = time.monotonic()
    error = refused("VA-W001", item, stall_timeout=0.3)
    assert "no data for 0.3 s" in error.why and time.monotonic() - started < 5
    assert fetch(item).path.read_bytes() == CONTENT and server.ranges[-1] == "bytes=100000-"


def test_hosts_that_never_answer_share_the_time(server: Server) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.pth"
        started = time.monotonic()
        error = refused("VA-W001", record(url, url + "2", url + "3"), answer_timeout=0.6)
        assert time.monotonic() - started < 3 and error.why.count("no answer within") == 3
        assert fetch(record(url, {"url": server.page("/file.pth"), "sha256": SHA}), answer_timeout=1.0).sha256 == SHA


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def nowhere(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    started = time.monotonic()
    error = refused("VA-W001", record("https://weights.example/file.pth", "https://mirror.example/file.pth"))
    assert "weights.example: cannot be reached" in error.why and "mirror.example" in error.why and time.monotonic() - started < 5


@pytest.mark.parametrize("switch", ["VISIONATTN_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(server: Server, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    item = record({"url": server.page("/file.pth"), "sha256": SHA})
    monkeypatch.setenv(switch, "1")
    error = refused("VA-W001", item)
    assert switch in error.why and SHA in error.fix and not server.seen
    monkeypatch.delenv(switch)
    fetch(item)
    monkeypatch.setenv(switch, "1")
    assert fetch(item).sha256 == SHA, "what is in the cache needs no network"


def test_sources_for_a_browser_are_listed_and_not_fetched(server: Server) -> None:
    page = {"url": server.page("/folder/"), "status": "page_only"}
    broken = {"url": server.page("/share?id=1"), "status": "reported_broken", "file_name": "tiny_in1k.pth"}
    error = refused("VA-W001", record(page, broken, note="nothing else was released"))
    assert not server.seen and "a page for a browser" in error.why and "reported broken" in error.why and "nothing else was" in error.why
    assert page["url"] in error.fix and "file tiny_in1k.pth" in error.fix


def test_a_redirect_to_an_unencrypted_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirect(requests.adapters.BaseAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            response = requests.Response()
            response.status_code, response.url, response.request = 302, request.url, request
            response.headers["Location"] = server.page("/file.pth")
            response.raw = io.BytesIO()
            return response

        def close(self) -> None:
            pass

    monkeypatch.setattr(requests.sessions, "HTTPAdapter", Redirect)
    error = refused("VA-W001", record("https://weights.example/file.pth"))
    assert "weights.example: redirect to an unencrypted address refused" in error.why and not server.seen


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1/file.pth", "http://weights.example/file.pth", "http://[::1"])
def test_a_redirect_to_what_is_not_the_web_is_refused(server: Server, place: str) -> None:
    url = server.page("/file.pth", content=b"", status=302, headers={"Location": place})
    why = refused("VA-W001", record(url)).why
    assert ("refused" in why or "Invalid IPv6" in why) and len(server.seen) == 1


def test_an_unencrypted_address_is_refused(server: Server) -> None:
    for place in ("http://weights.example/a.pth", "http://127.0.0.1.weights.example/a.pth"):
        assert "unencrypted address refused" in refused("VA-W001", record(place)).why


def test_redirects_end_and_their_text_is_not_read(server: Server) -> None:
    url = server.page("/file.pth", status=302, headers={"Location": "/file.pth"}, stalls=[0] * 20)
    assert "too many redirects" in refused("VA-W001", record(url)).why and len(server.seen) == download.REDIRECTS


def test_passwords_are_not_shown(server: Server) -> None:
    with pytest.raises(ValueError, match="url"):
        record("https://me:secret@weights.example/file.pth")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for place in ("http://me:secret@127.0.0.1/file.pth", f"http://127.0.0.1:{port}/file.pth?signature=secret"):
        error = refused("VA-W001", record(server.page("/file.pth", content=b"", status=302, headers={"Location": place})))
        assert "secret" not in str(error)


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_a_file_larger_than_expected(server: Server, monkeypatch: pytest.MonkeyPatch, length: bool, published: bool) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 400_000)
    url = server.page("/file.pth", length=length)
    size = {"bytes": 400_000} if published else {}
    error = refused("VA-W001", record({"url": url, **size}))
    assert ("published are 400,000" if length and published else "more than 400,000 bytes") in error.why and files() == set()
    monkeypatch.setenv("VISIONATTN_MAX_DOWNLOAD", "0.001")
    if published:
        refused("VA-W001", record({"url": url, **size}))
    else:
        assert fetch(record({"url": url, **size})).sha256 == SHA
        monkeypatch.setenv("VISIONATTN_MAX_DOWNLOAD", "much")
        with pytest.raises(UserError, match="expected GiB"):
            fetch(record(url, tag="other"))


def test_a_length_that_is_no_number(server: Server) -> None:
    url = server.page("/file.pth", length=False, headers={"Content-Length": "9" * 5000})
    assert fetch(record({"url": url, "sha256": SHA})).path.read_bytes() == CONTENT


def test_no_space(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    item = record({"url": server.page("/file.pth"), "sha256": SHA})
    monkeypatch.setattr("visionattn.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "VISIONATTN_CACHE" in refused("VA-R004", item).fix


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_disk_fills_up(server: Server) -> None:
    item = record({"url": server.page("/file.pth"), "sha256": SHA})
    folder().mkdir(parents=True)
    (folder() / "eca_resnet18.in1k.pth.part").symlink_to("/dev/full")
    assert "VISIONATTN_CACHE" in refused("VA-R004", item).fix


def test_another_length_than_published(server: Server) -> None:
    assert "published are 7" in refused("VA-W001", record({"url": server.page("/file.pth"), "bytes": 7})).why


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("digits", [{"sha256": "0" * 64}, {"sha256_prefix": "0" * 8}])
def test_a_wrong_hash_goes_into_quarantine(server: Server, digits: dict[str, str]) -> None:
    item = record({"url": server.page("/file.pth"), **digits}, server.page("/other.pth"))
    error = refused("VA-W002", item)
    assert SHA in error.why and next(iter(digits.values())) in error.why and len(server.seen) == 1
    (jail,) = (folder().parent / "quarantine").iterdir()
    assert jail.read_bytes() == CONTENT and str(jail) in error.where and files() == set()


def test_the_first_hash_is_pinned_and_a_later_one_refused(server: Server) -> None:
    item = record(server.page("/file.pth"))
    said: list[str] = []
    assert fetch(item, report=said.append).checked == "pinned on first use" and SHA in said[-1]
    assert fetch(item).checked == "as on first use"
    (folder() / "eca_resnet18.in1k.pth").unlink()
    assert fetch(item).checked == "as on first use"
    (folder() / "eca_resnet18.in1k.pth").unlink()
    server.page("/file.pth", content=CONTENT[::-1])
    error = refused("VA-W002", item)
    assert SHA in error.why and "hashes.json" in error.fix
    download._hashes_file().unlink()
    assert fetch(item).path.read_bytes() == CONTENT[::-1]


def test_a_cached_file_that_changed_is_not_used(server: Server) -> None:
    item = record(server.page("/file.pth"))
    path = fetch(item).path
    path.write_bytes(CONTENT[:-1])
    refused("VA-W002", item)
    assert fetch(item).path.read_bytes() == CONTENT, "downloaded again"


def test_a_file_put_there_by_hand_is_pinned(server: Server) -> None:
    item = record(server.page("/file.pth"), {"url": server.page("/mirror.pth"), "sha256_prefix": "0" * 8})
    folder().mkdir(parents=True)
    (folder() / "eca_resnet18.in1k.pth").write_bytes(CONTENT)
    path = cached_path(item)
    assert path is not None and check_cached(item, path).checked == "pinned on first use" and not server.seen
    assert check_cached(item, path).checked == "as on first use"


def test_store(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, free = record({"url": server.address + "/a.pth", "sha256": SHA}, tag="known"), record(server.address + "/b.pth", tag="free")
    monkeypatch.setattr(records, "records", lambda: (known, free))
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    (tmp_path / "other.safetensors").write_bytes(CONTENT[::-1])
    for item in (known, free):
        file = store(tmp_path / "mine.pth", "eca_resnet18", item.tag)
        assert file.checked == {"known": "as published", "free": "pinned on import"}[item.tag]
        assert file.path == cached_path(item) and fetch(item).sha256 == SHA and not server.seen
    assert store(tmp_path / "other.safetensors", "eca_resnet18.free").path.name == "eca_resnet18.free.safetensors"
    assert fetch(free).path.read_bytes() == CONTENT[::-1] and not (folder() / "eca_resnet18.free.pth").exists()
    store(folder() / "eca_resnet18.free.safetensors", "eca_resnet18.free")  # already in its place
    (tmp_path / "mine.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(UserError) as caught:
        store(tmp_path / "mine.pth", "eca_resnet18.known")
    assert caught.value.code == "VA-W002" and (tmp_path / "mine.pth").exists() and fetch(known).sha256 == SHA
    with pytest.raises(UserError) as caught:
        store(tmp_path / "mien.pth", "eca_resnet18.free")
    assert caught.value.code == "VA-W006" and "mine.pth" in caught.value.fix


# ---------------------------------------------------------------- create_model


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, Any]:
    """ECA-ResNet-18 with two made-up sets of weights: in1k (the default) and in22k with 7 classes."""
    torch.manual_seed(0)
    kept = {}
    made = []
    for tag, classes in (("in1k", 1000), ("in22k", 7)):
        kept[tag] = va.create_model("eca_resnet18", num_classes=classes).state_dict()
        url = server.page(f"/{tag}.safetensors", content=save(kept[tag]))
        made.append(record(url, tag=tag, num_classes=classes))
    monkeypatch.setattr(records, "records", lambda: tuple(made))
    return server, kept


def test_create_model_with_weights(published: tuple[Server, Any]) -> None:
    server, states = published
    for args, tag in (
        (("eca_resnet18", True), "in1k"),
        (("eca_resnet18.in1k", True), "in1k"),
        (("eca_resnet18", "in22k"), "in22k"),
        (("eca_resnet18.in22k", True), "in22k"),
    ):
        model = va.create_model(*args)
        assert all(torch.equal(value, states[tag][key]) for key, value in model.state_dict().items())
        assert model.num_classes == len(states[tag]["head.fc.bias"])
    assert len(server.seen) == 2
    cfg = model.pretrained_cfg
    assert cfg["tag"] == "in22k" and cfg["url"].endswith("/in22k.safetensors") and cfg["license"] == "MIT" and cfg["num_classes"] == 7
    assert cfg["sha256"] == hashlib.sha256(server.pages["/in22k.safetensors"].content).hexdigest()
    assert cfg["input_size"] == (3, 64, 64) and cfg["mean"] == (0.5, 0.5, 0.5) and cfg["interpolation"] == "bilinear"
    assert cfg["architecture"] == "eca_resnet18" and cfg["crop_pct"] == 0.9


def test_create_model_adapts(published: tuple[Server, Any], caplog: pytest.LogCaptureFixture) -> None:
    states = published[1]
    with caplog.at_level("INFO", logger="visionattn"):
        model = va.create_model("eca_resnet18", "in22k", num_classes=5, in_chans=1, img_size=96)
    assert "checkpoint head has 7 classes, the model 5" in caplog.text and "3 -> 1 input channels" in caplog.text
    assert model.pretrained_cfg["input_size"] == (1, 96, 96) and model.pretrained_cfg["mean"] == (0.5,)
    for stages in (None, (0, 2)):
        backbone = va.create_model("eca_resnet18", pretrained=True, features_only=True, out_indices=stages)
        assert all(torch.equal(value, states["in1k"][f"backbone.{key}"]) for key, value in backbone.state_dict().items())


def test_a_tag_without_loading(published: tuple[Server, Any]) -> None:
    model = va.create_model("eca_resnet18.in22k")
    assert model.num_classes == 7 and model.pretrained_cfg["tag"] == "in22k" and not published[0].seen
    plain = va.create_model("eca_resnet18")
    assert plain.num_classes == 1000 and plain.pretrained_cfg["tag"] == "in1k"


def test_what_is_not_published(published: tuple[Server, Any]) -> None:
    with pytest.raises(UserError) as caught:
        va.create_model("eca_resnet18", "in21k")
    assert caught.value.code == "VA-W007" and "Did you mean" in caught.value.fix and "There are: in1k, in22k" in caught.value.fix
    for call in (lambda: va.create_model("eca_resnet18.nothing"), lambda: va.create_model("eca_resnet18.in1k", "in22k")):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.code == "VA-W007"
    with pytest.raises(UserError) as caught:
        va.create_model("eca_resnet34", pretrained=True)
    assert caught.value.code == "VA-W001" and "no published weights of eca_resnet34" in caught.value.what and caught.value.exit_code == 4
    with pytest.raises(UserError) as caught:
        va.create_model("eca_resnet18x.in1k", pretrained=True)
    assert caught.value.code == "VA-M001"
    assert not published[0].seen and not os.path.exists(folder())
