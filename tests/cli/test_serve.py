"""`visionattn serve`: answers, hostile uploads, the queue, strangers, and its end."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from tests.commands import Trained, done, refused
from tests.faults.harness import Server
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.jobs import serve
from visionattn.jobs.serve import listening, open_served
from visionattn.jobs.serve_app import build_app, make_server
from visionattn.jobs.service import Limits, Service
from visionattn.tasks import TASKS

NAME = "<b>run</b> & 'x'"
LIMITS = Limits(bytes=300_000, pixels=250_000, waiting=3)


@dataclass
class Served:
    """A server in a thread of this process."""

    url: str
    service: Service
    warnings: list[str] = field(default_factory=list)

    def post(self, content: bytes, path: str = "/predict", **headers: str) -> requests.Response:
        found = requests.post(self.url + path, content, headers=headers, timeout=60)
        assert found.headers["content-type"] == "application/json" and "Traceback" not in found.text
        return found


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    loaded = open_served(trained.run, [], LIMITS, Console(quiet=True))
    warnings: list[str] = []
    service = Service(NAME, loaded, LIMITS, torch.device("cpu"), nullcontext, warnings.append)
    started = threading.Event()
    server = make_server(build_app(service, "127.0.0.1", warnings.append), started.set)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert started.wait(30)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, warnings)
        server.should_exit = True
        thread.join()


def encoded(array: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_answer_is_that_of_predict(served: Served, trained: Trained) -> None:
    image = next((trained.data / "val/rose").iterdir())
    (entry,) = json.loads(done("predict", trained.run, "--source", image, "--json", "train.precision=fp32").stdout)["predictions"]
    answer = served.post(image.read_bytes()).json()
    assert answer["classes"] == entry["classes"] and answer["probabilities"] == pytest.approx(entry["probabilities"], abs=1e-6)
    assert [bar["name"] for bar in answer["bars"]] == entry["classes"] and answer["headline"] == entry["classes"][0]
    assert "path" not in answer and "pictures" not in answer
    assert len(served.post(image.read_bytes(), "/predict?topk=1&pictures=true").json()["classes"]) == 1
    about = requests.get(served.url + "/model", timeout=60).json()
    assert about["classes"] == ["daisy", "rose", "tulip"] and about["max_bytes"] == 300_000 and about["task"] == "classify"


def test_an_explanation(served: Served, trained: Trained) -> None:
    content = next((trained.data / "val/rose").iterdir()).read_bytes()
    answer = served.post(content, "/explain?class=tulip").json()
    assert answer["class"] == "tulip" and answer["method"] == "Grad-CAM" and 0 <= float(answer["probability"]) <= 1
    assert min(Image.open(BytesIO(base64.b64decode(answer["picture"].partition(",")[2]))).size) >= 224
    wrong = served.post(content, "/explain?class=ruse")
    assert wrong.status_code == 400 and "ruse" in wrong.json()["error"]["what"]


def test_the_page_runs_nothing_but_its_own_script(served: Served) -> None:
    found = requests.get(served.url, timeout=60)
    assert found.status_code == 200 and "&lt;b&gt;run" in found.text and "<b>run" not in found.text
    policy = found.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    )
    assert "access-control-allow-origin" not in found.headers and "server" not in found.headers
    assert not re.search(r"<script(?! src=\"/serve.js\" defer>)|<style|\sstyle=|\son\w+=", found.text)
    for name, kind in (("serve.js", "text/javascript"), ("serve.css", "text/css")):
        part = requests.get(f"{served.url}/{name}", timeout=60)
        assert part.status_code == 200 and part.headers["content-type"].startswith(kind) and "innerHTML" not in part.text
        assert part.headers["x-content-type-options"] == "nosniff"


SIXTEEN = noise(40, 50).astype(np.uint16) * 257
BOMB = bytearray(encoded(noise(4, 4)))
BOMB[16:24] = (30_000).to_bytes(4, "big") * 2  # its header says 30,000 x 30,000 pixels
BOMB[29:33] = zlib.crc32(BOMB[12:29]).to_bytes(4, "big")

UPLOADS = {
    "text": (b"GET / HTTP/1.1 <script>alert(1)</script>", 415, "VA-D011"),
    "nothing": (b"", 400, "VA-D011"),
    "truncated": (encoded(noise(60, 60, 3), "JPEG")[:-900], 422, "VA-D010"),
    "bomb": (bytes(BOMB), 413, "VA-D020"),
    "too many pixels": (encoded(np.zeros((600, 600), np.uint8)), 413, "VA-D020"),
    "too many bytes": (encoded(noise(400, 400, 3), "BMP"), 413, "VA-D020"),
    "thin": (encoded(np.zeros((1, 100), np.uint8)), 413, "VA-D020"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "VA-D011"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", 415, "VA-D011"),
    "16 bits": (encoded(Image.fromarray(SIXTEEN)), 200, ""),
    "cmyk": (encoded(Image.fromarray(noise(40, 50, 4), "CMYK"), "JPEG"), 200, ""),
    "animated": (encoded(Image.fromarray(noise(40, 50)), "GIF", save_all=True, append_images=[Image.fromarray(noise(50, 40).T)]), 200, ""),
    "transparent": (encoded(noise(40, 50, 4)), 200, ""),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads(served: Served, name: str) -> None:
    content, status, code = UPLOADS[name]
    found = served.post(content)
    assert found.status_code == status, found.text
    if status == 200:
        assert sum(found.json()["probabilities"]) == pytest.approx(1, abs=1e-3)
    else:
        assert set(found.json()) == {"error"} and found.json()["error"]["code"] == code
        assert str(Path.home()) not in found.text and "data.max_bytes" not in found.text


def test_an_upload_without_a_length_is_cut_off(served: Served) -> None:
    found = requests.post(served.url + "/predict", (b"x" * 100_000 for _ in range(5)), timeout=60)
    assert found.status_code == 413 and found.json()["error"]["code"] == "VA-D020"


def test_other_requests_get_errors_as_json(served: Served) -> None:
    for path, status in (("/predict?topk=0", 400), ("/predict?topk=x", 400), ("/nothing", 404), ("/../../etc/passwd", 404)):
        found = served.post(b"x", path)
        assert found.status_code == status and set(found.json()) == {"error"}
    assert requests.get(served.url + "/predict", timeout=60).status_code == 405
    assert "/predict" in requests.get(served.url + "/openapi.json", timeout=60).json()["paths"]


def test_strangers(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    for host, status in (
        (f"localhost:{port}", 200),
        ("LOCALHOST", 200),
        (f"evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("", 421),
    ):
        assert requests.get(served.url, headers={"Host": host}, timeout=60).status_code == status, host
    image = encoded(noise(40, 50, 3))
    assert served.post(image, Origin=served.url).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert served.post(image, **headers).status_code == 403


@pytest.mark.parametrize(
    ("bound", "host", "status"), [("0.0.0.0", "192.168.1.7:8000", None), ("::", "[fe80::1]", None), ("0.0.0.0", "evil.example", 421)]
)
def test_a_server_for_others_answers_to_addresses(served: Served, bound: str, host: str, status: int | None) -> None:
    guard: Any = build_app(served.service, bound)
    refusal = guard.refusal({"headers": [(b"host", host.encode())], "method": "GET"})
    assert (refusal and refusal.status) == status


def test_fifty_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is computed at a time, a few wait, the others are told when to come back."""
    inside, most, real = 0, 0, served.service.predictor

    def slow(batch: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        found = real(batch)
        inside -= 1
        return found

    monkeypatch.setattr(served.service, "predictor", slow)
    image = encoded(noise(40, 50, 3))
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda _: served.post(image), range(50)))
    answered = [answer.json() for answer in found if answer.status_code == 200]
    busy = [answer for answer in found if answer.status_code == 503]
    assert len(answered) + len(busy) == 50 and len(answered) >= 4 and busy and most == 1
    assert all(answer["probabilities"] == answered[0]["probabilities"] for answer in answered)
    assert all(int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["code"] == "busy" for answer in busy)
    assert served.post(image).status_code == 200


