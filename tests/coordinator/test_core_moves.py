"""A device that is to hold other layers hands its sessions over: a node ends what runs over a slice it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.moves import PATIENCE_S
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.scheduler import our_policy
from protocol import messages as m
from protocol.values import FinishReason, LayerRange, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

PROMPT = (5, 6, 7)


class CutsElsewhere(LaneAllocator):
    """Pairs of devices, cut at another layer each time it is asked for a plan."""

    cut = 4

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        self.cut = 2 if self.cut == 4 else 4
        halves = (LayerRange(0, self.cut), LayerRange(self.cut, 8))
        num_paired = len(problem.offers) // 2 * 2
        return [Placement(offer.key, halves[n % 2], "cut") for n, offer in enumerate(problem.offers[:num_paired])]


class PlansAnew(Scheduler):
    """Plans anew when the clock ticks after `wants_to` was set."""

    def __init__(self) -> None:
        super().__init__(policy=replace(our_policy(SchedulerConfig()), allocator=CutsElsewhere()))
        self.wants_to = False

    def handle(self, event: ev.Event, now_s: float) -> list[cmd.Command]:
        commands = super().handle(event, now_s)
        if isinstance(event, ev.TimePassed) and self.wants_to:
            self.wants_to = False
            commands += super().handle(ev.Replan(), now_s)
        return commands


class Pool(PoolDriver):
    """Four nodes with room for six of eight layers each."""

    def __init__(self, num_nodes: int = 4) -> None:
        self.scheduler = PlansAnew()
        nodes = [FakeNode(number, facts.spec(6)) for number in range(1, num_nodes + 1)]
        super().__init__(*nodes, scheduler=self.scheduler)

    def plan_anew(self) -> None:
        self.scheduler.wants_to = True
        self.wait(0.5)

    def wait(self, seconds: float) -> None:
        """Nodes hear nothing meanwhile: what runs goes on running."""
        self.now_s += seconds
        for node in list(self.nodes.values()):
            self.say(node, m.Heartbeat(0, 0, 0))
        self.carry_out(self.core.tick(self.now_s))

    def begin(self, number: int, num_tokens: int = 20) -> SessionId:
        """A request, of which three tokens are there."""
        session_id = self.request(number, PROMPT, num_tokens)
        self.run_until(lambda: len(self.tokens(session_id)) >= 3)
        return session_id


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_an_answer_that_runs_over_a_device_that_is_to_change_goes_on_elsewhere(pool: Pool) -> None:
    session_id = pool.begin(1)
    pool.plan_anew()
    pool.wait(PATIENCE_S)
    assert not pool.core.sessions[session_id].avoid, "nobody is to blame for a change of plan"
    pool.run()
    pool.pass_time(2 * PATIENCE_S)
    assert pool.tokens(session_id) == answer_to(PROMPT, 20)
    assert pool.finish(session_id) is FinishReason.LENGTH
    assert len(pool.chains(session_id)) == 2


def test_the_session_is_closed_before_its_slice_is_released(pool: Pool) -> None:
    session_id = pool.begin(1)
    chain = pool.chains(session_id)[0]
    pool.plan_anew()
    pool.wait(PATIENCE_S)
    pool.run()
    pool.pass_time(2 * PATIENCE_S)
    released = [node for node in map(pool.nodes.__getitem__, map(facts.node_id, chain)) if node.of_type(m.ReleaseSlice)]
    assert released
    for node in released:
        kinds = [type(message) for message in node.heard]
        assert kinds.index(m.CloseSession) < kinds.index(m.ReleaseSlice)


def test_who_runs_over_other_devices_is_not_disturbed(pool: Pool) -> None:
    """One lane changes at a time; who runs over the other one stays."""
    one, other = pool.begin(1, 40), pool.begin(2, 40)
    assert set(pool.chains(one)[0]).isdisjoint(pool.chains(other)[0])
    pool.plan_anew()
    pool.wait(PATIENCE_S)
    assert sorted(len(pool.chains(session_id)) for session_id in (one, other)) == [1, 2]
    pool.run()
    assert pool.tokens(one) == pool.tokens(other) == answer_to(PROMPT, 40)


def test_nothing_new_starts_on_a_device_that_is_to_change(pool: Pool) -> None:
    busy = {number: pool.begin(number, 40) for number in (1, 2)}
    pool.plan_anew()
    retiring = {facts.number_of(key.node_id) for key in pool.scheduler.state.retiring}
    assert retiring
    for number in range(3, 9):
        session_id = pool.request(number, PROMPT, 5)
        assert not retiring & {number for chain in pool.chains(session_id) for number in chain}
    pool.run()
    assert all(pool.tokens(session_id) == answer_to(PROMPT, 40) for session_id in busy.values())


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["plan", "wait", "request", "drain"])), max_size=12),
    num_nodes=st.integers(2, 5),
)
def test_however_often_all_is_planned_anew_no_answer_changes(steps: list[tuple[int, str]], num_nodes: int) -> None:
    pool = Pool(num_nodes)
    sessions = [pool.request(1, PROMPT, 30)]
    for number, (num_steps, what) in enumerate(steps, start=2):
        for _ in range(num_steps):
            pool.step()
        if what == "plan":
            pool.plan_anew()
        elif what == "wait":
            pool.wait(PATIENCE_S)
        elif what == "request" and pool.scheduler.is_ready(facts.DIGEST):
            sessions.append(pool.request(number, PROMPT, 30))
        elif what == "drain":
            pool.drain(1, on=number % 2 == 0)
    pool.drain(1, on=False)
    pool.run()
    for _ in range(4):
        pool.wait(PATIENCE_S)
        pool.run()
    assert all(pool.tokens(session_id) == answer_to(PROMPT, 30) for session_id in sessions)
    assert not pool.core.sessions
    assert all(not fake.legs for fake in pool.nodes.values())
    assert all(not device.num_reserved_tokens for device in pool.scheduler.state.devices.values())
