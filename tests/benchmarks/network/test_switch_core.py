from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.network.switch_core import SwitchCore
from benchmarks.network.topology import Line, Link

ADDRESSES = [ip_address(f"198.18.0.{number}").packed for number in (1, 2, 3)]
A, B, C = range(3)


def packet(source: int, target: int, num_bytes: int = 1000, mark: int = 0) -> bytes:
    """An IPv4 packet, as far as a switch looks at it."""
    header = bytes([0x45]) + bytes(11) + ADDRESSES[source] + ADDRESSES[target]
    return header + mark.to_bytes(4, "big") + bytes(num_bytes - len(header) - 4)


def mark_of(data: bytes) -> int:
    return int.from_bytes(data[20:24], "big")


@pytest.fixture
def core() -> SwitchCore:
    return SwitchCore(ADDRESSES, seed=1)


def arrivals(core: SwitchCore) -> list[tuple[float, int, bytes]]:
    """When each packet comes out, by looking exactly when something is due."""
    seen = []
    while (due_s := core.next_due_s()) is not None:
        seen += [(due_s, target, data) for target, data in core.take_due(due_s)]
    return seen


def test_a_packet_comes_out_at_its_receiver_after_the_links_delay(core: SwitchCore) -> None:
    core.set_link(A, B, Link(delay_s=0.04))
    core.packet_in(A, packet(A, B), 1.0)
    assert core.take_due(1.039) == []
    assert core.next_due_s() == pytest.approx(1.04)
    assert core.take_due(1.0401) == [(B, packet(A, B))]
    assert core.next_due_s() is None


def test_a_links_delay_is_of_one_direction(core: SwitchCore) -> None:
    core.set_link(A, B, Link(delay_s=0.04))
    core.packet_in(B, packet(B, A), 1.0)
    assert core.take_due(1.0) == [(A, packet(B, A))]


def test_what_is_no_packet_for_a_machine_here_is_ignored(core: SwitchCore) -> None:
    elsewhere = packet(A, B)[:16] + ip_address("192.0.2.1").packed + bytes(20)
    for data in (b"", b"\x45", bytes([0x60]) + bytes(60), elsewhere):
        core.packet_in(A, data, 0.0)
    assert core.next_due_s() is None
    assert core.traffic[A].num_sent == 0


def test_an_uplink_sends_one_packet_after_the_other_at_its_rate(core: SwitchCore) -> None:
    core.set_line(A, Line(up_bits_per_s=8000 * 10))
    for target in (B, C, B):
        core.packet_in(A, packet(A, target), 0.0)
    assert [(round(at_s, 6), target) for at_s, target, _ in arrivals(core)] == [(0.1, B), (0.2, C), (0.3, B)][:2]
    assert core.traffic[A].num_overflowed == 1, "the third would have waited longer than the queue holds"


def test_a_downlink_is_shared_by_all_who_send_to_it(core: SwitchCore) -> None:
    core.set_line(C, Line(down_bits_per_s=8000 * 10, queue_s=1.0))
    core.packet_in(A, packet(A, C), 0.0)
    core.packet_in(B, packet(B, C), 0.0)
    assert [round(at_s, 6) for at_s, _, _ in arrivals(core)] == [0.1, 0.2]


def test_a_downlink_takes_packets_when_they_come_not_when_they_were_sent(core: SwitchCore) -> None:
    core.set_line(C, Line(down_bits_per_s=8000 * 10, queue_s=1.0))
    core.set_link(A, C, Link(delay_s=1.0))
    core.packet_in(A, packet(A, C, mark=1), 0.0)
    core.packet_in(B, packet(B, C, mark=2), 0.95)
    assert [(round(at_s, 6), mark_of(data)) for at_s, _, data in arrivals(core)] == [(1.05, 2), (1.15, 1)]


def test_a_line_that_has_been_idle_saves_nothing_up(core: SwitchCore) -> None:
    core.set_line(A, Line(up_bits_per_s=8000 * 10, queue_s=1.0))
    for _ in range(2):
        core.packet_in(A, packet(A, B), 100.0)
    assert [round(at_s, 6) for at_s, _, _ in arrivals(core)] == [100.1, 100.2]


