"""A device that says nothing about what it was told to do is given up; one that is only slow never is."""

from __future__ import annotations

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.deadlines import DOWNLOAD_LIMIT_S, LOAD_LIMIT_S, MEASURE_LIMIT_S
from coordinator.scheduler.scheduler import Scheduler
from coordinator.scheduler.state import DeviceKey, DeviceState
from protocol.values import DeviceId, NodeId
from tests.fakes import pool_facts as facts

TICK_S = 1.0
MB = 2**20


class Pool:
    """A scheduler on whose devices nothing happens but what a test says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.scheduler = Scheduler()
        self.tell(ev.ModelAdded(facts.model()))

    def tell(self, event: ev.Event) -> list[cmd.Command]:
        commands = self.scheduler.handle(event, self.now_s)
        self.scheduler.validate()
        return commands

    def join(self, number: int) -> DeviceKey:
        self.tell(ev.NodeJoined(facts.node_id(number), (facts.spec(),)))
        return facts.key(number)

    def assigned(self, number: int) -> DeviceKey:
        """It joins, has measured, and is to load something."""
        key = self.join(number)
        self.tell(ev.DeviceMeasured(key, facts.DIGEST, facts.benchmark()))
        assert self.state(key) is DeviceState.ASSIGNED
        return key

    def wait(self, wait_s: float) -> list[cmd.Command]:
        said: list[cmd.Command] = []
        until_s = self.now_s + wait_s
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + TICK_S)
            said += self.tell(ev.TimePassed())
        return said

    def progress(self, key: DeviceKey, num_bytes: int, *, loading: bool = False) -> None:
        generation = self.scheduler.state.devices[key].generation
        self.tell(ev.SliceProgress(key, generation, loading, num_bytes, 1000 * MB))

    def state(self, key: DeviceKey) -> DeviceState:
        return self.scheduler.state.devices[key].state


def given_up(commands: list[cmd.Command]) -> list[cmd.GiveUp]:
    return [command for command in commands if isinstance(command, cmd.GiveUp)]


def test_a_device_that_hangs_while_it_measures_is_given_up() -> None:
    pool = Pool()
    key = pool.join(1)
    assert not given_up(pool.wait(MEASURE_LIMIT_S - TICK_S))
    [command] = given_up(pool.wait(TICK_S))
    assert (command.device, command.generation) == (key, 0)
    assert pool.state(key) is DeviceState.FAILED


def test_a_download_that_makes_no_progress_is_given_up_and_another_device_gets_its_layers() -> None:
    pool = Pool()
    stuck = pool.assigned(1)
    layers = pool.scheduler.state.devices[stuck].layers
    pool.progress(stuck, MB)
    pool.wait(DOWNLOAD_LIMIT_S / 2)
    other = pool.assigned(2)
    pool.progress(stuck, MB)
    said = pool.wait(DOWNLOAD_LIMIT_S / 2)
    assert [(c.device, c.generation) for c in given_up(said)] == [(stuck, 1)]
    assert pool.scheduler.state.devices[other].layers == layers


def test_a_slow_but_progressing_download_is_never_given_up() -> None:
    pool = Pool()
    key = pool.assigned(1)
    for chunk in range(1, 100):
        assert not given_up(pool.wait(0.9 * DOWNLOAD_LIMIT_S))
        pool.progress(key, chunk * MB)
    assert pool.state(key) is DeviceState.ASSIGNED


def test_loading_may_take_longer_in_silence_than_a_download() -> None:
    pool = Pool()
    key = pool.assigned(1)
    pool.progress(key, 0, loading=True)
    assert not given_up(pool.wait(LOAD_LIMIT_S - TICK_S))
    assert given_up(pool.wait(TICK_S))


def test_progress_of_an_older_order_counts_for_nothing() -> None:
    pool = Pool()
    key = pool.assigned(1)
    pool.wait(DOWNLOAD_LIMIT_S / 2)
    pool.tell(ev.SliceProgress(key, 99, False, MB, 2 * MB))
    assert given_up(pool.wait(DOWNLOAD_LIMIT_S / 2))


def test_numbers_that_go_up_and_down_are_no_progress() -> None:
    pool = Pool()
    key = pool.assigned(1)
    said: list[cmd.Command] = []
    for turn in range(4):
        pool.progress(key, (turn % 2) * MB)
        said += pool.wait(DOWNLOAD_LIMIT_S / 3)
    assert given_up(said)


def test_a_device_that_is_given_up_is_tried_again_after_a_while_and_later_each_time() -> None:
    pool = Pool()
    key = pool.join(1)
    pool.wait(MEASURE_LIMIT_S)
    first_s = pool.scheduler.state.devices[key].retry_at_s - pool.now_s
    said = pool.wait(first_s)
    assert any(isinstance(command, cmd.Measure) for command in said)
    pool.wait(MEASURE_LIMIT_S)
    assert pool.state(key) is DeviceState.FAILED
    assert pool.scheduler.state.devices[key].retry_at_s - pool.now_s > first_s


def test_a_measurement_that_comes_after_it_was_given_up_is_taken() -> None:
    pool = Pool()
    key = pool.join(1)
    pool.wait(MEASURE_LIMIT_S)
    assert pool.scheduler.is_current(key, 0)
    pool.tell(ev.DeviceMeasured(key, facts.DIGEST, facts.benchmark()))
    assert pool.state(key) is DeviceState.ASSIGNED


def test_a_device_that_was_given_up_may_say_that_it_failed() -> None:
    pool = Pool()
    key = pool.join(1)
    pool.wait(MEASURE_LIMIT_S)
    pool.tell(ev.DeviceFailed(key, 0))
    assert pool.state(key) is DeviceState.FAILED
    assert not pool.scheduler.is_current(key, 0)


def test_time_that_the_coordinator_missed_counts_against_nobody() -> None:
    pool = Pool()
    pool.join(1)
    pool.wait(MEASURE_LIMIT_S / 2)
    pool.now_s += 10 * MEASURE_LIMIT_S
    assert not given_up(pool.tell(ev.TimePassed()))
    assert given_up(pool.wait(MEASURE_LIMIT_S))


def test_devices_of_one_node_that_take_turns_are_not_given_up_while_one_of_them_gets_on() -> None:
    pool = Pool()
    specs = (facts.spec(), facts.spec(device_id=DeviceId("second")))
    node_id: NodeId = facts.node_id(1)
    pool.tell(ev.NodeJoined(node_id, specs))
    keys = [DeviceKey(node_id, spec.device_id) for spec in specs]
    for key in keys:
        pool.tell(ev.DeviceMeasured(key, facts.DIGEST, facts.benchmark()))
    for chunk in range(1, 6):
        assert not given_up(pool.wait(0.9 * DOWNLOAD_LIMIT_S))
        pool.progress(keys[0], chunk * MB)
    assert {pool.state(key) for key in keys} == {DeviceState.ASSIGNED}


def test_a_download_shows_how_fast_the_line_is_and_what_is_still_to_come() -> None:
    pool = Pool()
    key = pool.assigned(1)
    pool.progress(key, 100 * MB)
    pool.wait(10.0)
    pool.progress(key, 300 * MB)
    device = pool.scheduler.state.devices[key]
    assert device.fetch_bytes_per_s == 20 * MB
    assert device.lacking_bytes == 700 * MB
