"""A pool on this machine: a coordinator and nodes, each a real process. For the demo, the tests and the benchmarks.

Everything that was started is stopped at the end, nodes first so that they leave cleanly, each by its own process id.
"""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

STOP_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 120.0
START_TIMEOUT_S = 300.0
POLL_S = 0.2
ROOT = Path(__file__).parent.parent

Say = Callable[[str], None]


class PoolFailed(Exception):  # noqa: N818 - reads as what happened
    """The pool did not come up; the message has the last lines of whoever failed."""


@dataclass
class ChildProgram:
    """A started program; its output is kept, and passed on line by line if asked for."""

    name: str
    argv: Sequence[str]
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _reader: threading.Thread = field(default_factory=threading.Thread)
    _news: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        log: Path,
        say: Say | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> ChildProgram:
        """Run `python -m ...` with its standard output read here and its log (standard error) in a file.

        `environment` comes on top of ours."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *argv],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its children in order
                env={**os.environ, **(environment or {})},
            )
        program = cls(name, argv, process)
        program._reader = threading.Thread(target=program._read, args=(say,), daemon=True)
        program._reader.start()
        return program

    def wait_for_line(self, beginning: str, timeout_s: float) -> str:
        """The rest of the first line that begins so. Raises PoolFailed if the program ends or is too slow."""
        deadline_s = time.monotonic() + timeout_s
        with self._news:
            while True:
                for line in self.lines:
                    if line.startswith(beginning):
                        return line[len(beginning) :]
                if self.process.poll() is not None:
                    raise PoolFailed(f"{self.name} ended with status {self.process.returncode}")
                if not self._news.wait(timeout=min(1.0, max(0.0, deadline_s - time.monotonic()))):
                    self._check_deadline(deadline_s, beginning)

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def stop(self) -> int:
        """Ask it to end, then make it; returns the exit status."""
        self.interrupt()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(STOP_TIMEOUT_S)
        return self.process.returncode

    def _check_deadline(self, deadline_s: float, wanted: str) -> None:
        if time.monotonic() > deadline_s:
            raise PoolFailed(f"{self.name} did not say {wanted!r} in time")

    def _read(self, say: Say | None) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                if say is not None:
                    say(line.rstrip("\n"))
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()


@dataclass
class LocalPool:
    """A running pool. Make one with `local_pool(...)`.

    `join_link` is the one without an invitation; `http` speaks to the pool, on a closed one with an API key."""

    folder: Path
    coordinator: ChildProgram
    url: str = ""
    join_link: str = ""
    nodes: list[ChildProgram] = field(default_factory=list)
    http: httpx.Client = field(default_factory=httpx.Client)

    @property
    def data_dir(self) -> Path:
        """The coordinator's."""
        return self.folder / "pool"

    def add_node(self, name: str, *options: str, join: str = "", say: Say | None = None) -> ChildProgram:
        """Start one more node; `options` as in `decentllm node run --help`.

        Nodes of one machine would pause for each other's use of its GPU, so they do not look at it."""
        argv = ["-m", "client", "node", "run", "--join", join or self.join_link, "--name", name]
        argv += ["--pause-mode", "always", *options, "--data-dir", str(self.folder / name)]
        node = ChildProgram.start(name, argv, self.folder / f"{name}.log", say)
        self.nodes.append(node)
        return node

    def restart_coordinator(self) -> None:
        """It is killed, as by a power cut, and started again with what it has on disk, on the same port."""
        self.coordinator.process.kill()
        self.coordinator.stop()
        port = self.url.rpartition(":")[2]
        argv = [*self.coordinator.argv, "--port", port]
        self.coordinator = ChildProgram.start("coordinator", argv, self.folder / "coordinator.log")
        self.coordinator.wait_for_line("Chat page: ", START_TIMEOUT_S)

    def command(self, *words: str) -> str:
        """What `decentllm-coordinator` prints for these words, with this pool's folder."""
        argv = [sys.executable, "-m", "coordinator", *words, "--data-dir", str(self.data_dir)]
        ended = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=COMMAND_TIMEOUT_S, check=False)
        if ended.returncode != 0:
            raise PoolFailed(ended.stderr.strip())
        return ended.stdout.strip()

    def connect(self, *, with_key: bool) -> None:
        """Open `http`, once the pool has said where it is. Its own certificate is trusted, and no other."""
        certificate = self.data_dir / "tls" / "certificate.pem"
        trust = ssl.create_default_context(cafile=certificate) if self.url.startswith("https:") else True
        headers = {"Authorization": f"Bearer {self.command('key').splitlines()[-1]}"} if with_key else {}
        self.http = httpx.Client(base_url=self.url, verify=trust, headers=headers, timeout=300)

    def state(self) -> dict[str, Any]:
        """The pool as GET /pool tells it."""
        answer: dict[str, Any] = self.http.get("/pool").raise_for_status().json()
        return answer

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float, say: Say | None = None) -> None:
        """Poll the pool's state until it is as wanted. Raises PoolFailed if a process ends or time runs out."""
        deadline_s = time.monotonic() + timeout_s
        while not condition(state := self.state()):
            if say is not None:
                say(describe(state))
            dead = [p for p in (self.coordinator, *self.nodes) if p.process.poll() is not None]
            if dead or time.monotonic() > deadline_s:
                raise PoolFailed(f"the pool is not ready: {describe(state)}{self._last_words(dead)}")
            time.sleep(POLL_S)

    def wait_ready(self, timeout_s: float = 600.0, say: Say | None = None) -> None:
        """Until every model has a complete chain."""
        self.wait_until(lambda state: all(m["state"] == "ready" for m in state["models"]), timeout_s, say)

    def stop(self) -> None:
        for node in self.nodes:
            node.interrupt()
        for node in self.nodes:
            node.stop()
        self.http.close()
        self.coordinator.stop()

    def _last_words(self, programs: Sequence[ChildProgram]) -> str:
        logs = [self.folder / f"{p.name}.log" for p in programs]
        tails = [log.read_text(errors="replace").splitlines()[-5:] for log in logs if log.exists()]
        return "".join(f"\n  {line}" for tail in tails for line in tail)


