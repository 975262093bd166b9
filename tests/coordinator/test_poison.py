"""Who made workers crash: the book itself, and whole pools in which one request does."""

from __future__ import annotations

import pytest

from coordinator.poison import MAX_CRASHES, CrashBook, Verdict
from coordinator.sessions import SessionState
from protocol import messages as m
from protocol.values import NodeId, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

ONE, TWO, THREE = (NodeId(digit * 32) for digit in "123")
A, B, C = (SessionId(digit * 32) for digit in "abc")
NOBODY = Verdict()


def test_one_crash_says_nothing() -> None:
    assert CrashBook().crashed(ONE, {A: 5, B: 0}) == NOBODY


def test_who_sees_two_machines_crash_at_the_same_token_is_the_cause() -> None:
    book = CrashBook()
    book.crashed(ONE, {A: 5, B: 5})
    assert book.crashed(TWO, {A: 5}) == Verdict(guilty=frozenset({A}))


def test_who_has_a_token_more_starts_afresh() -> None:
    book = CrashBook()
    book.crashed(ONE, {A: 5})
    book.progressed(A)
    assert book.crashed(TWO, {A: 6}) == NOBODY
    assert book.crashed(THREE, {A: 6}) == Verdict(guilty=frozenset({A}))


def test_a_machine_that_crashes_again_and_again_is_enough_in_the_end() -> None:
    book = CrashBook()
    verdicts = [book.crashed(ONE, {A: 0}) for _ in range(MAX_CRASHES)]
    assert verdicts == [NOBODY] * (MAX_CRASHES - 1) + [Verdict(guilty=frozenset({A}))]


def test_of_several_suspects_each_goes_alone_and_the_one_that_crashes_again_is_the_cause() -> None:
    book = CrashBook()
    book.crashed(ONE, {A: 5, B: 5, C: 5})
    assert book.crashed(TWO, {A: 5, B: 5, C: 6}) == Verdict(wait=frozenset({A, B}))
    assert book.next_alone() == A
    assert book.next_alone() is None
    assert not book.waits(A)
    assert book.waits(B)
    book.progressed(A)
    assert book.next_alone() == B
    assert book.crashed(THREE, {B: 5, C: 9}) == Verdict(guilty=frozenset({B}))
    book.ended(B)
    assert book.next_alone() is None


def test_a_suspect_that_ends_in_the_line_holds_up_nobody_and_nothing_is_kept() -> None:
    book = CrashBook()
    book.crashed(ONE, {A: 1, B: 1, C: 1})
    book.crashed(TWO, {A: 1, B: 1, C: 1})
    book.ended(A)
    assert book.next_alone() == B
    book.ended(B)
    assert book.next_alone() == C
    book.ended(C)
    assert len(book) == 0


# ---------------------------------------------------------------- whole pools

POISON = 900_001
"""A session whose log has this token kills the worker that computes it."""


class CrashingNode(FakeNode):
    """Its worker dies when rows of a poisonous session come."""

    num_crashes = 0

    def hear(self, data: m.CoordinatorMessage | bytes) -> list[m.NodeMessage | bytes]:
        answers = super().hear(data)
        if isinstance(data, bytes) and any(POISON in leg.kv for leg in self.legs.values()):
            return self.crash()
        return answers

    def crash(self) -> list[m.NodeMessage | bytes]:
        self.num_crashes += 1
        self.legs.clear()
        assigned = self.of_type(m.AssignSlice)[-1]
        assert isinstance(assigned, m.AssignSlice)
        failed = m.DeviceFailed(assigned.device_id, assigned.manifest_hash, assigned.generation, "worker_died", "dead")
        return [failed]


def pool(num_nodes: int) -> tuple[PoolDriver, list[CrashingNode]]:
    nodes = [CrashingNode(number, facts.spec(8)) for number in range(1, num_nodes + 1)]
    return PoolDriver(*nodes), nodes


def test_a_poisonous_request_costs_two_workers_and_is_told_why() -> None:
    driver, nodes = pool(5)
    driver.pass_time(30)
    poison = driver.request(1, prompt=(5, POISON, 7))
    driver.run()
    driver.pass_time(5)
    failure = driver.failure(poison)
    assert failure is not None
    assert failure.code == "failed_poison"
    assert sum(node.num_crashes for node in nodes) == 2
    driver.pass_time(60)
    healthy = driver.request(2)
    driver.run()
    assert driver.tokens(healthy) == answer_to((5, 6, 7), 10)
    assert sum(node.num_crashes for node in nodes) == 2


def test_in_a_pool_of_one_node_it_is_not_tried_for_ever() -> None:
    driver, [node] = pool(1)
    poison = driver.request(1, prompt=(5, POISON, 7))
    driver.run()
    driver.pass_time(300)
    assert driver.failure(poison) is not None
    assert node.num_crashes <= MAX_CRASHES


@pytest.mark.parametrize("num_nodes", [2, 3, 6])
def test_whoever_runs_beside_a_poisonous_request_has_the_answer_that_it_would_have_had(num_nodes: int) -> None:
    driver, nodes = pool(num_nodes)
    driver.pass_time(30)
    others = [driver.request(number, prompt=(5, 6, 7 + number), num_tokens=40) for number in range(2, 8)]
    poison = driver.request(1, prompt=(5, POISON, 7), num_tokens=40)
    for _ in range(600):
        driver.run()
        driver.pass_time(0.5)
        if not driver.core.sessions:
            break
    failure = driver.failure(poison)
    assert failure is not None
    for number, session_id in enumerate(others, start=2):
        assert driver.failure(session_id) is None
        assert driver.tokens(session_id) == answer_to((5, 6, 7 + number), 40)
    assert sum(node.num_crashes for node in nodes) <= 4
    assert len(driver.core._crashes) == 0


def test_workers_that_crash_by_themselves_fail_no_answer() -> None:
    driver, nodes = pool(3)
    driver.pass_time(30)
    session = driver.request(1, num_tokens=60)
    num_crashes = 0
    while driver.core.sessions:
        num_tokens = len(driver.tokens(session))
        driver.run_until(lambda enough=num_tokens + 5: len(driver.tokens(session)) >= enough)  # type: ignore[misc]
        running = driver.core.sessions.get(session)
        if running is None or running.state is not SessionState.RUNNING:
            driver.pass_time(1)
        elif num_crashes < len(nodes):
            node = nodes[facts.number_of(running.chain[0].device.node_id) - 1]
            for failed in node.crash():
                driver.say(node, failed)
            num_crashes += 1
    assert num_crashes == len(nodes)
    assert driver.tokens(session) == answer_to((5, 6, 7), 60)
