"""What the core tells the scheduler of links, live work and requests, and what it asks of which nodes."""

from __future__ import annotations

from typing import TypeVar

import pytest

from coordinator import core as core_module
from coordinator.affinity import affinity_of
from coordinator.core import DEVICE_FAULTS
from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.links import LinkSeen
from protocol import messages as m
from protocol.frames import probe_frame
from protocol.values import KV_BLOCK_TOKENS, DeviceWork, LinkTime
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

E = TypeVar("E")
ADDRESS = "wss://10.0.0.{}:9000"
MEASUREMENTS = (ev.StepsSeen, ev.LinksSeen, ev.DeviceBroke)


class Recorder(Scheduler):
    """Remembers what it is told. Measurements change nothing, and it wants no links measured by itself; `wanted` are
    commands for the next moment."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[ev.Event] = []
        self.wanted: list[cmd.Command] = []

    def handle(self, event: ev.Event, now_s: float) -> list[cmd.Command]:
        self.heard.append(event)
        if isinstance(event, MEASUREMENTS):
            return []
        wanted, self.wanted = self.wanted, []
        decided = super().handle(event, now_s)
        return [*(command for command in decided if not isinstance(command, cmd.MeasureLinks)), *wanted]

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]


def node(number: int, version: int = 4) -> FakeNode:
    return FakeNode(number, facts.spec(8), address=ADDRESS.format(number), version=version)


def pool_of(*nodes: FakeNode) -> tuple[PoolDriver, Recorder]:
    recorder = Recorder()
    return PoolDriver(*nodes, scheduler=recorder), recorder


def measures(pool: PoolDriver, recorder: Recorder, number: int, *targets: int) -> list[m.MeasureLinks]:
    """The scheduler wants these links measured; what the node is asked for it."""
    recorder.wanted = [cmd.MeasureLinks(facts.node_id(number), tuple(facts.node_id(target) for target in targets))]
    pool.carry_out(pool.core.tick(pool.now_s))
    pool.run()
    return pool.nodes[facts.node_id(number)].of_type(m.MeasureLinks)  # type: ignore[return-value]


def tell(pool: PoolDriver, number: int, message: m.NodeMessage) -> None:
    pool.say(pool.nodes[facts.node_id(number)], message)


def link(number: int, rtt_s: float | None = 0.02, bytes_per_s: float | None = None) -> LinkTime:
    return LinkTime(facts.node_id(number), rtt_s, bytes_per_s, is_direct=rtt_s is not None)


# ---------------------------------------------------------------- links


def test_a_node_that_is_to_measure_gets_the_way_to_each_target() -> None:
    pool, recorder = pool_of(node(1), node(2), node(3))
    [asked] = measures(pool, recorder, 1, 2, 3)
    assert [(hop.node_id, hop.address) for hop in asked.targets] == [
        (facts.node_id(number), ADDRESS.format(number)) for number in (2, 3)
    ]
    assert {(hop.ticket, hop.fingerprint) for hop in asked.targets} == {("a-ticket", "4e" * 32)}


def test_nobody_measures_the_way_to_itself_or_to_who_is_gone() -> None:
    pool, recorder = pool_of(node(1), node(2))
    pool.lose(pool.nodes[facts.node_id(2)])
    assert measures(pool, recorder, 1, 1, 2, 9) == []


def test_measured_links_come_to_the_scheduler() -> None:
    pool, recorder = pool_of(node(1), node(2), node(3))
    measures(pool, recorder, 1, 2, 3)
    tell(pool, 1, m.LinksMeasured((link(2, 0.02, 5e6), link(3, 0.3)), 0.05))
    one, two, three = (facts.node_id(number) for number in (1, 2, 3))
    links = (LinkSeen(one, two, 0.02, 5e6), LinkSeen(one, three, 0.3))
    assert recorder.of(ev.LinksSeen) == [ev.LinksSeen(links, ((one, 0.05),))]


def test_links_that_nobody_asked_for_are_not_believed() -> None:
    pool, recorder = pool_of(node(1), node(2), node(3))
    tell(pool, 1, m.LinksMeasured((link(2),)))
    measures(pool, recorder, 1, 2)
    tell(pool, 1, m.LinksMeasured((link(3), link(1), link(77))))
    tell(pool, 1, m.LinksMeasured((link(2),)))
    assert recorder.of(ev.LinksSeen) == []


def test_a_link_to_a_node_that_left_meanwhile_is_forgotten() -> None:
    pool, recorder = pool_of(node(1), node(2))
    measures(pool, recorder, 1, 2)
    pool.lose(pool.nodes[facts.node_id(2)])
    tell(pool, 1, m.LinksMeasured((link(2),)))
    assert recorder.of(ev.LinksSeen) == []


def test_the_way_through_the_coordinator_is_both_nodes_ways_to_it() -> None:
    pool, recorder = pool_of(node(1), node(2))
    tell(pool, 2, m.Heartbeat(0, 0, 0, pool_rtt_s=0.03))
    measures(pool, recorder, 1, 2)
    tell(pool, 1, m.LinksMeasured((link(2, None),), 0.05))
    [seen] = recorder.of(ev.LinksSeen)[1].links
    assert (seen.source, seen.target, seen.bytes_per_s) == (facts.node_id(1), facts.node_id(2), None)
    assert seen.rtt_s == pytest.approx(0.08)


def test_the_way_through_the_coordinator_is_unknown_until_both_have_measured_theirs() -> None:
    pool, recorder = pool_of(node(1), node(2))
    measures(pool, recorder, 1, 2)
    tell(pool, 1, m.LinksMeasured((link(2, None),), 0.05))
    assert recorder.of(ev.LinksSeen) == [ev.LinksSeen((), ((facts.node_id(1), 0.05),))]


def test_a_direct_link_without_a_time_says_nothing() -> None:
    pool, recorder = pool_of(node(1), node(2))
    measures(pool, recorder, 1, 2)
    tell(pool, 1, m.LinksMeasured((LinkTime(facts.node_id(2), None, None, is_direct=True),)))
    assert recorder.of(ev.LinksSeen) == []


def test_a_round_trip_to_the_pool_is_told_when_it_was_measured_and_not_again() -> None:
    pool, recorder = pool_of(node(1))
    tell(pool, 1, m.Heartbeat(0, 0, 0, pool_rtt_s=0.03))
    tell(pool, 1, m.Heartbeat(0, 0, 0))
    assert recorder.of(ev.LinksSeen) == [ev.LinksSeen((), ((facts.node_id(1), 0.03),))]
    assert pool.core.nodes[facts.node_id(1)].pool_rtt_s == 0.03


def test_a_probe_is_not_relayed_and_counts_as_a_fault() -> None:
    pool, _ = pool_of(node(1))
    pool.say(pool.nodes[facts.node_id(1)], probe_frame(bytes(64)))
    assert pool.core.nodes[facts.node_id(1)].num_faults == 1


# ---------------------------------------------------------------- live work


def work(generation: int, device: str = "cpu") -> DeviceWork:
    return DeviceWork(device, generation, 10, 25, 512, 0.5)  # type: ignore[arg-type]


def test_live_work_of_the_current_assignment_comes_to_the_scheduler() -> None:
    pool, recorder = pool_of(node(1))
    generation = pool.core.scheduler.state.devices[facts.key(1)].generation
    tell(pool, 1, m.Heartbeat(1, 100, 0, (work(generation),)))
    assert recorder.of(ev.StepsSeen) == [ev.StepsSeen(facts.key(1), generation, 10, 25, 512, 0.5)]


def test_work_of_another_assignment_or_of_no_device_is_dropped() -> None:
    pool, recorder = pool_of(node(1))
    generation = pool.core.scheduler.state.devices[facts.key(1)].generation
    tell(pool, 1, m.Heartbeat(1, 100, 0, (work(generation - 1), work(generation + 1), work(0), work(1, "cuda:7"))))
    assert recorder.of(ev.StepsSeen) == []


# ---------------------------------------------------------------- devices that break chains


def broken(pool: PoolDriver, recorder: Recorder, code: str, epoch: int = 1) -> list[ev.DeviceBroke]:
    session_id = pool.request(num_tokens=4)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 1)
    number = pool.chains(session_id)[0][0]
    tell(pool, number, m.SessionBroken(session_id, epoch, 0, code, "No."))
    pool.run()
    assert pool.tokens(session_id) == answer_to((5, 6, 7), 4), "another chain went on"
    return recorder.of(ev.DeviceBroke)


@pytest.mark.parametrize("code", sorted(DEVICE_FAULTS))
def test_a_fault_of_the_device_is_held_against_it(code: str) -> None:
    pool, recorder = pool_of(node(1), node(2))
    [event] = broken(pool, recorder, code)
    assert event.device in (facts.key(1), facts.key(2))
    said = [type(event) for event in recorder.heard if isinstance(event, ev.DeviceBroke | ev.RequestArrived)]
    assert said == [ev.RequestArrived, ev.DeviceBroke, ev.RequestArrived], "before the next chain is chosen"


@pytest.mark.parametrize("code", ["not_serving", "rows_lost", "link_lost", "slice_replaced", "stale_epoch"])
def test_a_lost_link_or_a_change_of_plan_is_no_fault_of_the_device(code: str) -> None:
    pool, recorder = pool_of(node(1), node(2))
    assert broken(pool, recorder, code) == []


def test_news_of_an_older_chain_speak_against_nobody() -> None:
    pool, recorder = pool_of(node(1), node(2))
    assert broken(pool, recorder, "non_finite", epoch=0) == []


# ---------------------------------------------------------------- requests


def test_the_scheduler_hears_who_asks_what_and_how_long_it_would_wait() -> None:
    pool, recorder = pool_of(node(1))
    prompt = tuple(range(5, 605))
    session_id = pool.request(prompt=prompt, num_tokens=3, tenant="key 7", deadline_s=2.5)
    pool.run()
    [arrived] = recorder.of(ev.RequestArrived)
    whole_blocks = 608  # of 603 tokens
    assert (arrived.num_tokens, arrived.num_prompt_tokens, arrived.tenant) == (whole_blocks, 600, "key 7")
    assert (arrived.affinity, arrived.deadline_s) == (affinity_of(prompt, "key 7"), 2.5)
    assert len(arrived.affinity) == 2
    assert recorder.of(ev.RequestFinished) == [ev.RequestFinished(session_id, 3)]


def test_kv_room_is_reserved_in_whole_blocks_as_workers_give_it_out() -> None:
    """Three requests of 17 tokens would fit into 64 if room went by the token; workers have room for two of them."""
    pool = PoolDriver(FakeNode(1, num_kv_tokens=4 * KV_BLOCK_TOKENS))
    for number in (1, 2, 3):
        pool.request(number, prompt=tuple(range(5, 10)), num_tokens=KV_BLOCK_TOKENS - 4)
    assert [len(pool.chains(facts.session_id(number))) for number in (1, 2, 3)] == [1, 1, 0]
    pool.run()
    assert all(pool.finish(facts.session_id(number)) for number in (1, 2, 3))


def test_an_answer_that_moves_on_brings_what_it_has_so_far_and_no_deadline() -> None:
    pool, recorder = pool_of(node(1), node(2))
    session_id = pool.request(num_tokens=10, tenant="key 7", deadline_s=2.5)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 4)
    pool.lose(pool.nodes[facts.node_id(pool.chains(session_id)[0][0])])
    pool.run()
    first, second = recorder.of(ev.RequestArrived)
    assert (first.num_prompt_tokens, first.resumed) == (3, False)
    assert (second.num_prompt_tokens, second.resumed) == (7, True)
    assert (second.tenant, second.deadline_s, second.num_tokens) == ("key 7", None, first.num_tokens)


def test_a_cancelled_request_tells_how_many_tokens_it_had() -> None:
    pool, recorder = pool_of(node(1))
    session_id = pool.request(num_tokens=50)
    pool.run_until(lambda: len(pool.tokens(session_id)) >= 5)
    pool.cancel(session_id)
    assert recorder.of(ev.RequestFinished) == [ev.RequestFinished(session_id, 5)]


def test_a_scheduler_of_ones_own_is_the_pools() -> None:
    recorder = Recorder()
    assert core_module.PoolCore(recorder).scheduler is recorder


# ---------------------------------------------------------------- the version before


def test_a_node_of_the_version_before_serves_as_well() -> None:
    pool, _ = pool_of(node(1, version=3))
    session_id = pool.request(num_tokens=6)
    pool.run()
    assert pool.tokens(session_id) == answer_to((5, 6, 7), 6)
    heard = {type(data) for data in pool.nodes[facts.node_id(1)].heard if not isinstance(data, bytes)}
    assert heard <= {m.MeasureDevice, m.MeasureLinks, m.AssignSlice, m.OpenSession, m.CloseSession}


def test_a_coordinator_that_stalls_before_its_first_tick_judges_nobody() -> None:
    pool = PoolDriver(FakeNode(1))
    pool.now_s += 10.0
    pool.carry_out(pool.core.tick(pool.now_s))
    assert list(pool.core.nodes) == [facts.node_id(1)]
