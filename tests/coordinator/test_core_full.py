"""Nodes that are fuller than the coordinator thinks, and nodes that do not take their rows."""

from __future__ import annotations

from coordinator.sessions import MAX_FULL
from protocol import messages as m
from protocol.frames import decode_frame
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver


class FullNode(FakeNode):
    """Finds no KV room for the next `num_refusals` sessions."""

    num_refusals = 0
    num_asked = 0

    def hear(self, data: m.CoordinatorMessage | bytes) -> list[m.NodeMessage | bytes]:
        if isinstance(data, m.OpenSession):
            self.num_asked += 1
            if self.num_refusals:
                self.num_refusals -= 1
                return [m.SessionBroken(data.session_id, data.epoch, data.stage, "kv_full", "no room")]
        return super().hear(data)


def test_a_session_that_finds_a_node_full_goes_to_another_one() -> None:
    nodes = [FullNode(number, facts.spec(8)) for number in (1, 2, 3)]
    driver = PoolDriver(*nodes)
    driver.pass_time(30)
    for node in nodes[:2]:
        node.num_refusals = 100
    for number in range(1, 7):
        session = driver.request(number)
        driver.run()
        assert driver.tokens(session) == answer_to((5, 6, 7), 10)
    assert all(node.num_asked <= 1 for node in nodes[:2]), "it is left alone for a while"


def test_a_session_for_which_no_node_has_room_waits_until_one_has() -> None:
    node = FullNode(1, facts.spec(8))
    driver = PoolDriver(node)
    node.num_refusals = 10
    session = driver.request(1)
    driver.pass_time(120)
    assert driver.failure(session) is None
    assert driver.tokens(session) == answer_to((5, 6, 7), 10)
    assert node.num_asked == 11


def test_a_node_that_never_has_room_is_not_asked_for_ever() -> None:
    node = FullNode(1, facts.spec(8))
    driver = PoolDriver(node)
    node.num_refusals = 10_000
    session = driver.request(1)
    driver.pass_time(600)
    failure = driver.failure(session)
    assert failure is not None
    assert failure.code == "kv_full"
    assert node.num_asked <= MAX_FULL


def test_room_that_was_hidden_is_there_again_and_a_waiting_request_is_started() -> None:
    node = FullNode(1, facts.spec(8), num_kv_tokens=20)
    driver = PoolDriver(node)
    node.num_refusals = 1
    first, second = driver.request(1), driver.request(2)
    driver.run()
    assert driver.tokens(first) == driver.tokens(second) == []
    driver.pass_time(10)
    for session in (first, second):
        assert driver.tokens(session) == answer_to((5, 6, 7), 10)
    assert all(device.num_hidden_tokens == 0 for device in driver.core.scheduler.state.devices.values())


def test_rows_that_a_node_does_not_take_move_their_session() -> None:
    nodes = [FakeNode(number, facts.spec(4)) for number in range(1, 5)]
    driver = PoolDriver(*nodes)
    driver.pass_time(30)
    session = driver.request(1, num_tokens=30)
    driver.run_until(lambda: len(driver.tokens(session)) >= 5)
    frame = next(data for node, data in driver.mail if isinstance(data, bytes))
    stage = decode_frame(frame).segments[0].stage
    node_id = driver.core.sessions[session].chain[stage].device.node_id
    driver.mail.clear()
    driver.carry_out(driver.core.rows_refused(node_id, frame, driver.now_s))
    driver.run()
    assert driver.tokens(session) == answer_to((5, 6, 7), 30)
    assert len(driver.chains(session)) == 2
