"""What a node keeps for a pool that is away."""

from __future__ import annotations

import pytest

from client import ipc
from client.agent.commands import EndWorker, StartWorker, TellPool
from client.agent.device import Stage
from client.agent.events import KeptTooLong, PoolLost, WorkerDied
from client.agent.holding import held_slices
from protocol import messages as msg
from protocol.pause import PoolDefaults
from protocol.values import HeldSlice, LayerRange
from tests.client.agent.node import Node, node_at
from tests.client.agent.samples import BENCHMARK, CPU, SESSION, assign, measure, model, open_session


def held(node: Node) -> tuple[HeldSlice, ...]:
    return held_slices(node.core.devices.values())


def serving() -> Node:
    """A device that was measured and then loaded layers 0-1."""
    node = node_at(Stage.IDLE)
    node.pool(measure())
    node.manifest()
    node.worker(ipc.LayersMeasured(BENCHMARK))
    node.pool(assign())
    node.worker(ipc.SlicePlanned(model().tensor_names(0, 1)))
    node.downloaded()
    node.worker(ipc.SliceLoaded(1000, 3_000_000, True, has_prefix_cache=True))
    assert node.device().stage is Stage.SERVING
    return node


WHOLE = HeldSlice("cpu", model().digest, CPU.variant, LayerRange(0, 2), 1, 1000, True, BENCHMARK, True)  # type: ignore[arg-type]


def test_a_slice_that_serves_is_told_with_all_that_a_new_coordinator_needs() -> None:
    node = serving()
    assert held(node) == (WHOLE,)
    node.handle(PoolLost())
    assert held(node) == (WHOLE,)
    hello = msg.Hello(4, "a" * 32, "b" * 64, "c" * 128, "1", "node", (CPU,), held=held(node))
    assert msg.decode_node_message(msg.encode_message(hello)) == hello


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SERVING])
def test_nothing_else_is_held(stage: Stage) -> None:
    node = Node()
    if stage is Stage.DEAD:
        node.handle(WorkerDied(CPU.device_id, 1))
    elif stage is not Stage.STARTING:
        node = node_at(stage)
    assert held(node) == ()


def test_sessions_end_with_the_connection_and_new_ones_open_on_the_kept_slice() -> None:
    node = serving()
    node.pool(open_session())
    node.handle(PoolLost())
    assert node.told == [ipc.EndSession(SESSION, 1)]
    node.pool(open_session(epoch=65_537))
    assert [type(message) for message in node.told] == [ipc.StartSession]


def test_another_order_replaces_what_was_kept() -> None:
    node = serving()
    node.handle(PoolLost())
    node.pool(assign(8, 1, 2))
    assert held(node) == ()
    assert [type(message) for message in node.told] == [ipc.PlanSlice]


def test_what_was_loaded_under_other_limits_is_not_claimed() -> None:
    node = serving()
    node.handle(PoolLost())
    node.core.limit(PoolDefaults(max_layers=1))
    assert held(node) == ()
    node.core.limit(PoolDefaults())
    assert held(node) == (WHOLE,)


def test_a_pool_that_stays_away_costs_no_memory_for_ever() -> None:
    node = serving()
    node.handle(PoolLost())
    (end,) = node.handle(KeptTooLong())
    assert isinstance(end, EndWorker)
    node.handle(WorkerDied(CPU.device_id, -9, end.reason))
    assert len(node.of(StartWorker)) == 1
    assert "layers were let go" in node.device().message
    assert held(node) == ()
    assert node.handle(KeptTooLong()) == []


def test_a_worker_that_dies_meanwhile_holds_nothing_and_nobody_is_told_a_lie() -> None:
    node = serving()
    node.handle(PoolLost())
    commands = node.handle(WorkerDied(CPU.device_id, 1))
    assert [type(command) for command in commands] == [TellPool, StartWorker]
    assert held(node) == ()