@pytest.mark.parametrize("cut", ["sender", "receiver", "link"])
def test_what_is_cut_lets_nothing_through_until_it_is_whole_again(core: SwitchCore, cut: str) -> None:
    def set_cut(is_cut: bool) -> None:
        if cut == "link":
            core.set_link(A, B, Link(is_cut=is_cut))
        else:
            core.set_line(A if cut == "sender" else B, Line(is_cut=is_cut))

    set_cut(True)
    core.packet_in(A, packet(A, B), 0.0)
    assert core.next_due_s() is None
    assert core.traffic[A].num_lost == 1
    set_cut(False)
    core.packet_in(A, packet(A, B), 0.0)
    assert len(core.take_due(0.0)) == 1


def test_loss_takes_about_its_share_and_the_same_packets_again_with_the_same_seed() -> None:
    def survivors(seed: int) -> list[int]:
        core = SwitchCore(ADDRESSES, seed)
        core.set_link(A, B, Link(loss=0.1))
        for mark in range(2000):
            core.packet_in(A, packet(A, B, mark=mark), 0.0)
        return [mark_of(data) for _, data in core.take_due(0.0)]

    assert 1700 < len(survivors(1)) < 1900
    assert survivors(1) == survivors(1)
    assert survivors(1) != survivors(2)


@given(
    times_s=st.lists(st.floats(0, 10), min_size=1, max_size=30).map(sorted),
    jitter_s=st.floats(0, 2),
    rate=st.one_of(st.none(), st.floats(1e4, 1e7)),
)
def test_packets_of_a_link_never_overtake_each_other_nor_come_too_early(
    times_s: list[float], jitter_s: float, rate: float | None
) -> None:
    core = SwitchCore(ADDRESSES, seed=3)
    core.set_link(A, B, Link(delay_s=0.5, jitter_s=jitter_s))
    core.set_line(A, Line(up_bits_per_s=rate, queue_s=1e9))
    for mark, at_s in enumerate(times_s):
        core.packet_in(A, packet(A, B, mark=mark), at_s)
    seen = arrivals(core)
    assert [mark_of(data) for _, _, data in seen] == list(range(len(times_s)))
    assert all(at_s >= sent_s + 0.5 for (at_s, _, _), sent_s in zip(seen, times_s, strict=True))


@given(
    sends=st.lists(st.tuples(st.floats(0, 5), st.sampled_from([A, B]), st.integers(100, 1500)), max_size=60),
    loss=st.floats(0, 0.9),
    queue_s=st.floats(0.001, 0.5),
)
def test_every_packet_is_delivered_lost_or_dropped_once(
    sends: list[tuple[float, int, int]], loss: float, queue_s: float
) -> None:
    core = SwitchCore(ADDRESSES, seed=4)
    core.set_line(A, Line(up_bits_per_s=1e5, queue_s=queue_s))
    core.set_line(C, Line(down_bits_per_s=2e5, queue_s=queue_s))
    core.set_link(B, C, Link(delay_s=0.01, loss=loss))
    for at_s, source, num_bytes in sorted(sends):
        core.packet_in(source, packet(source, C, num_bytes), at_s)
    delivered = arrivals(core)
    traffic = core.traffic
    assert sum(one.num_sent for one in traffic) == len(sends)
    assert len(delivered) == len(sends) - sum(one.num_lost + one.num_overflowed for one in traffic)
    assert traffic[C].num_received == len(delivered)
    assert traffic[C].received_bytes == sum(len(data) for _, _, data in delivered)


@given(sends=st.lists(st.tuples(st.floats(0, 1), st.integers(100, 1500)), min_size=2, max_size=60))
def test_a_line_never_carries_more_than_its_rate(sends: list[tuple[float, int]]) -> None:
    core = SwitchCore(ADDRESSES, seed=5)
    core.set_line(A, Line(up_bits_per_s=1e6, queue_s=1.0))
    for at_s, num_bytes in sorted(sends):
        core.packet_in(A, packet(A, B, num_bytes), at_s)
    seen = arrivals(core)
    first_s = min(at_s for at_s, _ in sends)
    carried = 0
    for at_s, _, data in seen:
        carried += len(data) * 8
        assert carried <= (at_s - first_s) * 1e6 + 1e-3
