"""The web side of `serve`: routes, limits, the queue, and who may ask.

No name, path or address in a request reaches the disk or another program; pages and scripts are our own, and no other site may use them.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import math
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from visionattn.data.readers import UnreadableFile
from visionattn.errors import UserError, lacks_memory
from visionattn.files import json_text
from visionattn.jobs.service import Service
from visionattn.names import shown
from visionattn.report.page import template

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d+)?")
UPLOAD_SECONDS = 60.0  # that an upload may take
STOP_SECONDS = 10  # that answers may take once the server is to end

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_STATUS = {"VA-D010": 422, "VA-D011": 415, "VA-D020": 413, "VA-D022": 422, "VA-C002": 400, "VA-M004": 422, "VA-R007": 501}


class Refused(Exception):
    """A request that gets an error.

    Args:
        status: of HTTP.
        code: `VA-` code, or the name of the status.
        what: what is wrong, in one line.
        why: the reason, if it is not obvious.
        retry: seconds after which to try again.
    """

    def __init__(self, status: int, code: str, what: str, why: str = "", retry: int | None = None) -> None:
        super().__init__(what)
        self.status, self.code, self.what, self.why, self.retry = status, code, what, why, retry

    def response(self) -> Response:
        """The error as JSON: what and why as one line each, and never where, which is a path of the server."""
        error = {"code": self.code, "what": shown(self.what)} | ({"why": shown(self.why)} if self.why else {})
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        return Response(json_text({"error": error}), self.status, headers, "application/json")


class Turns:
    """Lets one request compute at a time, and a few wait.

    Args:
        waiting: requests that wait at most.
    """

    def __init__(self, waiting: int) -> None:
        self.most, self.inside, self.seconds = waiting + 1, 0, 1.0
        self.thread = ThreadPoolExecutor(1, "model")  # CUDA, autocast and gradients have a state per thread
        self.turn = asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue, from before the upload is read, so that uploads in memory are as few.

        Raises:
            Refused: 503, all are taken.
        """
        if self.inside >= self.most:
            retry = max(1, math.ceil(self.seconds * self.inside))
            raise Refused(503, "busy", f"{self.inside} requests are computed or wait", "try again later", retry)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def compute(self, request: Request, call: Callable[[], Any]) -> Any:
        """The result of a call, when it is its turn.

        Raises:
            Refused: 499, nobody waits for it any more.
        """
        async with self.turn:
            if await request.is_disconnected():
                raise Refused(499, "gone", "the client has closed the connection")
            started = time.monotonic()
            try:
                return await asyncio.get_running_loop().run_in_executor(self.thread, call)
            finally:
                self.seconds = 0.7 * self.seconds + 0.3 * (time.monotonic() - started)


