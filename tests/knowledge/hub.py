"""A small hub on loopback: a real HTTP server that answers what the hub's client asks for a data set."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 2**16


class Hub:
    """Serves the files in a folder as the data set `name`. `url` is what HF_ENDPOINT is to be."""

    def __init__(self, folder: Path, name: str, port: int = 0) -> None:
        self.folder = folder
        self.name = name
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path within the data set and Range header of all requests for files."""
        self.sent = 0
        """Bytes of files."""
        self.dies_after: tuple[str, int] | None = None
        """A file and the number of its bytes with which the server goes away, in the middle of a response."""
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        api, files = f"/api/datasets/{self.name}", f"/datasets/{self.name}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main"):
            _json(request, {"_id": "1", "id": self.name, "sha": COMMIT, "siblings": [], "private": False})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self._list(request, path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"))
        elif path.startswith(files) and (self.folder / path.removeprefix(files)).is_file():
            self._send(request, path.removeprefix(files))
        else:
            _json(request, {"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _list(self, request: BaseHTTPRequestHandler, folder: str) -> None:
        if not (self.folder / folder).is_dir():
            _json(request, {"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        entries = []
        for path in sorted((self.folder / folder).iterdir()):
            name = str(path.relative_to(self.folder))
            if path.is_dir():
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
            else:
                size = path.stat().st_size
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lfs = {"oid": digest, "size": size, "pointerSize": 130}
                entries.append({"type": "file", "oid": "0" * 40, "size": size, "path": name, "lfs": lfs})
        _json(request, entries)

    def _send(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = (self.folder / name).read_bytes()
        wanted = request.headers.get("Range")
        self.requests.append((request.command, name, wanted))
        first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(content) - first))
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Linked-Size", str(len(content)))
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if request.command == "HEAD":
            return
        for start in range(first, len(content), PIECE):
            if self.dies_after is not None and self.dies_after[0] == name and start >= self.dies_after[1]:
                request.close_connection = True
                self.close()
                request.connection.close()
                return
            request.wfile.write(content[start : start + PIECE])
            self.sent += len(content[start : start + PIECE])


def _json(
    request: BaseHTTPRequestHandler, value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    body = json.dumps(value).encode()
    request.send_response(status)
    for name, text in {**(headers or {}), "Content-Type": "application/json", "X-Repo-Commit": COMMIT}.items():
        request.send_header(name, text)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
