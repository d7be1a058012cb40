"""Serve a model to browsers and programs: one model, one call at a time, on an address of this machine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from visionattn.console import Console
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.errors import UserError
from visionattn.jobs.service import Limits, Service
from visionattn.names import shown
from visionattn.runs.interrupts import interrupting, stop_signals
from visionattn.runs.load import LoadedModel, load_models
from visionattn.tasks import CHANGEABLE, change_config, name_plugins

PACKAGES = ("fastapi", "uvicorn")


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
