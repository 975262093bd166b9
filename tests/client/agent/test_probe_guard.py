"""What neighbours may send to be thrown away."""

from __future__ import annotations

from client.agent.probe_guard import SENDER_BYTES, TOTAL_BYTES, WINDOW_S, ProbeGuard
from client.agent.probing import NUM_BLOCK_FRAMES, NUM_WARM_UP_FRAMES, SPEED_AGAIN_AFTER_S
from protocol.frames import MAX_PROBE_BYTES
from protocol.values import NodeId
from tests.client.agent.samples import LEFT, RIGHT


def test_a_sender_that_measures_as_ours_do_is_always_within_its_limits() -> None:
    guard, one = ProbeGuard(), (NUM_WARM_UP_FRAMES + NUM_BLOCK_FRAMES) * (MAX_PROBE_BYTES + 200)
    assert all(guard.takes(LEFT, one, number * SPEED_AGAIN_AFTER_S / 2) for number in range(100))


def test_a_sender_that_sends_more_is_refused_until_the_window_has_passed() -> None:
    guard = ProbeGuard()
    assert guard.takes(LEFT, SENDER_BYTES, 0.0)
    assert not guard.takes(LEFT, 1, WINDOW_S - 1)
    assert guard.takes(RIGHT, 1, WINDOW_S - 1)
    assert guard.takes(LEFT, SENDER_BYTES, WINDOW_S)


def test_many_names_do_not_help() -> None:
    guard = ProbeGuard()
    names = [NodeId(f"{number:032x}") for number in range(2 * TOTAL_BYTES // SENDER_BYTES)]
    taken = [guard.takes(name, SENDER_BYTES, 1.0) for name in names]
    assert sum(taken) == TOTAL_BYTES // SENDER_BYTES
    assert not guard.takes(NodeId("f" * 32), SENDER_BYTES, 2.0)
