"""Processes that stop without dying: sockets stay open, kernels answer, and nothing comes. The answer goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from demo.local_pool import local_pool
from tests.integration.conftest import READY_S, Served
from tests.integration.test_failover import names_in, node_named, num_serving

NUM_TOKENS = 300
STOP_AFTER = 60
MOST_S = 30.0
"""Generous: with nobody to notice it would be for ever. How long it takes is benchmarks/recovery.py's to tell."""


@pytest.fixture(scope="module")
def replicated(endless_folder: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Four nodes of two layers each: two whole pipelines of a model of four layers."""
    with local_pool(tmp_path_factory.mktemp("hanging"), [str(endless_folder)]) as pool:
        for name in ("one", "two", "three", "four"):
            pool.add_node(name, "--cpu", "--max-layers", "2")
        pool.wait_until(lambda state: num_serving(state) == 4, READY_S)
        yield Served(pool, str(endless_folder).rsplit("/", 1)[-1])


def worker_of(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def whole_node(pid: int) -> list[int]:
    return [pid, *worker_of(pid)]


@pytest.mark.parametrize("stage", [0, -1])
@pytest.mark.parametrize("what", [worker_of, whole_node])
def test_the_answer_goes_on_unchanged_when_a_stage_of_its_chain_stops(
    replicated: Served, what: Callable[[int], list[int]], stage: int, record_property: Callable[[str, object], None]
) -> None:
    undisturbed = replicated.tokens("a long story", NUM_TOKENS)
    tokens: list[int] = []
    chains: list[list[str]] = []
    stopped: list[int] = []
    stopped_at_s = went_on_s = 0.0
    try:
        for event in replicated.events("a long story", max_tokens=NUM_TOKENS, return_token_ids=True):
            new = event["choices"][0].get("token_ids", ())
            tokens += new
            if "nodes" in event.get("decentllm", {}):
                chains.append([node["name"] for node in event["decentllm"]["nodes"]])
            if len(tokens) >= STOP_AFTER and not stopped:
                stopped = what(node_named(replicated, chains[-1][stage]).process.pid)
                num_chains = len(chains)
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                stopped_at_s = time.monotonic()
            elif new and stopped and not went_on_s and len(chains) > num_chains:
                went_on_s = time.monotonic() - stopped_at_s
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert stopped
    assert tokens == undisturbed
    assert 0.0 < went_on_s < MOST_S
    assert len(chains) > num_chains, "the answer moved to another chain"
    record_property("went_on_s", went_on_s)
    replicated.pool.wait_until(lambda state: num_serving(state) == 4, READY_S)
    assert sorted(names_in(replicated.pool.state())) == ["four", "one", "three", "two"]
