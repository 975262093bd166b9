"""What nodes of a chain can be told: an older node never gets what it does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.scheduler import commands as cmd
from protocol import RECOVERY_VERSION
from protocol import messages as m
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

PROMPT, NUM_TOKENS = (5, 6, 7), 12
NEW = Sampling(min_p=0.1)


def pool_of(*versions: int) -> PoolDriver:
    """Nodes with all layers each."""
    nodes = (FakeNode(number, facts.spec(8), version=version) for number, version in enumerate(versions, start=1))
    return PoolDriver(*nodes)


def samplings(pool: PoolDriver, number: int) -> list[Sampling | None]:
    heard = pool.nodes[facts.node_id(number)].heard
    return [message.sampling for message in heard if isinstance(message, m.OpenSession)]


@pytest.mark.parametrize("sampling", [NEW, Sampling(num_logprobs=0), Sampling(repetition_penalty=1.1)])
def test_an_older_tail_is_not_told_of_sampling_that_it_does_not_know(sampling: Sampling) -> None:
    pool = pool_of(RECOVERY_VERSION - 1)
    session_id = pool.request(1, PROMPT, NUM_TOKENS, sampling=sampling)
    pool.run()
    failed = pool.failure(session_id)
    assert failed is not None and failed.code == "node_too_old"
    assert samplings(pool, 1) == []
    known = pool.request(2, PROMPT, NUM_TOKENS, sampling=Sampling(0.5, 0.9, 40, 7))
    pool.run()
    assert pool.tokens(known) == answer_to(PROMPT, NUM_TOKENS)


@pytest.mark.parametrize("older", [1, 2])
def test_who_knows_it_is_asked_where_there_is_one(older: int) -> None:
    pool = pool_of(*(RECOVERY_VERSION - (number == older) for number in (1, 2)))
    sessions = [pool.request(number, PROMPT, NUM_TOKENS, sampling=NEW) for number in range(1, 9)]
    pool.run()
    assert {tuple(pool.tokens(session_id)) for session_id in sessions} == {tuple(answer_to(PROMPT, NUM_TOKENS))}
    assert samplings(pool, older) == []


@pytest.mark.parametrize(("sampling", "is_opened"), [(NEW, False), (Sampling(), True)])
def test_an_older_tail_of_a_second_chain_is_told_nothing_of_it_either(sampling: Sampling, is_opened: bool) -> None:
    pool = pool_of(RECOVERY_VERSION, RECOVERY_VERSION - 1)
    session_id = pool.request(1, PROMPT, NUM_TOKENS, sampling=NEW)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 4)
    session = pool.core.sessions[session_id]
    session.order = replace(session.order, sampling=sampling)
    command = cmd.StartHedge(session_id, (replace(session.chain[0], device=facts.key(2)),), 1.0)
    assert (pool.core.hedging.hedge(command, pool.now_s) is not None) is is_opened
