"""Real pools of the small real model, on loopback, and what can be done to their nodes."""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.network import Network
from benchmarks.recovery.reader import LIMIT_S, Heard, Question, Reader, asked
from demo.local_pool import ChildProgram, LocalPool, PoolFailed, local_pool

MODEL = "gemma-3-270m"
NUM_LAYERS = 18
POOL = "pool"
"""The machine of the coordinator and of the users."""
READY_S = 300.0
ENVIRONMENT = {"DECENTLLM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""A thread per worker, as several stand for machines of their own here."""
POLL_S = 0.25


class People:
    """Who ask: each from an address of their own, so that no prompt is in another one's part of what is cached."""

    def __init__(self, pool: LocalPool) -> None:
        self._pool = pool
        self._numbers = itertools.count(2)
        self._clients = contextlib.ExitStack()

    def somebody(self) -> httpx.Client:
        number = next(self._numbers)
        return self._clients.enter_context(asking(self._pool, f"127.0.{number // 256}.{number % 256}"))

    def __enter__(self) -> People:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()


@dataclass
class Rig:
    """A running pool with nodes of so many layers each."""

    pool: LocalPool
    model: str
    options: tuple[str, ...]
    people: People
    network: Network | None = None

    @property
    def names(self) -> set[str]:
        return {node.name for node in self.pool.nodes}

    def ask(self, content: str, num_tokens: int) -> Heard:
        """Undisturbed."""
        return asked(self.people.somebody(), Question(self.model, content, num_tokens))

    def reader(self, content: str, num_tokens: int, *, is_resumable: bool = False) -> Reader:
        return Reader(self.people.somebody(), Question(self.model, content, num_tokens, is_resumable))

    def node(self, name: str) -> ChildProgram:
        return next(node for node in self.pool.nodes if node.name == name)

    def worker_of(self, name: str) -> tuple[int, ...]:
        """Of the node's worker only."""
        return tuple(child.pid for child in psutil.Process(self.node(name).process.pid).children(recursive=True))

    def processes_of(self, name: str) -> tuple[int, ...]:
        """All of a node, the agent first."""
        return (self.node(name).process.pid, *self.worker_of(name))

    def add(self, name: str) -> None:
        if self.network is None:
            self.pool.add_node(name, *self.options)
            return
        words = ["-m", "client", "node", "run", "--join", self.pool.join_link, "--name", name, *self.options]
        words += ["--pause-mode", "always", "--data-dir", str(self.pool.folder / name)]
        argv = self.network.words(name, *words)
        self.pool.nodes.append(ChildProgram.start(name, argv, self.pool.folder / f"{name}.log"))

    def make_whole(self) -> None:
        """Start the nodes again that have died, or end only now, and wait until all serve. Raises PoolFailed."""
        deadline_s = time.monotonic() + READY_S
        while (dead := self._dead()) or serving(self.pool.state()) != self.names:
            for node in dead:
                node.stop()
                self.pool.nodes.remove(node)
                self.add(node.name)
            if time.monotonic() > deadline_s:
                raise PoolFailed(f"not whole within {READY_S:.0f} s: {serving(self.pool.state())} serve")
            time.sleep(POLL_S)

    def _dead(self) -> list[ChildProgram]:
        return [node for node in self.pool.nodes if node.process.poll() is not None]

    def layers(self) -> dict[str, str]:
        """What each serving node holds, by name."""
        nodes = self.pool.state()["nodes"]
        return {node["name"]: node["devices"][0]["layers"] for node in nodes if node["state"] == "serving"}

    def wait_whole(self) -> None:
        self.pool.wait_until(lambda state: serving(state) == self.names, READY_S)


def serving(state: dict[str, Any]) -> set[str]:
    return {node["name"] for node in state["nodes"] if node["state"] == "serving"}


@contextlib.contextmanager
def rig(folder: Path, model: Path, names: Sequence[str], *options: str) -> Iterator[Rig]:
    """A pool on loopback with these nodes, all serving; stopped with the block. Raises PoolFailed."""
    os.environ.update(ENVIRONMENT)
    with local_pool(folder, [str(model)]) as pool, People(pool) as people:
        made = Rig(pool, model.name, ("--cpu", *options), people)
        for name in names:
            made.add(name)
        made.wait_whole()
        yield made


@contextlib.contextmanager
def rig_in(network: Network, folder: Path, model: Path, names: Sequence[str], *options: str) -> Iterator[Rig]:
    """The same with the coordinator and the users on the machine POOL, and each node on the one of its name."""
    os.environ.update(ENVIRONMENT)
    words = ["-m", "coordinator", "serve", "--open", "--model", str(model), "--host", network.address(POOL)]
    words += ["--port", "0", "--data-dir", str(folder / "pool")]
    coordinator = ChildProgram.start("coordinator", network.words(POOL, *words), folder / "coordinator.log")
    pool = LocalPool(folder, coordinator)
    with contextlib.ExitStack() as stack:
        stack.callback(pool.stop)
        stack.enter_context(network.entered(POOL))
        pool.url = coordinator.wait_for_line("Chat page: ", READY_S).rstrip("/")
        pool.join_link = coordinator.wait_for_line("Join link: ", READY_S)
        pool.connect(with_key=False)
        people = stack.enter_context(People(pool))
        made = Rig(pool, model.name, ("--cpu", "--direct", "on", *options), people, network)
        for name in names:
            made.add(name)
        made.wait_whole()
        yield made


def asking(pool: LocalPool, address: str) -> httpx.Client:
    """A client on this address of the machine."""
    certificate = pool.data_dir / "tls" / "certificate.pem"
    trust = ssl.create_default_context(cafile=certificate) if pool.url.startswith("https:") else True
    transport = httpx.HTTPTransport(verify=trust, local_address=address)
    return httpx.Client(base_url=pool.url, transport=transport, timeout=LIMIT_S)
