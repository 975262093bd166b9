"""A device whose disk was full is asked for fewer layers next time."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.disk_limits import BELIEVED_S
from coordinator.scheduler.scheduler import MAX_RETRY_S
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts
from tests.fakes.pool_facts import DIGEST, key
from tests.fakes.scheduler_driver import SchedulerDriver


def assigned(commands: list[cmd.Command]) -> dict[int, LayerRange]:
    return {facts.number_of(c.device.node_id): c.layers for c in commands if isinstance(c, cmd.Assign)}


def fail(pool: SchedulerDriver, max_layers: int | None) -> None:
    """Node 1 has no room on its disk for what it is to load."""
    generation = pool.scheduler.state.devices[key(1)].generation
    pool.tell(ev.DeviceFailed(key(1), generation, max_layers))


def limit(pool: SchedulerDriver) -> int | None:
    return pool.scheduler.state.devices[key(1)].max_layers(DIGEST)


@pytest.fixture
def full(pool: SchedulerDriver) -> SchedulerDriver:
    """Its only node was to load all eight layers, and has room for three."""
    pool.join(1)
    assert len(assigned(pool.measured(key(1)))[1]) == 8
    fail(pool, 3)
    return pool


def test_the_next_slice_fits_and_another_device_holds_the_rest(full: SchedulerDriver) -> None:
    assert assigned(full.pass_time(MAX_RETRY_S)).get(1, LayerRange(0, 1)).stop <= 3
    full.join(2, facts.spec(6))
    full.load(full.measured(key(2)))
    for _ in range(5):
        full.load(full.pass_time(1))
    assert full.scheduler.is_ready(DIGEST)
    device = full.scheduler.state.devices[key(1)]
    assert device.layers is not None
    assert len(device.layers) <= 3


def test_a_device_that_has_room_for_no_layer_stands_by(full: SchedulerDriver) -> None:
    full.scheduler.state.devices[key(1)].disk_layers = {DIGEST: 0}
    assert assigned(full.pass_time(MAX_RETRY_S)) == {}
    full.join(2)
    assert list(assigned(full.measured(key(2)))) == [2]


def test_it_is_asked_for_fewer_layers_each_time_whatever_it_says(pool: SchedulerDriver) -> None:
    pool.join(1)
    pool.measured(key(1))
    fail(pool, 8)
    assert limit(pool) == 7


def test_a_device_that_failed_for_another_reason_has_no_limit(pool: SchedulerDriver) -> None:
    pool.join(1)
    pool.measured(key(1))
    fail(pool, None)
    assert limit(pool) == facts.spec().max_layers


def test_it_is_believed_for_some_hours_or_until_the_node_comes_again(full: SchedulerDriver) -> None:
    full.pass_time(BELIEVED_S - 1)
    assert limit(full) == 3
    full.pass_time(1)
    assert limit(full) == facts.spec().max_layers


def test_a_node_that_comes_again_is_asked_anew(full: SchedulerDriver) -> None:
    full.leave(1)
    full.join(1)
    assert limit(full) == facts.spec().max_layers
    full.pass_time(BELIEVED_S)
