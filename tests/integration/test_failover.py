"""A node that vanishes in mid-answer costs the user a moment, not the answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.local_pool import ChildProgram, local_pool
from tests.integration.conftest import READY_S, Served

NUM_TOKENS = 300


@pytest.fixture(scope="module")
def replicated(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Four nodes of two layers each: two whole pipelines of a model of four layers."""
    with local_pool(tmp_path_factory.mktemp("replicated"), [str(tiny_folder)]) as pool:
        for name in ("one", "two", "three", "four"):
            pool.add_node(name, "--cpu", "--max-layers", "2")
        pool.wait_until(lambda state: num_serving(state) == 4, READY_S)
        yield Served(pool, tiny_folder.name)


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
