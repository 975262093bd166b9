"""Chains for requests, and the queue of those that have none yet."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import Bound, Workload
from coordinator.scheduler.dispatcher import MAX_TRIES, MAX_WAITING, RETRY_S
from coordinator.scheduler.fair_queue import MAX_PASSED
from coordinator.scheduler.policy import RouteRequest, SchedulerConfig
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.routing import ChainRouter
from coordinator.scheduler.scheduler import QUEUE_TTL_S
from coordinator.scheduler.state import IDLE, DeviceState, Signal, Waiting
from protocol.values import LayerRange, Variant
from tests.fakes import chain_pool as pools
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, FixedWorkloads, chains, refused, started
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver, chain, layers_of, refusal

# ---------------------------------------------------------------- requests


def test_a_request_runs_over_a_complete_chain_in_order(pool: SchedulerDriver) -> None:
    assigned = pool.serve(4, 4)
    [command] = pool.request(1)
    assert isinstance(command, cmd.StartChain)
    assert [stage.layers for stage in command.chain] == [LayerRange(0, 4), LayerRange(4, 8)]
    assert [stage.generation for stage in command.chain] == [1, 1]
    assert {stage.device for stage in command.chain} == {a.device for a in assigned}


def test_requests_spread_over_equal_pipelines(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    assert sorted(node for n in range(6) for node in chain(pool.request(n))) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("stage", ["no node", "measuring", "too small", "loading"])
def test_a_request_to_a_model_that_is_not_ready_is_refused_with_what_it_waits_for(
    pool: SchedulerDriver, stage: str
) -> None:
    words = {"no node": "No node is connected", "measuring": "1 device(s)", "too small": "5 of 8 layers"}
    if stage != "no node":
        pool.join(1, facts.spec(5 if stage == "too small" else 8))
    if stage in ("too small", "loading"):
        pool.measured(key(1))
    refused = refusal(pool.request(1))
    assert refused.code == "model_not_ready"
    assert words.get(stage, "1 device(s)") in refused.message
    assert refused.retry_after_s


def test_a_broken_pipeline_names_the_layers_without_holder(pool: SchedulerDriver) -> None:
    start, stop = layers_of(pool.serve(4, 4))[2]
    pool.leave(2)
    assert f"Layers {start}-{stop - 1}" in refusal(pool.request(1)).message


def test_a_request_larger_than_the_pool_is_refused_for_good(pool: SchedulerDriver) -> None:
    pool.serve(8)
    refused = refusal(pool.request(1, num_tokens=10_001))
    assert (refused.code, refused.retry_after_s) == ("kv_room_exceeded", None)
    assert "10001" in refused.message
    assert "10000" in refused.message


def test_a_session_of_a_model_with_recurrent_states_reserves_room_for_these(pool: SchedulerDriver) -> None:
    pool.add_model(replace(facts.model(), min_session_tokens=4000))
    pool.serve(8)
    assert [len(chain(pool.request(number, num_tokens=100))) for number in (1, 2)] == [1, 1]
    assert pool.scheduler.state.devices[facts.key(1)].num_reserved_tokens == 8000
    assert pool.request(3, num_tokens=100) == []
    pool.finish(1)
    assert refusal(pool.request(4, num_tokens=10_001)).code == "kv_room_exceeded"


def test_the_tightest_stage_decides_how_large_a_request_may_be(pool: SchedulerDriver) -> None:
    pool.join(1, facts.spec(4))
    pool.measured(key(1))
    pool.join(2, facts.spec(4))
    commands = pool.measured(key(2))
    for command, tokens in zip(commands, (500, 300), strict=True):
        pool.ready(command, tokens)  # type: ignore[arg-type]
    assert pool.scheduler.largest_request(DIGEST) == 300
    assert pool.scheduler.largest_request(DIGEST) == 300
    assert len(pool.request(1, num_tokens=300)) == 1


def test_a_device_that_lost_room_is_given_less_and_keeps_what_runs(pool: SchedulerDriver) -> None:
    [assign] = pool.serve(8)
    chain(pool.request(1, num_tokens=6000))
    assert pool.ready(assign, 5000) == []
    assert pool.scheduler.largest_request(DIGEST) == 5000
    assert pool.request(2, num_tokens=100) == []
    assert chain(pool.finish(1)) == [1]
    assert refusal(pool.request(3, num_tokens=6000)).code == "kv_room_exceeded"
    assert chain(pool.request(4, num_tokens=4900)) == [1]


def test_room_does_not_come_back_without_loading_anew(pool: SchedulerDriver) -> None:
    [assign] = pool.serve(8)
    pool.ready(assign, 5000)
    pool.ready(assign, 9000)
    assert pool.scheduler.largest_request(DIGEST) == 5000


def test_a_request_waits_for_room_and_starts_when_another_ends(pool: SchedulerDriver) -> None:
    pool.serve(8)
    chain(pool.request(1, num_tokens=6000))
    assert pool.request(2, num_tokens=6000) == []
    assert chain(pool.finish(1)) == [1]


def test_a_small_request_passes_one_that_must_wait(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    assert pool.request(2, num_tokens=6000) == []
    assert chain(pool.request(3, num_tokens=100)) == [1]


def test_a_request_gives_up_after_its_time(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    pool.request(2, num_tokens=6000)
    assert pool.pass_time(QUEUE_TTL_S - 1) == []
    refused = refusal(pool.pass_time(1))
    assert (refused.session_id, refused.code, refused.retry_after_s) == (facts.session_id(2), "no_capacity", 10.0)
    assert pool.pass_time(QUEUE_TTL_S) == []


def test_a_place_in_the_queue_counts_those_of_the_same_model(pool: SchedulerDriver) -> None:
    other = facts.model(8, digest="3d" * 32)
    pool.add_model(other)
    for number in (1, 2):
        pool.join(number)
        pool.measured(key(number))
        pool.load(pool.measured(key(number), digest=other.manifest_hash))
    for number, digest in enumerate([DIGEST, other.manifest_hash] * 3):
        pool.request(number, num_tokens=6000, digest=digest)
    places = {number: pool.place(number) for number in range(6)}
    assert {number: place and (place.place, place.num_waiting) for number, place in places.items()} == {
        0: None, 1: None, 2: (1, 2), 3: (1, 2), 4: (2, 2), 5: (2, 2)
    }  # fmt: skip


def test_nobody_knows_how_long_a_queue_takes_before_the_first_answer_has_ended(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(4):
        pool.request(number, num_tokens=6000)
    assert pool.place(3) == QueuePlace(3, 3, None)
    pool.now_s += 20
    pool.finish(0)
    assert pool.place(3) == QueuePlace(2, 2, 40.0)


def test_a_request_that_leaves_the_queue_moves_the_others_up_at_once(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(4):
        pool.request(number, num_tokens=6000)
    pool.finish(1)
    assert pool.place(1) is None
    assert pool.place(3) == QueuePlace(2, 2, None)


def test_a_full_queue_refuses_with_the_time_after_which_to_try_again(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(MAX_WAITING + 1):
        pool.request(number, num_tokens=6000)
    refused = refusal(pool.request(1000, num_tokens=6000))
    assert (refused.code, refused.retry_after_s) == ("queue_full", 60.0)
    assert str(MAX_WAITING) in refused.message
    assert chain(pool.request(1001, num_tokens=100)) == [1], "what can start need not wait"
    pool.now_s += 0.1
    pool.finish(1001)
    refused = refusal(pool.request(1002, num_tokens=6000))
    assert refused.retry_after_s == pytest.approx(2 * 0.1 * (MAX_WAITING + 1)), "two ran so long, one ended"


def test_a_full_queue_refuses_nobody_who_ran_already(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(MAX_WAITING + 1):
        pool.request(number, num_tokens=6000)
    pool.leave(1)
    assert pool.tell(ev.RequestArrived(facts.session_id(0), DIGEST, 6000, resumed=True)) == []
    assert len(pool.scheduler.state.waiting) == MAX_WAITING + 1


def test_a_request_that_ran_already_goes_before_those_that_never_did(pool: SchedulerDriver) -> None:
    pool.serve(8)
    for number in range(3):
        pool.request(number, num_tokens=6000)
    pool.leave(1)
    pool.tell(ev.RequestArrived(facts.session_id(0), DIGEST, 6000, resumed=True))
    assert pool.place(0) == QueuePlace(1, 3, None)
    pool.load(pool.join(1))
    assert set(pool.scheduler.state.running) == {facts.session_id(0)}


def test_a_request_waits_over_a_nodes_loss_and_is_served_by_the_repair(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    pool.leave(1)
    resumed = ev.RequestArrived(facts.session_id(1), DIGEST, 6000, resumed=True, avoid=frozenset({key(1)}))
    assert pool.tell(resumed) == []
    pool.join(2)
    [assign] = pool.measured(key(2))
    assert isinstance(assign, cmd.Assign)
    assert chain(pool.ready(assign)) == [2]


def test_devices_to_avoid_are_used_only_if_there_is_nothing_else(pool: SchedulerDriver) -> None:
    pool.serve(8, 8)
    for number, avoided in enumerate((1, 2), start=1):
        event = ev.RequestArrived(facts.session_id(number), DIGEST, 10, resumed=True, avoid=frozenset({key(avoided)}))
        assert chain(pool.tell(event)) == [3 - avoided]
    both = ev.RequestArrived(facts.session_id(3), DIGEST, 10, resumed=True, avoid=frozenset({key(1), key(2)}))
    assert len(chain(pool.tell(both))) == 1


def test_what_broke_is_not_tried_again_at_once_even_if_there_is_nothing_else(pool: SchedulerDriver) -> None:
    pool.serve(8)
    resumed = ev.RequestArrived(
        facts.session_id(1), DIGEST, 100, resumed=True, avoid=frozenset({key(1)}), return_after_s=2.0
    )
    assert pool.tell(resumed) == []
    assert chain(pool.request(2, num_tokens=5000)) == [1], "nor does it hold others up"
    assert started(pool.pass_time(1.9)) == []
    assert started(pool.pass_time(0.2)) == [1]


def test_a_resumed_request_gives_its_old_reservation_back(pool: SchedulerDriver) -> None:
    pool.serve(8)
    pool.request(1, num_tokens=6000)
    event = ev.RequestArrived(facts.session_id(1), DIGEST, 6000, resumed=True)
    assert chain(pool.tell(event)) == [1]


def test_an_idle_pool_reserves_nothing(pool: SchedulerDriver) -> None:
    pool.serve(4, 4, 8)
    for number in range(6):
        pool.request(number, num_tokens=3000)
    for number in range(6):
        pool.finish(number)
        pool.finish(number)
    assert all(d.num_reserved_tokens == d.num_requests == 0 for d in pool.scheduler.state.devices.values())
    assert not pool.scheduler.state.running
    assert not pool.scheduler.state.waiting


def test_a_device_that_fails_frees_its_requests(pool: SchedulerDriver) -> None:
    [assign] = pool.serve(8)
    pool.request(1)
    pool.tell(ev.DeviceFailed(key(1), assign.generation))
    assert not pool.scheduler.state.running


# ---------------------------------------------------------------- what devices are counted with


def one_chain(room: int = 1000) -> ChainPool:
    pool = ChainPool()
    pool.hold(1, 0, 8, room=room)
    return pool


def test_a_request_is_counted_at_its_devices_while_it_runs_and_not_after() -> None:
    pool = ChainPool(workloads=FixedWorkloads(Workload(num_answer_tokens=40.0)))
    pool.hold(1, 0, 4, layer_s=0.01)
    pool.hold(2, 4, 8, layer_s=0.01)
    pool.arrive(1, 500, num_prompt=100)
    for number in (1, 2):
        device = pool.device(number)
        assert (device.num_requests, device.num_reserved_tokens) == (1, 500)
        assert device.load.rows_per_s == pytest.approx(1 / 0.08, rel=1e-3)
        assert device.load.prompt_tokens_per_s == pytest.approx(100 / (100 * 0.008 + 40 * 0.08), rel=1e-3)
    pool.finish(1)
    assert {device.load for device in pool.state.devices.values()} == {IDLE}


def test_an_answer_is_expected_to_be_no_longer_than_it_may_be() -> None:
    asked: list[RouteRequest] = []

    class Listening(ChainRouter):
        def route(self, request: RouteRequest, *others: object) -> None:
            asked.append(request)

    pool = ChainPool(workloads=FixedWorkloads(Workload(num_answer_tokens=256.0)))
    pool.dispatcher._router = Listening(pool.state)
    pool.arrive(1, 1000, num_prompt=100)
    pool.arrive(2, 150, num_prompt=100)
    assert [asked[0].num_new_tokens, asked[-1].num_new_tokens] == [256, 50]


def test_the_quicker_of_two_variants_is_taken() -> None:
    pool = ChainPool()
    pool.hold(1, 0, 8, layer_s=0.01)
    pool.hold(2, 0, 8, layer_s=0.001, variant=Variant.BFLOAT16)
    assert chains(pool.arrive(1)) == [[2]]


def test_whether_a_request_fits_follows_the_pool() -> None:
    pool = one_chain(room=100)
    model = pool.model.manifest_hash
    assert pool.dispatcher.room.has_chain(model)
    assert (pool.dispatcher.room.fits(model, 100), pool.dispatcher.room.fits(model, 101)) == (True, False)
    pool.hold(2, 0, 4, room=500)
    pool.hold(3, 4, 8, room=300)
    assert pool.dispatcher.room.fits(model, 300)
    assert pool.dispatcher.room.largest_request(model) == 300
    pool.state.draining.add(pools.node(3))
    assert not pool.dispatcher.room.fits(model, 300)
    pool.lose(1)
    assert not pool.dispatcher.room.has_chain(model)


# ---------------------------------------------------------------- the latency bound


def crowded_pool() -> ChainPool:
    config = SchedulerConfig(bound=Bound(tpot_s=0.25))
    pool = ChainPool(config, workloads=FixedWorkloads(Workload(num_answer_tokens=100.0)))
    pool.hold(1, 0, 8, layer_s=0.01, row_s=0.003)
    return pool


def test_where_there_is_room_a_request_starts_however_slow_it_is_forecast_to_be() -> None:
    pool = crowded_pool()
    assert [started(pool.arrive(number)) for number in range(30)] == [[number] for number in range(30)]


def test_a_running_request_does_not_move_to_where_only_load_would_break_the_bound() -> None:
    pool = crowded_pool()
    pool.hold(2, 0, 8, layer_s=0.01, row_s=0.003)
    pool.arrive(0)
    [first] = [pools.number_of(device.key) for device in pool.state.devices.values() if device.num_requests]
    assert elsewhere(pool, 0, first) == [3 - first]
    for number in range(1, 60):
        pool.arrive(number)
    assert elsewhere(pool, 0, first) is None


# ---------------------------------------------------------------- fairness


def test_who_floods_the_pool_makes_another_wait_for_one_answer_only() -> None:
    pool = one_chain()
    for number in range(100):
        pool.arrive(number, 1000, tenant="flood")
    assert pool.arrive(500, 1000, tenant="quiet") == []
    assert started(pool.finish(0)) == [500]


def test_a_full_queue_turns_away_the_newest_of_the_greediest() -> None:
    pool = one_chain()
    pool.arrive(0, 1000)
    for number in range(MAX_WAITING):
        pool.arrive(1 + number, 1000, tenant="flood")
    assert refused(pool.arrive(900, 1000, tenant="quiet")) == {MAX_WAITING: "queue_full"}
    assert facts.session_id(900) in pool.state.waiting
    assert refused(pool.arrive(901, 1000, tenant="flood")) == {901: "queue_full"}
    assert len(pool.state.waiting) == MAX_WAITING


def test_a_small_request_passes_a_large_one_but_not_for_ever() -> None:
    pool = one_chain(room=1000)
    pool.arrive(0, 500)
    assert pool.arrive(1, 1000) == [], "it would need the whole room"
    passed = [number for number in range(2, 60) if started(pool.arrive(number, 10))]
    assert len(passed) == MAX_PASSED
    for number in passed:
        assert started(pool.finish(number)) == []
    assert started(pool.finish(0)) == [1]


def test_one_that_no_room_will_suffice_for_may_be_passed_for_ever() -> None:
    pool = one_chain(room=1000)
    pool.arrive(1, 2000, resumed=True)
    for number in range(2, 3 * MAX_PASSED):
        assert started(pool.arrive(number, 10)) == [number]
        pool.finish(number)


def test_a_full_pool_tries_few_of_those_that_wait() -> None:
    pool = one_chain(room=1000)
    pool.arrive(0, 1000)
    for number in range(1, 200):
        pool.arrive(number, 1000 - number)
    tried = counted_tries(pool)
    pool.pass_time(1.0)
    assert 0 < len(tried) <= MAX_TRIES * len(Variant)


def counted_tries(pool: ChainPool) -> list[RouteRequest]:
    """Every request that the router is asked to route from now on."""
    tried: list[RouteRequest] = []
    route = pool.router.route

    def counted(request: RouteRequest, variant: Variant, now_s: float) -> object:
        tried.append(request)
        return route(request, variant, now_s)

    pool.router.route = counted  # type: ignore[method-assign,assignment]
    return tried


def test_while_nothing_has_ended_only_those_are_tried_who_need_less() -> None:
    pool = one_chain(room=1000)
    pool.arrive(0, 800)
    pool.arrive(1, 500)
    tried = counted_tries(pool)
    assert started(pool.arrive(2, 600)) == []
    assert tried == []
    assert started(pool.arrive(3, 200)) == [3]
    assert tried
    tried.clear()
    pool.pass_time(RETRY_S)
    assert tried, "whatever nobody was told of may have changed"
    assert started(pool.finish(0)) == [1]


# ---------------------------------------------------------------- deadlines


def test_a_request_whose_deadline_is_over_is_refused() -> None:
    pool = one_chain()
    pool.arrive(1, 1000)
    assert pool.arrive(2, 1000, deadline_at_s=5.0) == []
    assert pool.pass_time(4.9) == []
    [command] = pool.pass_time(0.1)
    assert isinstance(command, cmd.RefuseRequest)
    assert (command.code, command.retry_after_s) == ("deadline", None)
    assert not pool.state.waiting


def test_a_deadline_that_surely_cannot_be_met_is_refused_at_once_with_the_time_to_come_back() -> None:
    pool = one_chain()
    pool.arrive(0, 1000)
    pool.now_s = 30.0
    pool.finish(0)
    pool.arrive(1, 1000)
    assert pool.arrive(2, 1000, deadline_at_s=pool.now_s + 20.0) == [], "30 s are expected, but who knows"
    [command] = pool.arrive(3, 1000, deadline_at_s=pool.now_s + 20.0)
    assert isinstance(command, cmd.RefuseRequest)
    assert (command.code, command.retry_after_s) == ("deadline", 60.0)
    assert started(pool.arrive(4, 0, deadline_at_s=pool.now_s + 1.0)) == [4], "what can start need not wait"


# ---------------------------------------------------------------- any order of events


class AnyOrderOfRequests(RuleBasedStateMachine):
    """Requests of three tenants come and go, devices too."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ChainPool(SchedulerConfig(keeps_apart=True), model=facts.model(4))
        self.num_requests = 0

    def check(self, commands: list[cmd.Command]) -> None:
        for command in commands:
            if isinstance(command, cmd.StartChain):
                devices = [self.pool.state.devices[stage.device] for stage in command.chain]
                assert all(device.state is DeviceState.READY for device in devices)
                assert not {device.key.node_id for device in devices} & self.pool.state.draining
                layers = [
                    n for device in devices if device.layers for n in range(device.layers.start, device.layers.stop)
                ]
                assert layers == list(range(4))

    @rule(number=st.integers(1, 6), piece=st.sampled_from([(0, 4), (0, 2), (2, 4), (1, 3)]), room=st.integers(0, 900))
    def hold(self, number: int, piece: tuple[int, int], room: int) -> None:
        self.pool.lose(number)
        self.pool.hold(number, *piece, room=room, layer_s=0.001 * number)
        self.check(self.pool.pass_time(0.0))

    @rule(number=st.integers(1, 6))
    def lose(self, number: int) -> None:
        self.pool.lose(number)

    @precondition(lambda self: self.pool.state.devices)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(list(self.pool.state.devices.values())))
        if device.state is DeviceState.READY:
            self.pool.dispatcher.drop_requests_on([device.key])
            device.move(Signal.FAIL)
            device.model = device.layers = None
            self.pool.router.changed(device)

    @rule(number=st.integers(1, 6), on=st.booleans())
    def drain(self, number: int, on: bool) -> None:
        nodes = self.pool.state.draining
        nodes.add(pools.node(number)) if on else nodes.discard(pools.node(number))

    @rule(number=st.integers(1, 6))
    def breaks(self, number: int) -> None:
        self.pool.dispatcher.broke(pools.key(number), self.pool.now_s)

    @rule(
        tenant=st.sampled_from(["", "a", "b"]), num_tokens=st.integers(1, 500), resumed=st.booleans(),
        deadline_s=st.none() | st.floats(0, 30), avoided=st.integers(1, 6),
    )  # fmt: skip
    def arrive(self, tenant: str, num_tokens: int, resumed: bool, deadline_s: float | None, avoided: int) -> None:
        self.num_requests += 1
        deadline = None if deadline_s is None else self.pool.now_s + deadline_s
        avoid = frozenset({pools.key(avoided)})
        self.check(
            self.pool.arrive(
                self.num_requests,
                num_tokens,
                tenant=tenant,
                resumed=resumed,
                deadline_at_s=deadline,
                avoid=avoid,
                num_prompt=num_tokens // 2,
                affinity=(num_tokens % 3, num_tokens % 7),
            )
        )

    @precondition(lambda self: self.num_requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.check(self.pool.finish(data.draw(st.integers(1, self.num_requests))))

    @rule(seconds=st.floats(0, 40))
    def pass_time(self, seconds: float) -> None:
        self.check(self.pool.pass_time(seconds))

    @invariant()
    def nothing_is_counted_twice_or_forgotten(self) -> None:
        self.pool.dispatcher.validate()

    def teardown(self) -> None:
        for session_id in [*self.pool.state.running, *self.pool.state.waiting, *self.pool.state.kept]:
            self.pool.dispatcher.free(session_id)
        self.pool.dispatcher.validate()
        for device in self.pool.state.devices.values():
            assert (device.num_requests, device.num_reserved_tokens, device.load) == (0, 0, IDLE)


TestAnyOrderOfRequests = AnyOrderOfRequests.TestCase
TestAnyOrderOfRequests.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- elsewhere


def elsewhere(pool: ChainPool, number: int, *avoid: int, num_tokens: int = 100) -> list[int] | None:
    """The chain that the running request would be given away from those."""
    waiting = Waiting(
        facts.session_id(number), DIGEST, num_tokens, True, frozenset(pools.key(n) for n in avoid), pool.now_s + 120.0
    )
    before = [(d.num_requests, d.num_reserved_tokens, d.load) for d in pool.state.devices.values()]
    route = pool.dispatcher.elsewhere(waiting, pool.now_s)
    pool.dispatcher.validate()
    assert before == [(d.num_requests, d.num_reserved_tokens, d.load) for d in pool.state.devices.values()]
    return None if route is None else [pools.number_of(device.key) for device in route.devices]


def test_a_running_request_hears_of_another_chain_without_moving() -> None:
    pool = ChainPool()
    for number in (1, 2):
        pool.hold(number, 0, 8)
    [[at]] = chains(pool.arrive(1))
    assert elsewhere(pool, 1, at) == [3 - at]
    assert pool.device(at).num_requests == 1


def test_there_is_nowhere_else_if_no_other_device_holds_the_layers_or_has_room() -> None:
    pool = ChainPool()
    pool.hold(1, 0, 8)
    pool.arrive(1)
    assert elsewhere(pool, 1, 1) is None
    pool.hold(2, 0, 8, room=50)
    assert elsewhere(pool, 1, 1) is None


def test_what_a_request_has_reserved_itself_is_room_for_it() -> None:
    """Its other stages stay where they are, however full they are with itself."""
    pool = ChainPool()
    pool.hold(1, 0, 4, room=100)
    pool.hold(2, 4, 8, room=100)
    pool.hold(3, 4, 8, layer_s=0.02, room=100)
    assert chains(pool.arrive(1)) == [[1, 2]]
    assert elsewhere(pool, 1, 2) == [1, 3]


def test_a_request_that_does_not_run_has_no_elsewhere() -> None:
    pool = ChainPool()
    pool.hold(1, 0, 8)
    assert elsewhere(pool, 1) is None


def test_a_device_that_hung_is_avoided_though_it_is_three_times_as_fast() -> None:
    pool = ChainPool()
    pool.hold(1, 0, 8, layer_s=0.01)
    pool.hold(2, 0, 8, layer_s=0.03)
    assert pool.route() == [1]
    pool.dispatcher.broke(pools.key(1), pool.now_s, 3.0)
    assert pool.route() == [2]
    pool.now_s += 120.0
    assert pool.route() == [1]