class Guard:
    """Answers only requests that name this server, and marks all answers as ours alone.

    A page of another site that makes its name point to this machine (DNS rebinding) sends its own name as the host; one that
    sends a form or a script's request across sites says so in its origin.

    Args:
        host: address that the server listens on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self.open = host in ("0.0.0.0", "::", "")  # reached by addresses that nobody can list
        if self.open:
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket, of which there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        refused = self.refusal(scope)
        app = self.app if refused is None else refused.response()
        await app(scope, receive, send_marked)

    def refusal(self, scope: Scope) -> Refused | None:
        """Why a request gets no answer."""
        given = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in given if name == b"host"]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return Refused(421, "host", "this server has another name", f"host {', '.join(hosts)[:80]}")
        origins = [value for name, value in given if name == b"origin"]
        sites = [value for name, value in given if name == b"sec-fetch-site"]
        foreign = any(origin.lower().rpartition("//")[2] != hosts[0].lower() for origin in origins)
        if scope["method"] not in ("GET", "HEAD") and (foreign or "cross-site" in sites):
            return Refused(403, "origin", "requests of pages of other sites are not answered")
        return None

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].strip("[]")
        if not self.open or name in self.names:
            return name in self.names
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address has no name that could point elsewhere


def build_app(service: Service, host: str, warn: Callable[[str], object] = lambda text: None) -> ASGIApp:
    """The page and the endpoints of a model.

    Args:
        host: address that the server listens on.
        warn: takes a line about a fault.
    """
    app = FastAPI(title=service.name, docs_url=None, redoc_url=None)
    turns, about = Turns(service.limits.waiting), service.about()
    page = template("serve.html").render(about=about)
    own = {name: (files("visionattn.report") / "templates" / name).read_bytes() for name in ("serve.css", "serve.js")}

    async def answer(request: Request, call: Callable[[bytes], Any]) -> Any:
        """The result of a call with the upload, or its error as one of HTTP."""
        async with turns.place():
            content = await upload(request, service.limits.bytes)
            try:
                return await turns.compute(request, lambda: call(content))
            except UnreadableFile as error:
                raise Refused(_STATUS.get(error.code, 422), error.code, "the image cannot be read", error.reason) from error
            except UserError as error:
                raise Refused(_STATUS.get(error.code, 500), error.code, error.what, error.why) from error
            except Refused:
                raise
            except Exception as error:
                warn(f"{request.url.path}: {type(error).__name__}: {error}")
                if lacks_memory(error):
                    raise Refused(503, "VA-R001", "out of memory", "a smaller image needs less", 30) from error
                raise Refused(500, "VA-X001", "internal fault", "the terminal of the server names it") from error

    @app.get("/", include_in_schema=False)
    async def _page() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/serve.css", include_in_schema=False)
    async def _style() -> Response:
        return Response(own["serve.css"], media_type="text/css")

    @app.get("/serve.js", include_in_schema=False)
    async def _script() -> Response:
        return Response(own["serve.js"], media_type="text/javascript")

    @app.get("/model", summary="What is served, and its limits")
    async def _model() -> Response:
        return _json(about)

    @app.post("/predict", summary="Classes of an image, which is the body of the request", openapi_extra=_UPLOAD)
    async def _predict(
        request: Request,
        topk: Annotated[int, Query(ge=1, le=1000, description="Classes per answer.")] = 5,
        pictures: Annotated[bool, Query(description="Add mask and overlay as data URLs, of tasks that have them.")] = False,
    ) -> Response:
        started = time.monotonic()
        found = await answer(request, lambda content: service.predict(content, topk))
        result = {
            **found.facts,
            "headline": found.headline,
            "meaning": found.meaning,
            "bars": [bar._asdict() for bar in found.bars],
            "seconds": round(time.monotonic() - started, 3),
        }
        if pictures:
            result["pictures"] = {name: _data_url(*picture) for name, picture in found.pictures.items()}
        return _json(result)

    if service.explains:

        @app.post("/explain", summary="What the model looked at in an image", openapi_extra=_UPLOAD)
        async def _explain(
            request: Request,
            class_name: Annotated[str | None, Query(alias="class", max_length=1000, description="Class to explain.")] = None,
        ) -> Response:
            facts, picture = await answer(request, lambda content: service.explain(content, class_name))
            return _json({**facts, "picture": _data_url("image/png", picture)})

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return Refused(error.status_code, "http", str(error.detail)).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Refused(400, "VA-C002", f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}").response()

    return Guard(app, host)


async def upload(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: 413, too large; 400, empty; 408, it takes too long.
    """
    length = request.headers.get("content-length", "")
    content = bytearray()

    async def read() -> None:
        async for piece in request.stream():
            content.extend(piece)
            if len(content) > most:
                raise _too_large(most)

    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    try:
        await asyncio.wait_for(read(), UPLOAD_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused(408, "slow", f"the upload takes more than {UPLOAD_SECONDS:.0f} seconds") from error
    if not content:
        raise Refused(400, "VA-D011", "the body of the request is empty", "it has to be the content of an image file")
    return bytes(content)


def make_server(app: ASGIApp, ready: Callable[[], object] = lambda: None) -> uvicorn.Server:
    """A server whose `run` answers on sockets until a signal, which it raises again.

    Args:
        ready: called once it answers.
    """

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",  # faults are reported by `warn`
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever asks could set them
        ws="none",
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Announced(config)


_UPLOAD = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


def _json(value: Any) -> Response:
    return Response(json_text(value), media_type="application/json")


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _too_large(most: int) -> Refused:
    return Refused(413, "VA-D020", f"the upload is larger than {most:,} bytes")
