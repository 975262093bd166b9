"""Who made workers crash: the book itself, and whole pools in which one request does."""

from __future__ import annotations

import pytest

from coordinator.poison import MAX_ANYWAY, MAX_CRASHES, CrashBook
from coordinator.sessions import SessionState
from protocol import messages as m
from protocol.values import NodeId, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

ONE, TWO, THREE, FOUR = (NodeId(digit * 32) for digit in "1234")
A, B, C = (SessionId(digit * 32) for digit in "abc")


def test_one_crash_says_nothing() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B])
    assert (book.convict(), book.waits(A), book.waits(B)) == (None, False, False)


def test_who_is_left_as_the_only_possible_cause_of_two_machines_crashes_is_it() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B])
    book.crashed(TWO, [A])
    assert (book.convict(), book.waits(A), book.next_up()) == (None, True, None)
    book.progressed(B)
    assert book.convict() == A
    assert book.convict() is None
    assert len(book) == 0


def test_who_has_a_token_more_starts_afresh() -> None:
    book = CrashBook()
    book.crashed(ONE, [A])
    book.progressed(A)
    book.crashed(TWO, [A])
    assert book.convict() is None
    book.crashed(THREE, [A])
    assert book.convict() == A


def test_a_machine_that_crashes_again_and_again_is_enough_in_the_end() -> None:
    book = CrashBook()
    verdicts = []
    for _ in range(MAX_CRASHES):
        book.crashed(ONE, [A])
        verdicts.append(book.convict())
    assert verdicts == [None] * (MAX_CRASHES - 1) + [A]


def test_a_suspect_waits_until_whoever_ran_beside_it_has_a_token_more_and_is_the_cause_then() -> None:
    book = CrashBook()
    book.crashed(ONE, [A])
    book.crashed(TWO, [A, B, C])
    assert [book.waits(each) for each in (A, B, C)] == [True, False, False]
    assert (book.convict(), book.next_up()) == (None, None)
    book.progressed(B)
    assert (book.convict(), book.next_up()) == (None, None)
    book.progressed(C)
    assert book.convict() == A


def test_a_suspect_is_acquitted_when_whoever_ran_beside_it_is_the_cause() -> None:
    """A second machine fails by itself under A, and B makes another two crash."""
    book = CrashBook()
    book.crashed(ONE, [A, B])
    book.crashed(TWO, [A])
    book.crashed(THREE, [B])
    book.crashed(FOUR, [B])
    assert book.convict() == B
    assert book.convict() is None
    assert book.next_up() == A
    assert not book.waits(A)
    book.crashed(THREE, [A, C])
    assert book.convict() is None, "two crashes that nobody has explained, and C may be the cause of one"


def test_who_saw_a_machine_fail_is_not_the_cause_when_the_next_one_does_that_ran_a_new_request() -> None:
    book = CrashBook()
    book.crashed(ONE, [A])
    book.crashed(TWO, [A, B])
    book.crashed(THREE, [B])
    assert book.convict() is None
    assert book.next_up() == A
    assert book.next_up() is None
    book.progressed(A)
    assert book.convict() == B


def test_a_crash_that_is_explained_does_not_count_when_the_same_request_is_sent_again() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B])
    book.crashed(TWO, [B])
    book.crashed(THREE, [B])
    assert book.convict() == B
    book.crashed(FOUR, [A, C])
    assert not book.waits(A)


def test_a_suspect_tries_once_more_when_whoever_ran_beside_it_is_gone_before_anything_is_known() -> None:
    book = CrashBook()
    book.crashed(ONE, [A])
    book.crashed(TWO, [A, B])
    book.ended(B)
    assert book.convict() is None
    assert book.next_up() == A
    book.progressed(A)
    assert len(book) == 0


def test_nobody_crashes_machines_for_ever_beside_requests_that_are_given_up() -> None:
    book = CrashBook()
    for number in range(MAX_ANYWAY - 1):
        book.crashed(NodeId(f"{number:032}"), [A, B])
        assert book.convict() is None
        book.ended(B)
        book.next_up()
    book.crashed(ONE, [A, B])
    assert book.convict() == A


def test_of_several_suspects_each_goes_alone_and_the_one_that_crashes_again_is_the_cause() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B, C])
    book.progressed(C)
    book.crashed(TWO, [A, B, C])
    assert [book.waits(each) for each in (A, B, C)] == [True, True, False]
    assert book.next_up() == A
    assert book.next_up() is None
    assert not book.waits(A)
    assert book.waits(B)
    book.progressed(A)
    assert book.next_up() == B
    book.crashed(THREE, [B])
    assert book.convict() == B
    book.ended(B)
    assert book.next_up() is None


def test_who_goes_alone_is_not_blamed_for_what_another_suspect_does() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B])
    book.crashed(TWO, [A, B])
    book.crashed(ONE, [C])
    assert book.next_up() == A
    book.crashed(THREE, [A, C])
    assert book.convict() is None
    assert [book.waits(each) for each in (A, B, C)] == [True] * 3


def test_a_suspect_that_ends_in_the_line_holds_up_nobody_and_nothing_is_kept() -> None:
    book = CrashBook()
    book.crashed(ONE, [A, B, C])
    book.crashed(TWO, [A, B, C])
    book.ended(A)
    assert book.next_up() == B
    book.ended(B)
    assert book.next_up() == C
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


def test_whoever_saw_a_machine_fail_by_itself_is_not_blamed_for_the_poison_that_comes_beside_it_then() -> None:
    driver, nodes = pool(3)
    driver.pass_time(30)
    innocent = driver.request(2, num_tokens=20)
    driver.run_until(lambda: len(driver.tokens(innocent)) >= 5)
    first = driver.chains(innocent)[-1][0]
    for failed in nodes[first - 1].crash():
        driver.say(nodes[first - 1], failed)
    driver.run_until(lambda: driver.core.sessions[innocent].state is SessionState.RUNNING)
    second = driver.chains(innocent)[-1][0]
    assert second != first
    assert [type(data) for node, data in driver.mail if node is nodes[second - 1]] == [bytes], "its rows are under way"
    driver.mail.clear()
    [third] = {1, 2, 3} - {first, second}
    driver.drain(third)
    poison = driver.request(1, prompt=(5, POISON, 7))
    driver.run_until(lambda: nodes[second - 1].num_crashes == 1)
    driver.drain(third, on=False)
    driver.pass_time(60)
    failure = driver.failure(poison)
    assert failure is not None
    assert failure.code == "failed_poison"
    assert driver.failure(innocent) is None
    assert driver.tokens(innocent) == answer_to((5, 6, 7), 20)


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
