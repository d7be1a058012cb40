"""A hub on this machine that speaks as much of Hugging Face's protocol as downloads and uploads need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"  # such files are in LFS, as at the hub
Files = dict[str, bytes]


@dataclass
class Hub:
    """Models by id, each with its commits; the last one is `main`.

    Attributes:
        seen: method, path, and the authorization of each request.
        token: what has to be sent; empty: nothing.
        down: whether every request is answered with 503.
    """

    address: str
    models: dict[str, dict[str, Files]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    token: str = ""
    down: bool = False
    tampered: bytes = b""  # sent instead of large files

    def commit(self, model: str, files: Files) -> str:
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.models.setdefault(model, {})[name] = files
        return name

    def asked(self, part: str) -> int:
        return sum(part in path for _, path, _ in self.seen)


@contextmanager
def hub_server() -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, content: bytes, status: int = 200, kind: str = "text/plain", **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        def json(self, value: Any, status: int = 200) -> None:
            self.answer(json.dumps(value).encode(), status, "application/json")

        def handle_any(self) -> None:
            path = urlsplit(self.path).path
            hub.seen.append((self.command, path, self.headers.get("Authorization")))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.down:
                return self.json({"error": "down"}, 503)
            if path.startswith("/cdn/"):  # addresses that are signed need no token
                return self.answer(hub.tampered or hub.uploads[path.rpartition("/")[2]], kind="application/octet-stream")
            if path.startswith("/upload/"):
                return self.handle_put(path, body)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.json({"error": "Repository not found"}, 401)
            getattr(self, f"handle_{self.command.lower()}")(path, body)

        do_GET = do_POST = do_PUT = handle_any

        def handle_get(self, path: str, body: bytes) -> None:
            parts = path.strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            commits = hub.models.get(name, {})
            revision = unquote(parts[5] if parts[0] == "api" else parts[3])
            commit = list(commits)[-1] if revision == "main" and commits else revision
            if commit not in commits:
                return self.json({"error": "not found"}, 404)
            if parts[0] == "api":
                return self.json({"id": name, "sha": commit, "siblings": [listed(*item) for item in commits[commit].items()]})
            content = commits[commit][parts[4]]
            if not parts[4].endswith(LARGE):
                return self.answer(content)
            digest = hashlib.sha256(content).hexdigest()
            hub.uploads[digest] = content
            # By another name of the same host, which a token must not be sent to.
            self.answer(b"", 302, Location=hub.address.replace("127.0.0.1", "localhost") + f"/cdn/{digest}")

        def handle_post(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                hub.created.append(json.loads(body))
                name = f"{hub.created[-1]['organization']}/{hub.created[-1]['name']}"
                hub.models.setdefault(name, {})
                self.json({"url": f"{hub.address}/{name}"})
            elif path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = [item["path"] for item in json.loads(body)["files"]]
                modes = [
                    {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False, "oid": None}
                    for name in files
                ]
                self.json({"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**item, "actions": {"upload": {"href": f"{hub.address}/upload/{item['oid']}"}}} for item in json.loads(body)["objects"]
                ]
                self.json({"transfer": "basic", "objects": objects})
            else:
                name = "/".join(path.split("/")[3:5])
                files = {}
                for line in map(json.loads, body.decode().splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.uploads[value["oid"]]
                commit = hub.commit(name, files)
                self.json({"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"})

        def handle_put(self, path: str, body: bytes) -> None:
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            hub.uploads[path.rpartition("/")[2]] = body
            self.answer(b"")

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def listed(name: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    facts: dict[str, Any] = {"rfilename": name, "size": len(content)}
    facts["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if name.endswith(LARGE):
        facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return facts
