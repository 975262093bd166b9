"""Room that stays reserved for sessions which have lost their chain, and the chains that they get."""

from __future__ import annotations

from coordinator.scheduler import commands as cmd
from coordinator.scheduler.kept import KEEP_S, KeptRoom
from coordinator.scheduler.routing import SMALL_POOL
from coordinator.scheduler.state import Device, DeviceState, Signal, State, Waiting
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, chains, key

SESSION, OTHER = facts.session_id(1), facts.session_id(2)


def room() -> tuple[State, KeptRoom]:
    """Three ready devices and one that is not; whatever is reserved is counted."""
    state = State()
    for number in range(1, 5):
        device_state = DeviceState.READY if number < 4 else DeviceState.FREE
        state.devices[key(number)] = Device(key(number), facts.spec(), state=device_state, num_kv_tokens=100)

    def reserve(device: Device, num_tokens: int) -> None:
        device.num_reserved_tokens += num_tokens

    return state, KeptRoom(state, reserve)


def reserved(state: State) -> list[int]:
    return [device.num_reserved_tokens for device in state.devices.values()]


def test_what_is_kept_is_reserved_at_devices_that_are_there() -> None:
    state, kept = room()
    kept.keep(SESSION, [key(1), key(3), key(4), key(99)], 30)
    assert reserved(state) == [30, 0, 30, 0]
    assert state.kept[SESSION].devices == (key(1), key(3))
    kept.keep(SESSION, [key(2)], 20)
    assert reserved(state) == [0, 20, 0, 0]
    kept.release(SESSION)
    kept.release(SESSION)
    assert reserved(state) == [0] * 4
    assert not state.kept


def test_a_lost_device_keeps_nothing_and_the_others_go_on() -> None:
    state, kept = room()
    kept.keep(SESSION, [key(1), key(2)], 30, until_s=7.0)
    kept.keep(OTHER, [key(1)], 10)
    kept.lost([key(1)])
    assert reserved(state) == [0, 30, 0, 0]
    assert [(k.devices, k.until_s) for k in state.kept.values()] == [((key(2),), 7.0)]


def test_what_is_overdue_is_released() -> None:
    state, kept = room()
    kept.keep(SESSION, [key(1)], 30, until_s=7.0)
    kept.keep(OTHER, [key(2)], 10, until_s=8.0)
    assert kept.overdue(6.9) == []
    assert kept.overdue(7.0) == [SESSION]
    assert reserved(state) == [0, 10, 0, 0]


# ---------------------------------------------------------------- in the dispatcher


def two_halves(room: int = 100) -> ChainPool:
    """Heads 1 and 3, tails 2 and 4; the second ones are twice as slow."""
    pool = ChainPool()
    for number, start, layer_s in ((1, 0, 0.01), (2, 4, 0.01), (3, 0, 0.02), (4, 4, 0.02)):
        pool.hold(number, start, start + 4, layer_s=layer_s, room=room)
    return pool


def resume(pool: ChainPool, number: int, *kept: int, num_tokens: int = 100, num_prompt: int = 0) -> list[cmd.Command]:
    """The session comes back, with KV on these nodes."""
    waiting = Waiting(
        facts.session_id(number),
        pool.model.manifest_hash,
        num_tokens,
        True,
        frozenset(),
        pool.now_s + 120.0,
        num_prompt,
    )
    return pool.checked(pool.dispatcher.arrive(waiting, pool.now_s, [key(n) for n in kept]))


def test_a_stage_that_holds_the_prompt_is_taken_though_another_is_faster() -> None:
    pool = two_halves(room=10_000)
    assert chains(resume(pool, 1, num_tokens=4100, num_prompt=4000)) == [[1, 2]]
    pool.finish(1)
    assert chains(resume(pool, 2, 3, num_tokens=4100, num_prompt=4000)) == [[3, 2]]
    pool.finish(2)
    assert chains(resume(pool, 3, 3, 4, num_tokens=4100, num_prompt=4000)) == [[3, 4]]


def test_its_own_room_counts_for_a_session_and_for_nobody_else() -> None:
    pool = two_halves()
    pool.arrive(1)
    pool.lose(2)
    pool.lose(4)
    assert resume(pool, 1, 1) == []
    pool.lose(3)
    pool.arrive(5)
    pool.hold(6, 4, 8)
    assert chains(pool.pass_time(1.0)) == [[1, 6]]
    assert pool.device(1).num_reserved_tokens == 100


def test_a_lost_chains_room_elsewhere_is_reserved_until_its_session_has_spoken() -> None:
    pool = two_halves()
    assert chains(pool.arrive(1)) == [[1, 2]]
    pool.lose(2)
    assert pool.device(1).num_reserved_tokens == 100
    assert pool.device(1).num_requests == 0
    pool.dispatcher.ended(facts.session_id(1), pool.now_s)
    assert pool.device(1).num_reserved_tokens == 0


def test_a_device_that_holds_something_else_keeps_nothing() -> None:
    pool = two_halves()
    pool.arrive(1)
    pool.lose(2)
    pool.lose(4)
    resume(pool, 1, 1)
    device = pool.device(1)
    device.let_go(Signal.RELEASE)
    pool.dispatcher.changed(device)
    assert device.num_reserved_tokens == 0
    assert not pool.state.kept


def test_nothing_is_kept_for_ever() -> None:
    pool = two_halves()
    pool.arrive(1)
    pool.lose(2)
    pool.lose(4)
    resume(pool, 1, 1)
    assert pool.dispatcher.let_go(pool.now_s + KEEP_S - 0.1) == []
    assert pool.dispatcher.let_go(pool.now_s + KEEP_S) == [cmd.LetGo(facts.session_id(1))]
    assert pool.device(1).num_reserved_tokens == 0


def test_a_running_request_moves_away_from_a_node_that_drains_and_keeps_its_room_where_it_stays() -> None:
    pool = two_halves()
    assert chains(pool.arrive(1)) == [[1, 2]]
    pool.state.draining.add(key(2).node_id)
    assert chains(pool.checked(pool.dispatcher.move(moving(pool, 1), pool.now_s))) == [[1, 4]]
    assert [pool.device(n).num_requests for n in (1, 2, 3, 4)] == [1, 0, 0, 1]


def test_a_running_request_without_another_chain_stays() -> None:
    pool = two_halves()
    pool.arrive(1)
    pool.state.draining.update({key(2).node_id, key(4).node_id})
    assert pool.checked(pool.dispatcher.move(moving(pool, 1), pool.now_s)) == []
    assert pool.state.running[facts.session_id(1)].devices == (key(1), key(2))
    assert pool.dispatcher.move(moving(pool, 9), pool.now_s) == [], "nobody knows it"


def moving(pool: ChainPool, number: int) -> Waiting:
    return Waiting(facts.session_id(number), pool.model.manifest_hash, 100, True, frozenset(), pool.now_s + 120.0)


def test_in_a_large_pool_too_the_survivor_is_found() -> None:
    """Among hundreds of faster ones, which a shortlist would show alone."""
    pool = ChainPool()
    for number in range(1, 2 * SMALL_POOL):
        pool.hold(number, 0 if number % 2 else 4, 4 if number % 2 else 8, room=10_000)
    for number, start in ((501, 0), (502, 4)):
        pool.hold(number, start, start + 4, layer_s=0.012, room=10_000)
    [chain] = chains(resume(pool, 1, 501, num_tokens=4100, num_prompt=4000))
    assert chain[0] == 501
    assert chain[1] != 502