def test_faults_of_ours_are_reported_on_the_terminal_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, status, code in ((ZeroDivisionError("secret"), 500, "VA-X001"), (MemoryError("secret"), 503, "VA-R001")):

        def fail(batch: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(served.service, "predictor", fail)
        found = served.post(encoded(noise(40, 50, 3)))
        assert found.status_code == status and found.json()["error"]["code"] == code and "secret" not in found.text
        assert "secret" in served.warnings[-1]


def test_mistakes(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = refused(tmp_path, "VA-R007", 7, "serve", trained.run, "--port", taken.getsockname()[1])
        assert "is in use" in text and "--port 0" in text
    assert "--host 127.0.0.1" in refused(tmp_path, "VA-C002", 2, "serve", trained.run, "--host", "192.0.2.7", "--port", 0)
    assert "visionattn serve RUN" in refused(tmp_path, "VA-C005", 2, "serve", "eval.flips=both")
    assert "one model is served" in refused(tmp_path, "VA-M004", 2, "serve", trained.run, trained.run)
    monkeypatch.setattr(serve, "PACKAGES", ("no_such_package",))
    assert 'pip install "visionattn[serve]"' in refused(tmp_path, "VA-R007", 7, "serve", trained.run)


def test_tasks_without_images_say_so() -> None:
    for name in ("volumes", "bags"):
        with pytest.raises(UserError, match="cannot be served"):
            TASKS[name].presenter(None, {}, 5)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(server: Server, trained: Trained, tmp_path: Path, stop: signal.Signals) -> None:
    output = tmp_path / "out.txt"
    output.touch()  # it is read before the command can have made it
    command = server.start(["serve", str(trained.run), "--port", "0", "--device", "cpu"], output)
    assert command.until(lambda: "stop with Ctrl-C" in command.text), command.text
    address = re.search(r"http://127\.0\.0\.1:\d+", command.text)
    assert address is not None and requests.get(address[0] + "/model", timeout=60).status_code == 200
    command.signal(stop)
    assert command.wait() == 130 and "Traceback" not in command.text and "error" not in command.text
