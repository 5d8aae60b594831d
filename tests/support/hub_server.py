"""A small Hub on loopback: it speaks as much of the Hub's HTTP protocol as pushing and loading a model needs.

with serve() as hub:
    ...                                     # a process with HF_ENDPOINT=hub.url pushes to "name/model"
    hub.repositories["name/model"]          # path -> content at its last commit
    hub.uploads                             # sha256 -> content, of what came by the protocol for large files (LFS)
    hub.requests                            # "POST /api/repos/create", ... in their order
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_nobody"
USER = "somebody"


class Hub(ThreadingHTTPServer):
    """The repositories, and what was asked of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.messages: dict[str, list[str]] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.crashes: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.crashes.append(traceback.format_exc())

    def commit_of(self, name: str) -> str:
        """40 hex digits that change with every commit."""
        return hashlib.sha1(json.dumps([name, len(self.messages[name])]).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.server.requests.append(f"{self.command} {path}")
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Invalid credentials")
        for pattern, action in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return action(self, body, **found.groupdict())
        self._refuse(404, "this Hub does not know that path")

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json")

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self._send(json.dumps({"error": message}).encode(), status, X_Error_Code=code, X_Error_Message=message)

    def _whoami(self, body: bytes) -> None:
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _validate_card(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        self.server.messages.setdefault(name, [])
        self._json({"url": f"{self.server.url}/{name}", "id": name}, 409 if known else 200)

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        # Weights go to large file storage, as a new repository's .gitattributes on the Hub have it.
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.uploads:
                one["actions"] = {"upload": {"href": f"{self.server.url}/storage/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "the content does not have that hash")
        self.server.uploads[oid] = body
        self._send(b"")

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                self.server.messages[name].append(value["summary"])
            elif one["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                content = self.server.uploads.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    return self._refuse(400, f"{value['path']} was not uploaded")
                self.server.repositories[name][value["path"]] = content
            else:
                return self._refuse(400, f"this Hub takes no {one['key']}")
        oid = self.server.commit_of(name)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _info(self, body: bytes, name: str, revision: str = "main") -> None:
        if name not in self.server.repositories:
            return self._refuse(404, "no such repository", "RepoNotFound")
        files = [{"rfilename": path} for path in self.server.repositories[name]]
        self._json({"id": name, "modelId": name, "sha": self.server.commit_of(name), "siblings": files, "tags": []})

    def _tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        if name not in self.server.repositories:
            return self._refuse(404, "no such repository", "RepoNotFound")
        files = self.server.repositories[name].items()
        inside = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files
            if folder is None or path.startswith(folder + "/")
        ]
        if folder and not inside:
            return self._refuse(404, "no such folder", "EntryNotFound")
        self._json(inside)

    def _resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if name not in self.server.repositories:
            return self._refuse(404, "no such repository", "RepoNotFound")
        content = self.server.repositories[name].get(path)
        if content is None:
            return self._refuse(404, "no such file", "EntryNotFound")
        tag = hashlib.sha1(content).hexdigest()
        self._send(content, ETag=f'"{tag}"', X_Repo_Commit=self.server.commit_of(name))


_MODEL = r"/api/models/(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    (r"GET /api/whoami-v2", _Handler._whoami),
    (r"POST /api/validate-yaml", _Handler._validate_card),
    (r"POST /api/repos/create", _Handler._create),
    (rf"POST {_MODEL}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (r"POST /(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /storage/(?P<oid>[0-9a-f]{64})", _Handler._store),
    (rf"POST {_MODEL}/commit/(?P<revision>[^/]+)", _Handler._commit),
    (rf"GET {_MODEL}", _Handler._info),
    (rf"GET {_MODEL}/revision/(?P<revision>[^/]+)", _Handler._info),
    (rf"GET {_MODEL}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler._tree),
    (r"(HEAD|GET) /(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler._resolve),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
