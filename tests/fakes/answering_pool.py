"""A pool that says one thing to whoever asks over HTTP, in a folder as a running pool's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from coordinator.accounts import Accounts, Role
from coordinator.config import DATABASE_NAME, MachineNames, PoolConfig, make_site
from coordinator.folder_lock import locked
from coordinator.site_file import write_site
from coordinator.store import Store
from shell.clock import SystemClock
from shell.randomness import SystemRandom


def make_folder(folder: Path) -> Path:
    """Of a pool that has run."""
    Store.open(folder / DATABASE_NAME).close()
    write_site(folder, make_site(PoolConfig(folder), 9, "", MachineNames()))
    return folder


@contextmanager
def answering(folder: Path, body: bytes, status: int = 200) -> Iterator[list[tuple[str, Role | None]]]:
    """The list has for each question the path, and as whom it was asked."""
    asked: list[tuple[str, Role | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookie = self.headers["Cookie"].partition("=")[2]
            with closing(Store.open(folder / DATABASE_NAME)) as store:
                caller = Accounts(store, SystemRandom(), SystemClock().wall).caller_of_cookie(cookie)
            asked.append((self.path, caller.role))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server, locked(folder):
        write_site(folder, make_site(PoolConfig(folder), server.server_port, "", MachineNames()))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
