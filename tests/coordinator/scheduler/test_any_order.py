"""Any order of events keeps the scheduler's invariants, and what it commands always makes sense to a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.filling_holes import HoleFiller
from coordinator.scheduler.links import LinkMap, LinkSeen
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.scheduler.problems import fit_of, offer_of
from coordinator.scheduler.scheduler import QUEUE_TTL_S, our_policy
from coordinator.scheduler.state import HOLDING, Device, DeviceKey, DeviceState
from protocol.values import HeldSlice, LayerRange, NodeId, SessionId, Variant
from tests.fakes import pool_facts as facts

OTHER = "3d" * 32
MODELS = {model.manifest_hash: model for model in (facts.model(6), facts.model(3, digest=OTHER))}
NODES = st.integers(1, 5)
SESSIONS = st.integers(1, 6)
DIGESTS = st.sampled_from(sorted(MODELS))
GPU = facts.DeviceId("cuda:0")


class QuickAllocator(LaneAllocator):
    """Tries few plans: what is tested here holds for any of them."""

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        return super().allocate(replace(problem, budget=20))

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        return super().adapt(replace(problem, budget=20))


class AnyOrder(RuleBasedStateMachine):
    """Keeps what an outside observer knows: which devices exist, what each was last told, which requests are open."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(policy=replace(our_policy(SchedulerConfig()), allocator=QuickAllocator()))
        self.now_s = 0.0
        self.told: dict[DeviceKey, cmd.Command | None] = {}
        self.open: set[SessionId] = set()
        self.loaded: set[tuple[DeviceKey, int]] = set()
        self.draining: set[NodeId] = set()
        self.measured_on: set[tuple[DeviceKey, Variant, str]] = set()
        """What was measured is not asked for again while the node comes with the same devices."""
        self.reserved: dict[DeviceKey, int] = {}
        """Tokens, when it was looked at last."""

    def tell(self, event: ev.Event) -> None:
        for command in self.scheduler.handle(event, self.now_s):
            match command:
                case cmd.Measure(device) | cmd.Assign(device):
                    self.check_order(command)
                    self.told[device] = command
                case cmd.Release(device, generation):
                    last = self.told[device]
                    assert isinstance(last, cmd.Assign)
                    assert last.generation == generation
                    self.told[device] = None
                case cmd.StartChain(session_id, chain):
                    assert session_id in self.open
                    self.check_chain(chain)
                case cmd.RefuseRequest(session_id):
                    self.open.remove(session_id)

    def check_order(self, command: cmd.Measure | cmd.Assign) -> None:
        last = self.told[command.device]
        assert command.device.node_id not in self.draining
        assert command.manifest_hash in self.scheduler.state.models
        if isinstance(command, cmd.Measure):
            assert (command.device, command.variant, command.manifest_hash) not in self.measured_on
        else:
            assert not isinstance(last, cmd.Assign) or command.generation > last.generation
            assert command.layers.stop <= MODELS[command.manifest_hash].num_layers

    def check_chain(self, chain: tuple[cmd.ChainStage, ...]) -> None:
        """Every layer once, in order, on devices that were told to hold exactly that, all of one variant."""
        assert not self.draining & {stage.device.node_id for stage in chain}
        orders = [self.told[stage.device] for stage in chain]
        assert all(isinstance(order, cmd.Assign) for order in orders)
        assigned = [order for order in orders if isinstance(order, cmd.Assign)]
        assert [(o.layers, o.generation) for o in assigned] == [(s.layers, s.generation) for s in chain]
        assert {(stage.device, stage.generation) for stage in chain} <= self.loaded
        assert len({(order.manifest_hash, order.variant) for order in assigned}) == 1
        layers = [layer for stage in chain for layer in range(stage.layers.start, stage.layers.stop)]
        assert layers == list(range(MODELS[assigned[0].manifest_hash].num_layers))

    # ------------------------------------------------------------ what may happen

    @initialize()
    def begin_with_a_pool_that_serves(self) -> None:
        self.tell(ev.ModelAdded(MODELS[facts.DIGEST]))
        for number in (1, 2, 3, 4):
            self.join_or_rejoin(number, [3], Variant.FLOAT32, 0)
        self.everybody_does_what_they_were_told()

    @rule()
    def add_another_model(self) -> None:
        self.tell(ev.ModelAdded(MODELS[OTHER]))

    @rule(digest=DIGESTS)
    def remove_a_model(self, digest: str) -> None:
        self.tell(ev.ModelRemoved(digest))
        assert digest not in self.scheduler.state.models
        if digest == facts.DIGEST:
            self.tell(ev.ModelAdded(MODELS[digest]))

    @rule(number=NODES, on=st.sampled_from([True, False, False]))
    def drain_or_undrain(self, number: int, on: bool) -> None:
        node_id = facts.node_id(number)
        self.draining = self.draining | {node_id} if on else self.draining - {node_id}
        self.tell(ev.NodeDraining(node_id, on))

    def loading_models(self) -> set[str]:
        """Of which somebody loads layers just now."""
        loading = self.scheduler.state.in_state(DeviceState.ASSIGNED)
        return {device.model for device in loading if device.model is not None}

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def pause_and_come_back(self, data: st.DataObject) -> None:
        """With the same devices. If nobody took over, or was about to, it makes the models that it broke whole again,
        without a plan."""
        node_id = data.draw(st.sampled_from(sorted({key.node_id for key in self.told})))
        specs = tuple(d.spec for key, d in self.scheduler.state.devices.items() if key.node_id == node_id)
        ready = {digest for digest in self.scheduler.state.models if self.scheduler.is_ready(digest)}
        others = {key: order for key, order in self.told.items() if key.node_id != node_id}
        self.leave(facts.number_of(node_id))
        broken = {digest for digest in ready if not self.scheduler.is_ready(digest)} - self.loading_models()
        if self.told != others:
            broken = set()
        self.told |= {DeviceKey(node_id, spec.device_id): None for spec in specs}
        self.tell(ev.NodeJoined(node_id, specs))
        for _ in range(3):  # once more where one of its devices then takes a part of what another one holds
            for key, order in list(self.told.items()):
                if key.node_id == node_id and isinstance(order, cmd.Assign):
                    self.say_ready(key, order.generation, 300)
        assert all(self.scheduler.is_ready(digest) for digest in broken)

    @rule()
    def everybody_does_what_they_were_told(self) -> None:
        """The common case: without it too few runs get as far as serving."""
        for _ in range(3):
            for order in list(self.told.values()):
                if isinstance(order, cmd.Measure):
                    self.say_measured(order, 0.01)
                elif isinstance(order, cmd.Assign) and (order.device, order.generation) not in self.loaded:
                    self.say_ready(order.device, order.generation, 300)

    @rule(
        number=NODES,
        sizes=st.lists(st.integers(0, 8), min_size=1, max_size=2),
        variant=st.sampled_from([Variant.FLOAT32, Variant.FLOAT32, Variant.BFLOAT16]),
        held=st.integers(0, 9),
    )
    def join_or_rejoin(self, number: int, sizes: list[int], variant: Variant, held: int) -> None:
        ids = [facts.CPU, GPU][: len(sizes)]
        specs = [facts.spec(size, device_id=d, variant=variant) for d, size in zip(ids, sizes, strict=True)]
        self.forget(number)
        same = {(facts.key(number, device_id), variant) for device_id in ids}
        node_id = facts.node_id(number)
        self.measured_on = {known for known in self.measured_on if known[0].node_id != node_id or known[:2] in same}
        self.told |= {facts.key(number, device_id): None for device_id in ids}
        slices = (HeldSlice(facts.CPU, facts.DIGEST, variant, LayerRange(0, 1), held, 0),) if held else ()
        if held:  # it may be taken as it is
            brought = cmd.Assign(facts.key(number), held, facts.DIGEST, variant, LayerRange(0, 1), "it was there")
            self.told[brought.device] = brought
            self.loaded.add((brought.device, held))
        self.tell(ev.NodeJoined(facts.node_id(number), tuple(specs), slices))
        if held and self.told[brought.device] is brought and not self.is_ready(brought):
            self.told[brought.device] = None
            self.loaded.discard((brought.device, held))

    def is_ready(self, order: cmd.Assign) -> bool:
        device = self.scheduler.state.devices[order.device]
        return device.state is DeviceState.READY and device.generation == order.generation

    @rule(number=NODES)
    def leave(self, number: int) -> None:
        self.forget(number)
        self.tell(ev.NodeLeft(facts.node_id(number)))

    @precondition(lambda self: any(isinstance(order, cmd.Measure) for order in self.told.values()))
    @rule(data=st.data(), layer_s=st.floats(1e-4, 1))
    def measured(self, data: st.DataObject, layer_s: float) -> None:
        order = data.draw(st.sampled_from([o for o in self.told.values() if isinstance(o, cmd.Measure)]))
        self.say_measured(order, layer_s)

    @precondition(lambda self: any(isinstance(order, cmd.Assign) for order in self.told.values()))
    @rule(data=st.data(), num_kv_tokens=st.integers(0, 300), generations_old=st.sampled_from([0, 1]))
    def ready(self, data: st.DataObject, num_kv_tokens: int, generations_old: int) -> None:
        orders = [order for order in self.told.values() if isinstance(order, cmd.Assign)]
        loading = [order for order in orders if (order.device, order.generation) not in self.loaded]
        order = data.draw(st.sampled_from(loading or orders))
        self.say_ready(order.device, order.generation - generations_old, num_kv_tokens)

    @precondition(lambda self: self.told)
    @rule(data=st.data(), generations_old=st.sampled_from([0, 1]))
    def failed(self, data: st.DataObject, generations_old: int) -> None:
        device = data.draw(st.sampled_from(sorted(self.told)))
        order = self.told[device]
        generation = order.generation - generations_old if isinstance(order, cmd.Assign) else 0
        if order is not None and not generations_old:
            self.told[device] = None
        self.tell(ev.DeviceFailed(device, generation))

    @rule()
    def replan(self) -> None:
        self.tell(ev.Replan())

    @precondition(lambda self: self.loaded)
    @rule(data=st.data(), compute_s=st.floats(0.001, 100.0))
    def slower_than_measured(self, data: st.DataObject, compute_s: float) -> None:
        device, generation = data.draw(st.sampled_from(sorted(self.loaded)))
        self.tell(ev.StepsSeen(device, generation, 100, 150, 1000, compute_s))
        self.tell(ev.DeviceBroke(device))

    @rule(one=NODES, other=NODES, rtt_s=st.floats(0.0, 1.0))
    def links_are_measured(self, one: int, other: int, rtt_s: float) -> None:
        link = LinkSeen(facts.node_id(one), facts.node_id(other), rtt_s, 1e6)
        self.tell(ev.LinksSeen((link,), ((facts.node_id(one), rtt_s),)))

    @rule(number=NODES, generation=st.integers(0, 3), digest=DIGESTS)
    def nonsense(self, number: int, generation: int, digest: str) -> None:
        """News of a device that does not exist."""
        device = DeviceKey(facts.node_id(number), facts.DeviceId("cuda:7"))
        self.tell(ev.SliceReady(device, generation, 100))
        self.tell(ev.DeviceFailed(device, generation))
        self.tell(ev.DeviceMeasured(device, digest, facts.benchmark()))

    @rule(number=SESSIONS, num_tokens=st.integers(1, 300), digest=st.sampled_from([facts.DIGEST, facts.DIGEST, OTHER]))
    def request(self, number: int, num_tokens: int, digest: str) -> None:
        session_id = facts.session_id(number)
        if digest in self.scheduler.state.models and session_id not in self.open:
            self.open.add(session_id)
            self.tell(ev.RequestArrived(session_id, digest, num_tokens))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), avoid=st.sets(NODES, max_size=2))
    def resume(self, data: st.DataObject, avoid: set[int]) -> None:
        session_id = data.draw(st.sampled_from(sorted(self.open)))
        avoided = frozenset(facts.key(number) for number in avoid)
        if facts.DIGEST in self.scheduler.state.models:
            self.tell(ev.RequestArrived(session_id, facts.DIGEST, 50, resumed=True, avoid=avoided))

    @precondition(lambda self: self.scheduler.state.running or self.scheduler.state.kept)
    @rule(data=st.data(), moves=st.booleans(), share=st.integers(1, 3))
    def resume_with_what_is_kept(self, data: st.DataObject, moves: bool, share: int) -> None:
        """Of a chain that was lost or is to be left; some of its devices may hold nothing worth keeping."""
        state = self.scheduler.state
        session_id = data.draw(st.sampled_from(sorted({*state.running, *state.kept})))
        held = state.running.get(session_id) or state.kept[session_id]
        kept = held.devices[::share]
        resumed = ev.RequestArrived(session_id, facts.DIGEST, held.num_tokens, resumed=True, kept=kept)
        if facts.DIGEST in state.models and all(self.is_of(key, facts.DIGEST) for key in held.devices):
            self.tell(ev.MoveWanted(resumed) if moves else resumed)

    def is_of(self, key: DeviceKey, digest: str) -> bool:
        return self.scheduler.state.devices[key].model == digest

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(session_id)
        self.tell(ev.RequestFinished(session_id))

    @rule()
    def finish_what_is_not_there(self) -> None:
        self.tell(ev.RequestFinished(facts.session_id(99)))

    @rule(seconds=st.sampled_from([1.0, 15.0, QUEUE_TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.tell(ev.TimePassed())

    def say_measured(self, order: cmd.Measure, layer_s: float) -> None:
        """An answer that nobody waits for any more (the model is gone) means nothing."""
        device = self.scheduler.state.devices[order.device]
        if device.state is DeviceState.MEASURING and device.measuring == order.manifest_hash:
            self.measured_on.add((order.device, order.variant, order.manifest_hash))
        if self.told[order.device] is order:
            self.told[order.device] = None
        self.tell(ev.DeviceMeasured(order.device, order.manifest_hash, facts.benchmark(layer_s)))

    def say_ready(self, device: DeviceKey, generation: int, num_kv_tokens: int) -> None:
        self.loaded.add((device, generation))
        self.tell(ev.SliceReady(device, generation, num_kv_tokens))

    def forget(self, number: int) -> None:
        self.loaded = {(key, generation) for key, generation in self.loaded if key.node_id != facts.node_id(number)}
        self.told = {key: order for key, order in self.told.items() if key.node_id != facts.node_id(number)}

    # ------------------------------------------------------------ what must hold

    @invariant()
    def scheduler_is_valid(self) -> None:
        self.scheduler.validate()

    @invariant()
    def only_open_requests_are_known(self) -> None:
        state = self.scheduler.state
        assert set(state.waiting) | set(state.running) <= self.open

    @invariant()
    def a_drained_node_holds_only_what_still_runs(self) -> None:
        state = self.scheduler.state
        for key, device in state.devices.items():
            if key.node_id in self.draining and device.layers is not None:
                assert any(key in running.devices for running in state.running.values())

    @invariant()
    def places_in_the_queue_are_whole(self) -> None:
        places = self.scheduler.queue_places()
        assert set(places) == set(self.scheduler.state.waiting)
        for digest in MODELS:
            waiting = [s for s, w in self.scheduler.state.waiting.items() if w.manifest_hash == digest]
            assert sorted(places[s].place for s in waiting) == list(range(1, len(waiting) + 1))

    @invariant()
    def nothing_is_reserved_without_requests(self) -> None:
        state = self.scheduler.state
        if not (state.running or state.kept):
            assert all(d.num_reserved_tokens == d.num_requests == 0 for d in state.devices.values())

    @invariant()
    def no_device_is_given_more_than_it_has(self) -> None:
        """Unless it has lowered its room since: then it is given nothing more until enough has ended."""
        devices = self.scheduler.state.devices
        for key, device in devices.items():
            is_more = device.num_reserved_tokens > self.reserved.get(key, 0)
            assert device.num_free_kv_tokens >= 0 or not (device.num_requests and is_more)
        self.reserved = {key: device.num_reserved_tokens for key, device in devices.items()}

    @invariant()
    def everybody_has_the_memory_for_what_it_holds(self) -> None:
        for device in self.holders():
            assert device.model is not None and device.layers is not None
            problem = problem_with(device.model, device.spec.variant, [device])
            assert fit_of(problem).fits(problem.offers[0], device.layers.start, device.layers.stop)

    @invariant()
    def only_who_holds_something_is_to_give_way(self) -> None:
        assert self.scheduler.state.retiring <= {device.key for device in self.holders()}

    @invariant()
    def devices_are_listed_where_they_belong(self) -> None:
        devices = self.scheduler.state.devices
        for state in DeviceState:
            assert {d.key for d in devices.in_state(state)} == {d.key for d in devices.values() if d.state is state}
        for model in MODELS:
            assert {d.key for d in devices.holding(model)} == {d.key for d in self.holders() if d.model == model}

    @invariant()
    def what_was_told_is_what_is_known(self) -> None:
        for key, device in self.scheduler.state.devices.items():
            order = self.told[key]
            if device.state is DeviceState.MEASURING:
                assert isinstance(order, cmd.Measure)
            if device.state in (DeviceState.ASSIGNED, DeviceState.READY):
                assert isinstance(order, cmd.Assign)
                assert (order.layers, order.generation) == (device.layers, device.generation)
            if device.state is DeviceState.READY:
                assert (key, device.generation) in self.loaded

    @invariant()
    def a_shortfall_is_a_sentence_exactly_when_not_ready(self) -> None:
        for digest in self.scheduler.state.models:
            assert bool(self.scheduler.shortfall(digest)) != self.scheduler.is_ready(digest)

    def holders(self) -> list[Device]:
        return [d for d in self.scheduler.state.devices.values() if d.state in HOLDING]

    def teardown(self) -> None:
        """In quiet times everything that was told is done: the model is served if there is room for it at all."""
        if len(self.scheduler.state.models) > 1:
            self.tell(ev.ModelRemoved(OTHER))
        for node_id in sorted(self.draining):
            self.drain_or_undrain(facts.number_of(node_id), False)
        for _ in range(8):
            self.everybody_does_what_they_were_told()
            self.now_s += 700.0
            self.tell(ev.TimePassed())
        self.everybody_does_what_they_were_told()
        state = self.scheduler.state
        for variant in Variant:
            devices = [d for d in state.devices.values() if d.spec.variant is variant and facts.DIGEST in d.benchmarks]
            problem = problem_with(facts.DIGEST, variant, devices)
            if HoleFiller(problem, fit_of(problem)).simple_lane(range(len(devices))):
                assert self.scheduler.is_ready(facts.DIGEST)


def problem_with(digest: str, variant: Variant, devices: list[Device]) -> Problem:
    offers = tuple(offer_of(device, digest) for device in sorted(devices, key=lambda d: d.key))
    return Problem(model_cost(MODELS[digest], variant), offers, LinkMap())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
