"""Serve a model to browsers and programs: one model, one call at a time, on an address of this machine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visionattn.console import Console
from visionattn.data.readers import UnreadableFile, header_facts
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.errors import UserError
from visionattn.jobs.explain import explained_picture
from visionattn.names import shown
from visionattn.runs.interrupts import interrupting, stop_signals
from visionattn.runs.load import LoadedModel, load_models
from visionattn.tasks import CHANGEABLE, change_config, name_plugins
from visionattn.tasks.base import Answer, Question

PACKAGES = ("fastapi", "uvicorn")
LONGEST = 32  # times the shorter side: preprocessing enlarges the shorter side of an image to that of the network


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        bytes: of an upload.
        pixels: of an image.
        waiting: requests that wait for the one that is computed; further ones are told to come back.
    """

    bytes: int = 20 * 2**20
    pixels: int = 36_000_000
    waiting: int = 16


class Service:
    """Answers about images, one at a time.

    Args:
        name: of the model, to show.
        loaded: its model is on `device`.
        autocast: makes the context of its precision.
        warn: takes a line for the terminal.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        limits: Limits,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        warn: Callable[[str], object],
    ) -> None:
        self.name, self.loaded, self.limits, self.device, self.autocast = name, loaded, limits, device, autocast
        task, config = loaded.task, loaded.config
        task.presenter(config, loaded.target, 1)  # a task that is not served stops here
        self.predictor = task.file_predictor(config, loaded.target, loaded.model, device, (), warn)
        backbone = getattr(loaded.model, "backbone", None)  # an exported graph has none, and some have no maps
        self.explains = len(getattr(backbone, "stages", ())) > 0

    def about(self) -> dict[str, Any]:
        """Facts about the model."""
        classes = self.loaded.target.get("display_classes") or self.loaded.target.get("classes") or []
        return {
            "model": self.name,
            "network": self.loaded.config.model.name,
            "task": self.loaded.task.name,
            "classes": list(classes),
            "explains": self.explains,
            "max_bytes": self.limits.bytes,
            "max_pixels": self.limits.pixels,
        }

    def predict(self, content: bytes, topk: int) -> Answer:
        """Answer what an image shows.

        Args:
            content: that of the file.

        Raises:
            UnreadableFile: it is no image, damaged, or above a limit.
            UserError: VA-M004, a size that an exported network does not take.
        """
        self._require_small(content)
        task, config = self.loaded.task, self.loaded.config
        dataset = task.upload_dataset(config, self.loaded.model, content)
        batch = dataset.collate([dataset[0]])
        if batch.unreadable:
            raise UnreadableFile(*batch.unreadable[0])
        with self._current_device(), self.autocast(), torch.inference_mode():
            return task.presenter(config, self.loaded.target, topk)(self.predictor(batch), batch)

    def explain(self, content: bytes, class_name: str | None) -> tuple[dict[str, str], bytes]:
        """What the model looked at: facts, and a picture as PNG.

        Raises:
            UnreadableFile: as `predict`.
            UserError: VA-C002, a class that is not there; VA-D010, damaged; VA-R007, a package is missing.
        """
        self._require_small(content)
        with self._current_device():
            picture, facts = explained_picture(self.loaded, Question(content, None, class_name), self.device)
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return facts, buffer.getvalue()

    def _current_device(self) -> AbstractContextManager[Any]:
        """The GPU as the current one of this thread, for kernels."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _require_small(self, content: bytes) -> None:
        """Look at the header before anything is decoded.

        Raises:
            UnreadableFile: VA-D020, above a limit.
        """
        facts = header_facts(content, max_bytes=2**62)
        sides = sorted((facts.width, facts.height))
        if sides[0] * sides[1] * max(1, facts.channels // 4) > self.limits.pixels:
            what = f"image of {facts.width} x {facts.height} pixels: the limit is {self.limits.pixels:,} pixels"
            raise UnreadableFile("upload", what, "VA-D020")
        if sides[1] > LONGEST * sides[0]:
            what = f"image of {facts.width} x {facts.height} pixels: a side may be {LONGEST} times the other at most"
            raise UnreadableFile("upload", what, "VA-D020")


def serve(
    source: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM: a page at `/`, and JSON at `/predict` and `/explain`.

    Args:
        source: one model, see `load_model`.
        host: address to listen on; others than those of this machine itself can be reached from outside.
        port: 0 takes a free one.
        limits: by default those of `Limits`.
        settings: as in `evaluate`.
        console: where the address is printed.

    Raises:
        UserError: VA-R007, a package is missing, or the port is in use; VA-C002, a host that is not of this machine, or a task that is
            not served; VA-M004, several models; as `load_models` and `change_config`.
        KeyboardInterrupt: at the end.
    """
    console, limits = console or Console(quiet=True), limits or Limits()
    require_packages()
    with listening(host, port) as listener:
        loaded = open_served(source, settings, limits, console)
        with open_accelerator(loaded.config.train) as accelerator, interrupting(stop_signals(None)):
            loaded.model.to(accelerator.device).requires_grad_(False)
            service = Service(_title(source, loaded), loaded, limits, accelerator.device, accelerator.autocast, console.warn)
            from visionattn.jobs.serve_app import build_app, make_server

            def announce() -> None:
                address = _address(host, listener.getsockname()[1])
                console.field("serving", f"{shown(str(source))} (task {loaded.task.name}) on {address}\nstop with Ctrl-C")
                if not _is_local(host):
                    console.warn("everybody who reaches this machine can use it: there is no password")

            make_server(build_app(service, host, console.warn), announce).run([listener])


def require_packages() -> None:
    """Check that the extra is there, without importing it.

    Raises:
        UserError: VA-R007.
    """
    for name in PACKAGES:
        if find_spec(name) is None:
            what = f"the server needs the package {name}, which is not installed"
            raise UserError("VA-R007", what, fix='pip install "visionattn[serve]"')


def listening(host: str, port: int) -> socket.socket:
    """A socket on an address, which takes no connections yet.

    Raises:
        UserError: VA-C002, the address is not one of this machine; VA-R007, the port is in use or not to be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        fix = "--host 127.0.0.1 for this machine alone, --host 0.0.0.0 for others too"
        raise UserError("VA-C002", f"--host: {host} is not an address of this machine", why=str(error), fix=fix) from error
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where the other option would take the port from its owner
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(0)  # Linux tells only here that another program listens
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRNOTAVAIL:
            fix = "--host 127.0.0.1 for this machine alone, --host 0.0.0.0 for others too"
            raise UserError("VA-C002", f"--host: {host} is not an address of this machine", fix=fix) from error
        what = f"port {port} is in use" if error.errno == errno.EADDRINUSE else f"port {port} cannot be used"
        raise UserError("VA-R007", what, where=host, why=error.strerror or str(error), fix="--port 0 takes a free one") from error
    return found


def open_served(source: str | Path, settings: Sequence[str], limits: Limits, console: Console) -> LoadedModel:
    """The one model of a source, with the settings it is served with.

    Raises:
        UserError: VA-M004, several models; as `load_models` and `change_config`.
    """
    settings = name_plugins(settings)
    models = load_models(source, lambda text: console.field("", text))
    if len(models) > 1:
        raise UserError("VA-M004", f"one model is served, and there are {len(models)}", fix="name one of the runs")
    (loaded,) = models
    config = loaded.config.model_copy(update={"train": inference_settings(loaded.config.train, console.warn)})
    config = change_config(config, settings, CHANGEABLE)
    data = config.data.at("").read_once()
    if hasattr(data, "max_bytes"):
        data = data.model_copy(update={"max_bytes": min(data.max_bytes, 24 * limits.pixels)})
    return LoadedModel(loaded.task, config.model_copy(update={"data": data}), loaded.model, loaded.target, loaded.run)


def _title(source: str | Path, loaded: LoadedModel) -> str:
    """A name of the model that tells strangers nothing about folders."""
    if loaded.run is not None:
        return shown(f"{loaded.run.path.resolve().parent.name}/{loaded.run.path.resolve().name}")
    return shown(Path(source).name if Path(source).exists() else str(source))


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
