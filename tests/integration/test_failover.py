"""A node that vanishes in mid-answer costs the user a moment, not the answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.attached_agent import wait_ended
from coordinator.core import HEARTBEAT_S, LEASE_S, TICK_S
from demo.local_pool import ChildProgram, local_pool
from tests.integration.conftest import READY_S, Served

NUM_TOKENS = 300
PARENT = """
import subprocess, sys
agent = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
print("agent", agent.pid, flush=True)
agent.wait()
"""
"""Starts an agent as the tray app does."""


@pytest.fixture(scope="module")
def replicated(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Four nodes of two layers each: two whole pipelines of a model of four layers."""
    with local_pool(tmp_path_factory.mktemp("replicated"), [str(endless_folder)]) as pool:
        for name in ("one", "two", "three", "four"):
            pool.add_node(name, "--cpu", "--max-layers", "2")
        pool.wait_until(lambda state: num_serving(state) == 4, READY_S)
        yield Served(pool, endless_folder.name)


def num_serving(state: dict[str, object]) -> int:
    nodes = state["nodes"]
    assert isinstance(nodes, list)
    return sum(node["state"] == "serving" for node in nodes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_answer_goes_on_unchanged_when_a_node_of_its_chain_goes(replicated: Served, how: signal.Signals) -> None:
    undisturbed = replicated.tokens("a long story", NUM_TOKENS)
    tokens: list[int] = []
    chains: list[list[str]] = []
    for event in replicated.events("a long story", max_tokens=NUM_TOKENS, return_token_ids=True):
        tokens += event["choices"][0].get("token_ids", ())
        if "nodes" in event.get("decentllm", {}):
            chains.append([node["name"] for node in event["decentllm"]["nodes"]])
        if len(tokens) == 20 and len(chains) == 1:
            os.kill(node_named(replicated, chains[0][-1]).process.pid, how)
    assert tokens == undisturbed
    assert len(chains) >= 2, "the answer moved to another chain"
    assert chains[0][-1] not in chains[-1]
    bring_back(replicated, chains[0][-1])


def node_named(served: Served, name: str) -> ChildProgram:
    return next(node for node in served.pool.nodes if node.name == name)


def bring_back(served: Served, name: str) -> None:
    """The node that went returns under its old identity, and the pool is whole again."""
    gone = node_named(served, name)
    gone.stop()
    served.pool.nodes.remove(gone)
    served.pool.add_node(name, "--cpu", "--max-layers", "2")
    served.pool.wait_until(lambda state: num_serving(state) == 4, READY_S)


# ---------------------------------------------------------------- death that nobody announces


def test_the_lease_of_a_silent_node_ends_within_five_seconds() -> None:
    assert LEASE_S + TICK_S <= 5, "the issue's aim; a tick is how often leases are looked at"
    assert LEASE_S >= 3 * HEARTBEAT_S, "a lost heartbeat or two are no death"


def test_a_node_that_hangs_is_gone_from_the_pool_and_comes_back_when_it_wakes_up(replicated: Served) -> None:
    node = node_named(replicated, "one")
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        replicated.pool.wait_until(lambda state: "one" not in names_in(state), READY_S)
    finally:
        os.kill(node.process.pid, signal.SIGCONT)
    replicated.pool.wait_until(lambda state: num_serving(state) == 4, READY_S)


def test_a_node_that_is_killed_is_gone_and_so_are_its_workers(replicated: Served) -> None:
    node = node_named(replicated, "two")
    workers = children_of(node.process.pid)
    assert workers
    node.process.kill()
    node.stop()
    replicated.pool.nodes.remove(node)
    replicated.pool.wait_until(lambda state: "two" not in names_in(state), READY_S)
    wait_ended(workers)
    replicated.pool.add_node("two", "--cpu", "--max-layers", "2")
    replicated.pool.wait_until(lambda state: num_serving(state) == 4, READY_S)


def test_an_agent_whose_parent_is_killed_leaves_the_pool_and_no_process(replicated: Served, tmp_path: Path) -> None:
    agent = [sys.executable, "-m", "client", "node", "run", "--attached", "--cpu", "--name", "fifth"]
    agent += ["--join", replicated.pool.join_link, "--data-dir", str(tmp_path / "data")]
    parent = ChildProgram.start("parent", ["-c", PARENT, *agent], tmp_path / "parent.log")
    try:
        pid = int(parent.wait_for_line("agent ", READY_S))
        replicated.pool.wait_until(lambda state: "fifth" in names_in(state), READY_S)
        workers = children_of(pid)
        assert workers
    finally:
        parent.process.kill()
        parent.stop()
    wait_ended((pid, *workers))
    replicated.pool.wait_until(lambda state: "fifth" not in names_in(state), READY_S)


def names_in(state: dict[str, list[dict[str, str]]]) -> list[str]:
    return [node["name"] for node in state["nodes"]]


def children_of(pid: int) -> tuple[int, ...]:
    return tuple(child.pid for child in psutil.Process(pid).children(recursive=True))
