"""A server on this machine that speaks as much of the hub's protocol as downloads need."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(models: dict[str, Path], gated: set[str] = frozenset()) -> Iterator[tuple[str, list]]:
    """Serves folders as models of revisions `main` and `v1`; yields its address and requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._answer(body=True)

        def do_HEAD(self):
            self._answer(body=False)

        def log_message(self, *_):
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models").strip("/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            if name not in models:
                return self._refuse(404, "RepoNotFound")
            if name in gated:
                return self._refuse(403, "GatedRepo")
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in ("main", "v1", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            if api:
                return self._send(
                    self._listing(name, rest), {"Content-Type": "application/json"}, body
                )
            file = models[name] / "/".join(rest[2:])
            if not file.is_file():
                return self._refuse(404, "EntryNotFound")
            data = file.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self._send(data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)

        def _listing(self, name: str, rest: list[str]) -> bytes:
            files = sorted(p for p in models[name].rglob("*") if p.is_file())
            names = [str(p.relative_to(models[name])) for p in files]
            if rest[:1] == ["tree"]:
                rows = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40}
                    for n, p in zip(names, files, strict=True)
                ]
                return json.dumps(rows).encode()
            siblings = [{"rfilename": n} for n in names]
            info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
            info |= {"private": False, "tags": [], "downloads": 0}
            return json.dumps(info).encode()

        def _refuse(self, code: int, kind: str) -> None:
            self._send(b"{}", {"X-Error-Code": kind, "X-Error-Message": kind}, True, code)

        def _send(self, data: bytes, headers: dict, body: bool, code: int = 200) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
