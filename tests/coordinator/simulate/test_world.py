"""True physics against closed forms, and against what more load must do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.cost import Speed, response_s
from coordinator.scheduler.state import IDLE, DeviceKey, Load
from coordinator.simulate import world
from coordinator.simulate.geography import Site
from coordinator.simulate.hardware import CLASSES, Calibration, device_spec, true_speed
from coordinator.simulate.models import MODELS
from coordinator.simulate.world import SimDevice, SimNode, SimSession
from protocol.values import DeviceId, LayerRange, NodeId, SessionId

MODEL = MODELS["llama3-8b"]
HASH = MODEL.facts.manifest_hash
SPEED = true_speed(CLASSES["rtx4090-24g"], MODEL, Calibration())
LIMIT = 1e-9


def node(number: int, layers: LayerRange, region: int = 0, up_bytes_per_s: float = 1e6) -> SimNode:
    site = Site(region, 0.003, up_bytes_per_s, 1e8)
    made = SimNode(number, f"{number:032x}", site, is_up=True, up_bytes_per_s=up_bytes_per_s)
    key = DeviceKey(NodeId(made.node_id), DeviceId("gpu:0"))
    made.device = SimDevice(made, key, device_spec(CLASSES["rtx4090-24g"]), {HASH: SPEED})
    made.device.hold(1, MODEL, layers)
    return made


def two_nodes() -> tuple[SimDevice, ...]:
    return node(0, LayerRange(0, 16)).device, node(1, LayerRange(16, 32), 1).device


def session(number: int, chain: tuple[SimDevice, ...]) -> SimSession:
    made = SimSession(SessionId(str(number)), MODEL, "", 100, 100, 1000, 0.0)
    world.enter(made, chain, 0.0)
    return made


def decoding(chain: tuple[SimDevice, ...], num: int, rounds: int = 30) -> list[float]:
    """Paces of so many sessions on one chain after some segments each."""
    sessions = [session(i, chain) for i in range(num)]
    paces = [0.0] * num
    for _ in range(rounds):
        paces = [world.decode_segment(one, 16) for one in sessions]
    return paces


def test_an_idle_stages_time_is_the_cost_models() -> None:
    device = node(0, LayerRange(0, 32)).device
    assert decoding((device,), 1)[0] == pytest.approx(response_s(SPEED, 32.0, IDLE, last=True))


def test_an_idle_chains_time_is_its_stages_hops_and_rows_on_the_uplink() -> None:
    chain = two_nodes()
    stages_s = response_s(SPEED, 16.0, IDLE, last=False) + response_s(SPEED, 16.0, IDLE, last=True)
    hop_s = world.link_delay_s(chain[0].node, chain[1].node)
    row_s = 4096 * 2 / 1e6
    assert decoding(chain, 1)[0] == pytest.approx(stages_s + 2 * hop_s + row_s)


def test_sessions_that_share_one_stage_step_together() -> None:
    """They wait for nobody but each other's rows: fixed time once, a row's time for each."""
    device = node(0, LayerRange(0, 32)).device
    for pace in decoding((device,), 8, rounds=200):
        assert pace == pytest.approx(device.fixed_s + 8 * device.row_s, rel=0.05)


def test_a_loaded_stage_takes_about_what_the_cost_model_says_when_most_of_the_trip_is_elsewhere() -> None:
    device = node(0, LayerRange(0, 16)).device
    device.num_rows, device.rows_per_s = 50, 60.0
    far = node(1, LayerRange(16, 32), 2).device
    probe = session(0, (device, far))
    pace = world.decode_segment(probe, 16)
    others_s = probe.delay_s + 4096 * 2 / 1e6 + response_s(SPEED, 16.0, IDLE, last=True)
    expected_s = response_s(SPEED, 16.0, Load(60.0), last=False)
    assert pace - others_s == pytest.approx(expected_s, rel=0.12)


def test_work_done_is_counted_once_however_many_rows_a_step_has() -> None:
    device = node(0, LayerRange(0, 32)).device
    sessions = [session(i, (device,)) for i in range(4)]
    for _ in range(100):
        for one in sessions:
            world.decode_segment(one, 16)
    device.seen_rows = device.seen_steps = device.seen_s = 0.0
    paces = [world.decode_segment(one, 16) for one in sessions]
    assert device.seen_rows == 64
    assert device.seen_steps == pytest.approx(64 / 4, rel=0.05)
    assert device.seen_s == pytest.approx(16 * paces[0], rel=0.1)


@given(st.integers(1, 40))
def test_more_sessions_on_a_chain_never_make_it_faster(num: int) -> None:
    fewer, more = (sum(decoding(two_nodes(), n, 20)) / n for n in (num, num + 1))
    assert more >= fewer * (1 - 1e-6)


@given(st.integers(1, 40))
def test_no_step_has_more_rows_than_there_are_sessions(num: int) -> None:
    device = node(0, LayerRange(0, 32)).device
    assert max(decoding((device,), num, 20)) <= 1.5 * (device.fixed_s + num * device.row_s) + LIMIT


def test_whoever_leaves_takes_all_load_with_him() -> None:
    chain = two_nodes()
    sessions = [session(i, chain) for i in range(5)]
    for one in sessions[:3]:
        world.decode_segment(one, 16)
    for one in sessions[3:]:
        world.prefill_segment(one, 700, 512)
    assert chain[0].num_reserved_tokens == 5000
    for one in sessions:
        world.leave(one)
    for device in chain:
        assert (device.rows_per_s, device.num_rows, device.prompt_tokens_per_s, device.num_prefills) == (0, 0, 0, 0)
        assert device.num_reserved_tokens == 0
        assert (device.node.load, device.node.prompt_load, device.node.num_users) == (0, 0, 0)
        assert not device.node.sessions


def test_a_slow_uplink_bounds_prompts() -> None:
    chain = two_nodes()
    one = session(0, chain)
    took_s = world.prefill_segment(one, 1000, 1000)
    assert took_s >= 1000 * 4096 * 2 / 1e6
    world.stop_work(one)
    chain[0].node.up_bytes_per_s = 1e9
    assert world.prefill_segment(one, 1000, 1000) < took_s / 10


def test_two_prompts_share_and_each_takes_up_to_twice_as_long() -> None:
    chain = two_nodes()
    alone, other = session(0, chain), session(1, chain)
    alone_s = world.prefill_segment(alone, 2048, 512)
    for _ in range(10):
        shared_s = world.prefill_segment(other, 2048, 512)
        world.prefill_segment(alone, 2048, 512)
    assert alone_s * 1.5 < shared_s < alone_s * 2.1


def test_prompts_make_decode_slower_but_never_by_more_than_a_chunk_a_step() -> None:
    device = node(0, LayerRange(0, 32)).device
    reader, writer = session(0, (device,)), session(1, (device,))
    alone_s = world.decode_segment(reader, 16)
    world.prefill_segment(writer, 4096, 1024)
    slower_s = world.decode_segment(reader, 16)
    assert alone_s < slower_s <= alone_s + 512 * device.prompt_s + LIMIT


def test_a_slowed_device_takes_so_many_times_as_long() -> None:
    device = node(0, LayerRange(0, 32)).device
    before_s = decoding((device,), 1)[0]
    device.slowdown = 3.0
    device.retime()
    other = SimSession(SessionId("x"), MODEL, "", 1, 1, 1, 0.0)
    device.num_rows, device.rows_per_s = 0, 0.0
    world.enter(other, (device,), 0.0)
    assert world.decode_segment(other, 1) == pytest.approx(3 * before_s)


def test_stages_on_one_node_need_no_uplink() -> None:
    first = node(0, LayerRange(0, 16))
    second = SimDevice(first, DeviceKey(NodeId(first.node_id), DeviceId("gpu:1")), first.device.spec, {HASH: SPEED})
    second.hold(1, MODEL, LayerRange(16, 32))
    one = session(0, (first.device, second))
    assert one.senders == ()
    assert one.delay_s == 0.0


def test_the_speed_is_of_the_whole_slice() -> None:
    device = node(0, LayerRange(0, 16)).device
    assert device.fixed_s == pytest.approx(16 * SPEED.step_s)
    assert isinstance(device.speeds[HASH], Speed)
