"""A real coordinator and real agents, each a process, with toy workers; everything can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.endurance.lines import Line
from benchmarks.endurance.sse import Broken, request
from benchmarks.endurance.toy_model import NAME, Oracle, make_toy_model
from benchmarks.endurance.toy_worker import LOADED, WRONG, worker_script
from demo.local_pool import ChildProgram, is_running

READY_S = 180.0
POLL_S = 0.1


@dataclass
class NodeProcess:
    """A volunteer's agent. `line` is its way to the coordinator."""

    name: str
    argv: list[str]
    log: Path
    line: Line
    program: ChildProgram | None = None

    def start(self) -> None:
        self.program = ChildProgram.start(self.name, self.argv, self.log, environment=self.line.environment)

    @property
    def pid(self) -> int:
        assert self.program is not None, "it was started"
        return self.program.process.pid

    @property
    def is_up(self) -> bool:
        return self.program is not None and self.program.process.poll() is None

    def worker_pids(self) -> list[int]:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def kill(self) -> None:
        """At once; its workers end by themselves when their socket closes."""
        if self.is_up and self.program is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.program.stop()

    def count(self, beginning: str) -> int:
        """Lines of the log that begin so."""
        return sum(beginning in line for line in self.log.read_text(errors="replace").splitlines())


@dataclass
class ToyPool:
    """Make one with `toy_pool`. `port` is the coordinator's, which stays the same over restarts."""

    folder: Path
    model: Path
    oracle: Oracle
    port: int = 0
    coordinator: ChildProgram | None = None
    nodes: list[NodeProcess] = field(default_factory=list)
    num_starts: int = 0
    started_at_s: float = 0.0

    async def start_coordinator(self) -> None:
        """Until it listens. The port is taken anew as long as a killed one's is not free."""
        argv = ["-m", "coordinator", "serve", "--port", str(self.port), "--data-dir", str(self.folder / "pool")]
        argv += ["--model", str(self.model)]
        self.coordinator = ChildProgram.start("coordinator", argv, self.folder / "coordinator.log")
        url = await asyncio.to_thread(self.coordinator.wait_for_line, "Chat page: ", READY_S)
        self.port = int(url.rstrip("/").rpartition(":")[2])
        self.num_starts += 1
        self.started_at_s = time.monotonic()

    @property
    def coordinator_pid(self) -> int:
        assert self.coordinator is not None, "it was started"
        return self.coordinator.process.pid

    async def kill_coordinator(self) -> None:
        assert self.coordinator is not None, "it was started"
        os.kill(self.coordinator.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.coordinator.stop)

    async def add_node(self, name: str, max_layers: int) -> NodeProcess:
        line = Line()
        await line.open()
        script = self.folder / "worker"
        argv = ["-m", "client", "node", "run", "--join", f"http://127.0.0.1:{self.port}", "--name", name]
        argv += ["--cpu", "--max-layers", str(max_layers), "--pause-mode", "always", "--direct", "on"]
        argv += ["--worker-python", str(script), "--data-dir", str(self.folder / name)]
        node = NodeProcess(name, argv, self.folder / f"{name}.log", line)
        self.nodes.append(node)
        node.start()
        return node

    async def state(self) -> dict[str, Any]:
        """GET /pool. Raises Broken."""
        import json

        response = await request(self.port, "GET", "/pool")
        try:
            answer: dict[str, Any] = json.loads(await response.body())
            return answer
        finally:
            response.close()

    async def until_serving(self, num_nodes: int) -> dict[str, Any]:
        """Until so many nodes serve. Raises TimeoutError."""
        async with asyncio.timeout(READY_S):
            while True:
                with suppress(Broken):
                    state = await self.state()
                    if num_serving(state) >= num_nodes:
                        return state
                await asyncio.sleep(POLL_S)

    def num_loads(self) -> int:
        """Of weights, by all workers since the beginning."""
        return sum(node.count(LOADED) for node in self.nodes)

    def blames(self) -> list[str]:
        """What workers found wrong with the rows they got."""
        lines = [line for node in self.nodes for line in node.log.read_text(errors="replace").splitlines()]
        return [line for line in lines if WRONG in line]

    def tracebacks(self) -> int:
        """Defects that the logs of coordinator and agents tell of."""
        logs = [self.folder / "coordinator.log", *(node.log for node in self.nodes)]
        return sum(log.read_text(errors="replace").count("Traceback (most recent call last)") for log in logs)

    async def stop(self) -> None:
        for node in self.nodes:
            if node.is_up:
                with suppress(ProcessLookupError):
                    os.kill(node.pid, signal.SIGCONT)
            await asyncio.to_thread(node.kill)
            await node.line.close()
        if self.coordinator is not None and is_running(self.coordinator.process.pid):
            await asyncio.to_thread(self.coordinator.stop)


def num_serving(state: dict[str, Any]) -> int:
    return sum(device["state"] == "serving" for node in state["nodes"] for device in node["devices"])


@asynccontextmanager
async def toy_pool(folder: Path) -> AsyncIterator[ToyPool]:
    """A coordinator that serves the toy model; nodes are added by the caller. Everything is stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_toy_model(folder / "models" / NAME)
    worker_script(folder / "worker")
    pool = ToyPool(folder, model, Oracle(model))
    try:
        await pool.start_coordinator()
        yield pool
    finally:
        await pool.stop()
