"""A real pool over an emulated network: the coordinator and each node are processes in namespaces of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.claims.coordinator_with_policy import policy_file
from benchmarks.claims.scene import POOL, NodeRole, Scene
from benchmarks.claims.watching import Benchmarked, Note, busy_s, read_notes
from benchmarks.network import Network
from coordinator.api.served import model_facts
from coordinator.models.catalog import Catalog
from coordinator.scheduler.cost import memory_for
from coordinator.scheduler.state import ModelFacts
from demo.local_pool import START_TIMEOUT_S, ChildProgram, LocalPool, PoolFailed, describe
from protocol.values import Variant

NODE_NICENESS = 5
"""The coordinator, the users and the switch come first: what they were late would be counted as the nodes' time."""
ENVIRONMENT = {"DECENTLLM_THREADS": "1", "OMP_NUM_THREADS": "1"}
QUIET_S = 3.0
"""A pool that has not stirred for so long has settled."""
SETTLE_TIMEOUT_S = 240.0
LINKS_S = 8.0
"""For the nodes to measure their links before the plan is made anew."""
POLL_S = 0.5


@dataclass
class EmulatedPool:
    """A running pool. Make one with `emulated_pool(...)`; this thread is on the pool's machine meanwhile."""

    scene: Scene
    network: Network
    local: LocalPool
    model: str
    facts: ModelFacts

    @property
    def notes_file(self) -> Path:
        return self.local.folder / "notes.jsonl"

    def add_node(self, role: NodeRole) -> ChildProgram:
        """Start a node on its machine."""
        memory_bytes = memory_for(self.facts, Variant.FLOAT32, role.max_layers)
        words = ["-m", "client", "node", "run", "--join", self.local.join_link, "--name", role.name, "--cpu"]
        words += ["--pause-mode", "always", "--direct", "on", "--max-memory", str(memory_bytes)]
        words += ["--max-layers", str(role.max_layers), "--data-dir", str(self.local.folder / role.name)]
        words += ["--pace", str(role.pace)] if role.pace is not None else []
        argv = self.network.words(role.name, *words, niceness=NODE_NICENESS)
        node = ChildProgram.start(role.name, argv, self.local.folder / f"{role.name}.log")
        self.local.nodes.append(node)
        return node

    def add_nodes(self) -> None:
        """All of the scene, one after the other: none measures itself while another one starts. Raises PoolFailed."""
        for role in self.scene.nodes:
            self.add_node(role)
            deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
            while self._num_measured() < len(self.local.nodes):
                self._check_alive(f"{role.name} measures itself", deadline_s)
                time.sleep(POLL_S)

    def settle(self) -> None:
        """Until every node is there, the model is served, and nothing has stirred for a while. Raises PoolFailed."""
        quiet_since_s, seen = time.monotonic(), ""
        deadline_s = quiet_since_s + SETTLE_TIMEOUT_S
        while time.monotonic() - quiet_since_s < QUIET_S:
            self._check_alive(seen, deadline_s)
            time.sleep(POLL_S)
            try:
                state = self.local.state()
            except httpx.TransportError as error:  # it is ending, which the next look will tell
                quiet_since_s, seen = time.monotonic(), repr(error)
                continue
            if describe(state) != seen or not self._is_settled(state):
                quiet_since_s, seen = time.monotonic(), describe(state)

    def use(self, policy: str) -> None:
        """This policy plans all nodes anew, as if none held anything. No request may be under way."""
        policy_file(self.notes_file).write_text(policy, encoding="utf-8")
        self.local.coordinator.process.send_signal(signal.SIGUSR1)
        time.sleep(2 * POLL_S)
        self.settle()

    def node_names(self) -> dict[str, str]:
        """Names by the beginning of the node id that the pool shows."""
        return {node["id"]: node["name"] for node in self.local.state()["nodes"]}

    def layers(self) -> dict[str, str]:
        """What each node holds now, by name."""
        nodes = self.local.state()["nodes"]
        return {node["name"]: " ".join(device["layers"] for device in node["devices"]) for node in nodes}

    def notes(self, from_s: float = 0.0) -> list[Note]:
        """What the scheduler did since then (time.monotonic)."""
        return read_notes(self.notes_file, from_s)

    def busy_s(self, from_s: float) -> dict[str, float]:
        """Seconds that each node has computed since then, by name."""
        names = self.node_names()
        sums = busy_s(self.notes(from_s))
        return {name: sum(s for node_id, s in sums.items() if node_id.startswith(id_)) for id_, name in names.items()}

    def resident_bytes(self) -> dict[str, int]:
        """Memory of each program and what it has started."""
        return {program.name: _resident_bytes(program) for program in (self.local.coordinator, *self.local.nodes)}

    def worker_of(self, name: str) -> psutil.Process:
        """The process that computes for this node."""
        node = next(node for node in self.local.nodes if node.name == name)
        return psutil.Process(node.process.pid).children()[0]

    def _num_measured(self) -> int:
        return len({note.node_id for note in self.notes() if isinstance(note, Benchmarked)})

    def _is_settled(self, state: dict[str, Any]) -> bool:
        devices = [device["state"] for node in state["nodes"] for device in node["devices"]]
        is_ready = all(model["state"] == "ready" for model in state["models"])
        return is_ready and len(devices) == len(self.local.nodes) and set(devices) <= {"serving", "idle"}

    def _check_alive(self, seen: str, deadline_s: float) -> None:
        dead = [p.name for p in (self.local.coordinator, *self.local.nodes) if p.process.poll() is not None]
        if dead or time.monotonic() > deadline_s:
            what = f"{', '.join(dead)} ended" if dead else "it does not settle"
            raise PoolFailed(f"the pool is not ready: {what} (logs in {self.local.folder}); last seen: {seen}")


@contextlib.contextmanager
def emulated_pool(
    scene: Scene, model_folder: Path, policy: str, scratch: Path, seed: int, links_s: float = LINKS_S
) -> Iterator[EmulatedPool]:
    """A pool with this policy, all nodes there, planned and loaded; all is stopped when the block ends.

    Raises NetworkError where no network can be emulated, PoolFailed if the pool does not come up."""
    os.environ.update(ENVIRONMENT)
    folder = scratch / policy
    with Network(scene.topology, seed) as network, network.entered(POOL):
        model = Catalog(folder / "pool" / "models").add(str(model_folder))
        local = _start_coordinator(network, folder, model_folder, policy)
        try:
            local.url = local.coordinator.wait_for_line("Chat page: ", START_TIMEOUT_S).rstrip("/")
            local.join_link = local.coordinator.wait_for_line("Join link: ", START_TIMEOUT_S)
            local.connect(with_key=False)
            pool = EmulatedPool(scene, network, local, model.name, model_facts(model))
            pool.add_nodes()
            pool.settle()
            time.sleep(links_s)
            pool.use(policy)
            yield pool
        finally:
            local.stop()


def _start_coordinator(network: Network, folder: Path, model_folder: Path, policy: str) -> LocalPool:
    notes = folder / "notes.jsonl"
    words = ["-m", "benchmarks.claims.coordinator_with_policy", policy, str(notes), "--model", str(model_folder)]
    words += ["--host", network.address(POOL), "--port", "0", "--data-dir", str(folder / "pool")]
    program = ChildProgram.start("coordinator", network.words(POOL, *words), folder / "coordinator.log")
    return LocalPool(folder, program)


def _resident_bytes(program: ChildProgram) -> int:
    parent = psutil.Process(program.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))