@contextlib.contextmanager
def local_pool(folder: Path, models: Sequence[str], *options: str, port: int = 0) -> Iterator[LocalPool]:
    """A coordinator that serves `models`; the caller adds nodes. Stopped when the block ends, whatever happened."""
    models_argv = [word for model in models for word in ("--model", model)]
    argv = ["-m", "coordinator", "serve", *models_argv, "--port", str(port), "--data-dir", str(folder / "pool")]
    coordinator = ChildProgram.start("coordinator", [*argv, *options], folder / "coordinator.log")
    pool = LocalPool(folder, coordinator)
    try:
        pool.url = coordinator.wait_for_line("Chat page: ", START_TIMEOUT_S).rstrip("/")
        pool.join_link = coordinator.wait_for_line("Join link: ", START_TIMEOUT_S)
        pool.connect(with_key="--invite-only" in options)
        yield pool
    except PoolFailed as failure:
        raise PoolFailed(f"{failure}{pool._last_words([coordinator])}") from None
    finally:
        pool.stop()


def describe(state: dict[str, Any]) -> str:
    """One line on what every device does."""
    parts = [f"{node['name']}: {_device(device)}" for node in state["nodes"] for device in node["devices"]]
    return " | ".join(parts) or "waiting for nodes"


def _device(device: dict[str, Any]) -> str:
    words = [device["state"]]
    if device["layers"]:
        words.append(f"layers {device['layers']} of {device['num_layers']}")
    if device["state"] in ("downloading", "loading") and device["total_bytes"]:
        tenths = 10 * device["done_bytes"] // device["total_bytes"]
        words.append(f"{10 * tenths} % of {device['total_bytes'] / 1e6:.0f} MB")
    return " ".join(words)


def is_running(pid: int) -> bool:
    """Whether a process of that id exists (and is no zombie)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
