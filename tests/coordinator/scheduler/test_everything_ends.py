"""Whatever nodes say and whoever comes or goes, each request is served or refused, and nothing stays reserved.

The machine plays honest nodes with odd figures (no memory, no layers, times of zero or of years), sessions that lose
their chains and come back, and a pool whose models, floors, links and speeds change. Every event may come twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.moves import MOST_S
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.scheduler import QUEUE_TTL_S, our_policy
from coordinator.scheduler.state import DeviceKey
from protocol.values import BatchTime, DeviceId, LayerBenchmark, SessionId, Variant
from tests.fakes import pool_facts as facts

PLAIN = facts.model(6)
SHORT = facts.model(3, digest="3d" * 32, context_length=16)
"""A context shorter than the KV floor."""
EXPERTS = replace(
    facts.model(4, digest="4e" * 32),
    active_numels=(1_000_000, 200_000, 0, 200_000),
    kv_numels=(10, 0, 10, 20),
    windows=(None, 8, None, 8),
    hidden_size=64,
)
"""A mixture of experts, of whose middle layer nothing is active."""
LONG = replace(facts.model(60, digest="5f" * 32), layer_numels=(10_000,) * 60)
MODELS = {model.manifest_hash: model for model in (PLAIN, SHORT, EXPERTS, LONG)}

NODES = st.integers(1, 6)
SESSIONS = st.integers(1, 9)
DIGESTS = st.sampled_from(sorted(MODELS))
TIMES_S = st.sampled_from([0.0, 1e-12, 1e-4, 0.01, 1.0, 1e9])
SIZES = st.tuples(st.sampled_from([None, 0, 1, 3, 8]), st.sampled_from([0, 10**7, facts.GIB]))
"""Layers at most, and bytes."""
ROOM = st.sampled_from([0, 1, 100, 10_000])


class QuickAllocator(LaneAllocator):
    def allocate(self, problem: Problem) -> Sequence[Placement]:
        return super().allocate(replace(problem, budget=10))

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        return super().adapt(replace(problem, budget=10))


class EverythingEnds(RuleBasedStateMachine):
    """`told` is what each device is to do; `open` are requests that have not ended, with the chain they run over."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(policy=replace(our_policy(SchedulerConfig()), allocator=QuickAllocator()))
        self.now_s = 0.0
        self.told: dict[DeviceKey, cmd.Measure | cmd.Assign] = {}
        self.open: dict[SessionId, tuple[ev.RequestArrived, set[DeviceKey]]] = {}
        self.room = 10_000
        self.layer_s = 0.01

    def tell(self, event: ev.Event) -> None:
        commands = self.scheduler.handle(event, self.now_s)
        self.scheduler.validate()
        lost = {command.device for command in commands if isinstance(command, cmd.Release)}
        for command in commands:
            self.obey(command)
        self.come_back(lost)

    def obey(self, command: cmd.Command) -> None:
        match command:
            case cmd.Measure(device) | cmd.Assign(device):
                self.told[device] = command
            case cmd.Release(device):
                self.told.pop(device, None)
            case cmd.StartChain(session_id, chain):
                request, before = self.open[session_id]
                assert not before, "it runs already"
                self.open[session_id] = (request, {stage.device for stage in chain})
            case cmd.RefuseRequest(session_id):
                del self.open[session_id]

    def come_back(self, lost: set[DeviceKey]) -> None:
        """As the core does: sessions that ran over these devices ask for another chain."""
        for session_id, (request, chain) in list(self.open.items()):
            hit = chain & lost
            if hit and session_id in self.open:
                self.open[session_id] = (request, set())
                self.tell(replace(request, resumed=True, avoid=request.avoid | hit))

    # ------------------------------------------------------------ the pool

    @initialize()
    def begin(self) -> None:
        self.tell(ev.ModelAdded(PLAIN))
        for number in (1, 2, 3):
            self.join(number, [(3, facts.GIB)], Variant.FLOAT32)
        self.nodes_do_what_they_are_told()

    @rule(digest=DIGESTS, floor=st.integers(0, 3))
    def add_a_model(self, digest: str, floor: int) -> None:
        self.tell(ev.ModelAdded(MODELS[digest], floor))

    @rule(digest=DIGESTS)
    def remove_a_model(self, digest: str) -> None:
        for _ in range(2):
            self.tell(ev.ModelRemoved(digest))
        self.told = {k: o for k, o in self.told.items() if o.manifest_hash != digest}

    @rule(
        number=NODES,
        sizes=st.lists(
            st.tuples(st.sampled_from([None, 0, 1, 3, 8]), st.sampled_from([0, 10**7, facts.GIB])),
            min_size=1,
            max_size=2,
        ),
        variant=st.sampled_from([Variant.FLOAT32, Variant.FLOAT32, Variant.BFLOAT16]),
    )
    def join(self, number: int, sizes: list[tuple[int | None, int]], variant: Variant) -> None:
        ids = (facts.CPU, DeviceId("cuda:0"))
        specs = [
            facts.spec(layers, device_id=device_id, memory_bytes=memory, variant=variant)
            for (layers, memory), device_id in zip(sizes, ids, strict=False)
        ]
        lost = self.forget(number)
        self.tell(ev.NodeJoined(facts.node_id(number), tuple(specs)))
        self.come_back(lost)

    @rule(number=NODES, times=st.integers(1, 2))
    def leave(self, number: int, times: int) -> None:
        lost = self.forget(number)
        for _ in range(times):
            self.tell(ev.NodeLeft(facts.node_id(number)))
        self.come_back(lost)

    @rule(number=NODES, on=st.booleans(), times=st.integers(1, 2))
    def drain(self, number: int, on: bool, times: int) -> None:
        for _ in range(times):
            self.tell(ev.NodeDraining(facts.node_id(number), on))

    @rule()
    def plan_anew(self) -> None:
        self.tell(ev.Replan())

    # ------------------------------------------------------------ what nodes say

    @rule()
    def nodes_do_what_they_are_told(self) -> None:
        for _ in range(3):
            for order in list(self.told.values()):
                self.carry_out(order, self.layer_s, self.room)

    @precondition(lambda self: self.told)
    @rule(data=st.data(), layer_s=TIMES_S, room=ROOM)
    def a_node_does_it(self, data: st.DataObject, layer_s: float, room: int) -> None:
        self.carry_out(self.told[data.draw(st.sampled_from(sorted(self.told)))], layer_s, room)

    def carry_out(self, order: cmd.Measure | cmd.Assign, layer_s: float, room: int) -> None:
        if self.told.get(order.device) is not order:
            return
        if isinstance(order, cmd.Assign):
            self.tell(ev.SliceReady(order.device, order.generation, room))
        else:
            del self.told[order.device]
            decode = (BatchTime(1, layer_s), BatchTime(8, layer_s / 2))
            self.tell(ev.DeviceMeasured(order.device, order.manifest_hash, LayerBenchmark(decode, layer_s, 0.0)))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def a_device_fails(self, data: st.DataObject) -> None:
        order = self.told.pop(data.draw(st.sampled_from(sorted(self.told))))
        self.tell(ev.DeviceFailed(order.device, order.generation if isinstance(order, cmd.Assign) else 0))
        self.come_back({order.device})

    @precondition(lambda self: self.scheduler.state.devices)
    @rule(
        data=st.data(),
        figures=st.tuples(*[st.sampled_from([0, 1, 8, 10**6])] * 3),
        compute_s=st.sampled_from([0.0, 1e-9, 1.0, 1e9]),
    )
    def a_device_has_worked(self, data: st.DataObject, figures: tuple[int, int, int], compute_s: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.scheduler.state.devices)))
        generation = self.scheduler.state.devices[key].generation
        self.tell(ev.StepsSeen(key, generation, *figures, compute_s))

    @rule(number=NODES)
    def a_chain_breaks(self, number: int) -> None:
        self.tell(ev.DeviceBroke(facts.key(number)))

    @rule(
        one=st.integers(0, 9),
        other=st.integers(0, 9),
        rtt_s=st.sampled_from([0.0, 1e-6, 0.1, 3600.0]),
        rate=st.sampled_from([None, 1e-9, 1e6, 1e15]),
    )
    def links_are_measured(self, one: int, other: int, rtt_s: float, rate: float | None) -> None:
        """Of strangers, too, and of a node to itself."""
        link = LinkSeen(facts.node_id(one), facts.node_id(other), rtt_s, rate)
        self.tell(ev.LinksSeen((link, link), ((facts.node_id(one), rtt_s),)))

    # ------------------------------------------------------------ what users do

    @rule(
        number=SESSIONS,
        digest=DIGESTS,
        num_tokens=st.sampled_from([0, 1, 100, 10_000, 10**9]),
        num_prompt=st.sampled_from([0, 1, 99]),
        tenant=st.sampled_from(["", "a", "b"]),
        deadline_s=st.sampled_from([None, 0.0, 5.0]),
    )
    def ask(
        self, number: int, digest: str, num_tokens: int, num_prompt: int, tenant: str, deadline_s: float | None
    ) -> None:
        session_id = facts.session_id(number)
        if session_id in self.open:
            return
        affinity = tuple(range(num_prompt % 3))
        arrived = ev.RequestArrived(
            session_id, digest, num_tokens, False, frozenset(), num_prompt, tenant, affinity, deadline_s
        )
        self.open[session_id] = (arrived, set())
        self.tell(arrived)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def an_answer_ends(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.open))))

    def end(self, session_id: SessionId) -> None:
        del self.open[session_id]
        for _ in range(2):
            self.tell(ev.RequestFinished(session_id, 7))

    @rule(seconds=st.sampled_from([0.0, 0.5, 15.0, 40.0, QUEUE_TTL_S]))
    def time_passes(self, seconds: float) -> None:
        """The clock may stand still."""
        self.now_s += seconds
        self.tell(ev.TimePassed())

    def forget(self, number: int) -> set[DeviceKey]:
        """The node is gone; these were its devices."""
        node_id = facts.node_id(number)
        self.told = {key: order for key, order in self.told.items() if key.node_id != node_id}
        return {key for key in self.scheduler.state.devices if key.node_id == node_id}

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        """Answers end, and nothing else happens any more."""
        for _ in range(4):
            self.nodes_do_what_they_are_told()
            for session_id in [s for s, (_, chain) in self.open.items() if chain]:
                if session_id in self.open and self.open[session_id][1]:
                    self.end(session_id)
            self.time_passes(QUEUE_TTL_S)
        state = self.scheduler.state
        assert not self.open
        assert not state.waiting
        assert not state.running
        assert not any(d.num_reserved_tokens or d.num_requests for d in state.devices.values())
        for _ in range(3):
            self.nodes_do_what_they_are_told()
            self.time_passes(MOST_S + 1.0)
        self.nothing_goes_on_without_a_reason()

    def nothing_goes_on_without_a_reason(self) -> None:
        """Where there is a whole chain, and nobody is to change, the next request is served."""
        state = self.scheduler.state
        assert not state.retiring
        for digest, model in state.models.items():
            if self.scheduler.largest_request(digest) >= 1:
                self.ask(99, digest, 1, 0, "", None)
                assert self.open[facts.session_id(99)][1], model.name
                self.end(facts.session_id(99))


TestEverythingEnds = EverythingEnds.TestCase
TestEverythingEnds.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
