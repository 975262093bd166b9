"""Which worker hangs: never one that owes nothing, answers, or does something; every one that does nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client.agent.watchdog import DOUBT_S, LEAST_QUIET_S, LIMITS, LOOK_S, Finding, Owed, Watchdog
from protocol.values import DeviceId

GPU, OTHER = DeviceId("cuda:0"), DeviceId("cuda:1")
Cpu = Callable[[float], float | None]


def stopped(now_s: float) -> float | None:
    return 7.0


def computing(now_s: float) -> float | None:
    return now_s


def nearly_idle(now_s: float) -> float | None:
    return 7.0 + now_s / 1000


def unknown(now_s: float) -> float | None:
    return None


class Machine:
    """A watchdog with one worker (and perhaps another), looked at every second."""

    def __init__(self, owed: Owed = Owed.STEP, *, has_worked: bool = True) -> None:
        self.dog = Watchdog()
        self.dog.begins(GPU)
        self.now_s = 1000.0
        self.owed = owed
        self.answers = False
        self.num_asked = 0
        if has_worked:
            self.dog.heard(GPU, worked=True)

    def look(self, cpu: Cpu, after_s: float = LOOK_S) -> Finding:
        self.now_s += after_s
        found = dict(self.dog.look(lambda _: self.owed, {key: cpu(self.now_s) for key in self.dog.doubted}, self.now_s))
        finding = found.get(GPU, Finding.FINE)
        if finding is Finding.ASK:
            self.num_asked += 1
            if self.answers:
                self.dog.heard(GPU)
        return finding

    def found_after_s(self, cpu: Cpu, limit_s: float = 10_000.0) -> float | None:
        """How long it takes until it is said to hang; None: it never is."""
        began_s = self.now_s
        while self.now_s < began_s + limit_s:
            if self.look(cpu) is Finding.HANGS:
                return self.now_s - began_s
        return None


def test_a_worker_that_stops_in_its_work_is_found_within_seconds_after_it_was_asked() -> None:
    machine = Machine()
    found_s = machine.found_after_s(stopped)
    assert found_s is not None
    assert found_s <= DOUBT_S + LEAST_QUIET_S + 3 * LOOK_S
    assert machine.num_asked == 1


def test_a_worker_that_owes_nothing_is_never_found_nor_asked() -> None:
    machine = Machine(Owed.NOTHING)
    assert machine.found_after_s(stopped) is None
    assert machine.num_asked == 0


def test_a_worker_that_answers_when_it_is_asked_is_never_found() -> None:
    machine = Machine()
    machine.answers = True
    assert machine.found_after_s(stopped) is None
    assert machine.num_asked > 1


@pytest.mark.parametrize("owed", LIMITS)
@pytest.mark.parametrize("cpu", [computing, unknown])
def test_a_worker_that_is_busy_or_cannot_be_seen_has_much_longer(owed: Owed, cpu: Cpu) -> None:
    found_s = Machine(owed).found_after_s(cpu)
    assert found_s is not None
    assert LIMITS[owed].silent_s <= found_s <= LIMITS[owed].silent_s + 3 * LOOK_S


def test_a_lock_that_is_waited_for_is_no_work() -> None:
    assert Machine().found_after_s(nearly_idle) == Machine().found_after_s(stopped)


@pytest.mark.parametrize("owed", [Owed.FIRST_STEP, Owed.COMMAND])
def test_first_rows_and_commands_have_longer_even_if_nothing_is_computed(owed: Owed) -> None:
    found_s = Machine(owed, has_worked=False).found_after_s(stopped)
    assert found_s is not None
    assert found_s >= LIMITS[owed].quiet_s


def test_a_cold_compilation_of_ten_minutes_in_a_child_is_waited_for() -> None:
    machine = Machine(Owed.FIRST_STEP, has_worked=False)
    assert machine.found_after_s(computing, limit_s=600.0) is None


def test_who_once_took_long_may_do_so_again() -> None:
    machine = Machine()
    assert machine.found_after_s(computing, limit_s=9.0) is None
    machine.dog.heard(GPU, worked=True)
    found_s = machine.found_after_s(stopped)
    assert found_s is not None
    assert found_s >= 4 * 8


def test_patience_that_was_learnt_has_an_end_and_is_forgotten_with_the_layers() -> None:
    machine = Machine()
    assert machine.found_after_s(computing, limit_s=250.0) is None
    machine.dog.heard(GPU, worked=True)
    found_s = machine.found_after_s(stopped)
    assert found_s is not None
    assert found_s <= LIMITS[Owed.STEP].quiet_s + DOUBT_S + 3 * LOOK_S
    machine.dog.begins(GPU)
    assert not machine.dog.has_worked(GPU)
    machine.dog.heard(GPU, worked=True)
    assert (machine.found_after_s(stopped) or 99.0) <= DOUBT_S + LEAST_QUIET_S + 3 * LOOK_S


@pytest.mark.parametrize("slept_s", [30.0, 8 * 3600.0])
def test_a_machine_that_slept_has_lost_one_look(slept_s: float) -> None:
    machine = Machine()
    machine.look(stopped)
    assert machine.look(stopped, slept_s) is Finding.FINE
    found_s = machine.found_after_s(stopped)
    assert found_s is not None
    assert found_s >= LEAST_QUIET_S - 2 * LOOK_S


def test_an_agent_that_is_late_itself_needs_as_many_looks() -> None:
    machine, looks = Machine(), 0
    while machine.look(stopped, 20 * LOOK_S) is not Finding.HANGS:
        looks += 1
    assert looks >= LEAST_QUIET_S / (2 * LOOK_S)


def test_a_clock_that_goes_back_counts_for_nothing() -> None:
    machine = Machine()
    for _ in range(100):
        assert machine.look(stopped, -1.0) is Finding.FINE


def test_what_becomes_owed_now_is_waited_for_from_now_on() -> None:
    machine = Machine(Owed.NOTHING)
    assert machine.found_after_s(stopped, 500.0) is None
    machine.owed = Owed.STEP
    assert machine.look(stopped) is Finding.FINE
    assert (machine.found_after_s(stopped) or 0.0) >= LEAST_QUIET_S


def test_one_worker_that_hangs_says_nothing_about_the_other() -> None:
    machine = Machine()
    machine.dog.begins(OTHER)
    owed = {GPU: Owed.STEP, OTHER: Owed.NOTHING}
    found = set()
    for _ in range(60):
        machine.now_s += LOOK_S
        used = {key: stopped(machine.now_s) for key in machine.dog.doubted}
        found |= {key for key, what in machine.dog.look(owed.__getitem__, used, machine.now_s) if what is Finding.HANGS}
    assert found == {GPU}
    machine.dog.heard(DeviceId("cpu"), worked=True)
    assert not machine.dog.has_worked(DeviceId("cpu"))


def test_its_silence_is_told_while_it_owes_a_step() -> None:
    watchdog = Watchdog()
    watchdog.begins(GPU)
    for owed, told in ((Owed.NOTHING, None), (Owed.FIRST_STEP, None), (Owed.COMMAND, None), (Owed.STEP, 3 * LOOK_S)):
        for at_s in range(4):
            watchdog.look(lambda _, owed=owed: owed, {}, at_s * LOOK_S)  # type: ignore[misc]
        assert watchdog.silent_s(GPU) == told
    watchdog.heard(GPU)
    assert watchdog.silent_s(GPU) == 0.0
    assert watchdog.silent_s(OTHER) is None
