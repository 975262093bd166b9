"""A model hub on loopback with one repository: as much of the hub's HTTP interface as a snapshot download uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(repo_id: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as `repo_id`; gives the endpoint and the paths that were asked for."""
    asked: list[str] = []

    class Handler(_Repository):
        pass

    Handler.repo_id, Handler.folder, Handler.asked = repo_id, folder, asked
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Repository(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repo_id: str
    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the test looks at `asked`."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith(f"/api/models/{self.repo_id}"):
            self._send(200, self._api(path), with_body)
            return
        file = self.folder / path.rpartition("/")[2]
        known = path.startswith(f"/{self.repo_id}/resolve/") and file.is_file()
        self._send(200 if known else 404, file.read_bytes() if known else b"{}", with_body)

    def _api(self, path: str) -> bytes:
        files = sorted(file for file in self.folder.iterdir() if file.is_file())
        if "/tree/" in path:
            listing = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            return json.dumps(listing).encode()
        siblings = [{"rfilename": file.name} for file in files]
        return json.dumps({"id": self.repo_id, "sha": COMMIT, "siblings": siblings}).encode()

    def _send(self, status: int, body: bytes, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)
