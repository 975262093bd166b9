"""A chain of four real nodes loses one: the others keep what they have computed, and the answer stays what it was."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.local_pool import local_pool
from tests.integration.conftest import READY_S, Served
from tests.integration.streams import Stream
from tests.integration.test_failover import node_named, num_serving

NUM_TOKENS = 300
QUESTION = "a long story of a chain"
NAMES = ("one", "two", "three", "four", "five")


@pytest.fixture
def chain_and_spare(endless_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """Five nodes of one layer each, for a model of four layers: one layer is there twice."""
    with local_pool(tmp_path, [str(endless_folder)]) as pool:
        for name in NAMES:
            pool.add_node(name, "--cpu", "--max-layers", "1")
        pool.wait_until(lambda state: num_serving(state) == len(NAMES), READY_S)
        yield Served(pool, endless_folder.name)


def nodes_of(served: Served) -> dict[str, dict[str, Any]]:
    """By name, as the pool page shows them."""
    found: dict[str, dict[str, Any]] = {}

    def look(state: dict[str, Any]) -> bool:
        found.update({node["name"]: node for node in state["nodes"]})
        return True

    served.pool.wait_until(look, READY_S)
    return found


def layer_of(node: dict[str, Any]) -> str:
    return str(node["devices"][0]["layers"])


def wait_computed(served: Served, wanted: dict[str, int]) -> None:
    """Until these nodes have told that they have computed exactly so many prompt tokens: never more on the way."""

    def is_so(state: dict[str, Any]) -> bool:
        told = {node["name"]: node["num_prompt_tokens"] for node in state["nodes"]}
        assert all(told[name] <= number for name, number in wanted.items()), (told, wanted)
        return all(told[name] == number for name, number in wanted.items())

    served.pool.wait_until(is_so, READY_S)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "leaves"])
def test_when_one_of_four_goes_only_its_successor_computes_the_answer_so_far(
    chain_and_spare: Served, how: signal.Signals
) -> None:
    served = chain_and_spare
    layers = {name: layer_of(node) for name, node in nodes_of(served).items()}
    [twice] = [layer for layer, number in Counter(layers.values()).items() if number == 2]
    answer = served.complete(QUESTION, max_tokens=NUM_TOKENS, return_token_ids=True)
    undisturbed, num_prompt = answer["choices"][0]["token_ids"], answer["usage"]["prompt_tokens"]

    stream = Stream(served, QUESTION, NUM_TOKENS)
    stream.wait_for_tokens(20)
    [before] = stream.chains
    gone = next(name for name in before if layers[name] == twice)
    os.kill(node_named(served, gone).process.pid, how)
    assert stream.wait() == undisturbed
    assert len(stream.chains) == 2
    after = stream.chains[1]
    [successor] = set(after) - set(before)
    assert layers[successor] == twice
    survivors = [name for name in before if name != gone]
    assert [successor if name == gone else name for name in before] == after

    # Of the answer so far each survivor has computed one row anew, whose logits are the next token's.
    wait_computed(served, dict.fromkeys(survivors, 2 * num_prompt - stream.num_cached_tokens + 1))
    assert nodes_of(served)[successor]["num_prompt_tokens"] >= num_prompt + 20
    if how is signal.SIGINT:
        assert node_named(served, gone).process.wait(READY_S) == 0
        assert "left behind" not in (served.pool.folder / f"{gone}.log").read_text()
