"""Which processes are ours, also just after their end, and what the others are called."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest

from client.agent import programs as programs_module
from client.agent.programs import NUM_LOOKS_KEPT, Programs, RunningPrograms

NO_PROCESS = 2**22 + 1
"""Above Linux's largest process id."""
SLEEP = "import time; time.sleep(600)"
SLEEP_WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(); {SLEEP}"


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """A Python process that runs this code, ended with its children at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        return started[-1]

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_what_the_agent_started_is_ours_down_to_the_grandchildren(start: Callable) -> None:
    process = start(SLEEP_WITH_CHILD)
    process.stdout.readline()
    (grandchild,) = psutil.Process(process.pid).children()
    programs = Programs(os.getpid())
    assert all(programs.is_own(pid) for pid in (os.getpid(), process.pid, grandchild.pid))
    assert not programs.is_own(os.getppid())


def test_others_have_names_and_are_not_ours(start: Callable) -> None:
    process = start(SLEEP)
    programs = Programs(process.pid)
    assert not programs.is_own(os.getpid())
    assert programs.is_visible(os.getpid())
    assert programs.name(os.getpid()) == psutil.Process().name()[:32]


@pytest.mark.parametrize("pid", [NO_PROCESS, -1])
def test_a_process_that_is_not_there_is_neither_visible_nor_ours_nor_named(pid: int) -> None:
    programs = Programs(os.getpid())
    assert not programs.is_visible(pid)
    assert not programs.is_own(pid)
    assert programs.name(pid) == ""


def test_a_worker_that_has_ended_is_still_ours(start: Callable) -> None:
    process = start(SLEEP)
    programs = Programs(os.getpid())
    programs.remember([process.pid])
    end(process)
    assert programs.is_own(process.pid)
    assert programs.is_visible(process.pid)


def test_another_process_that_has_ended_is_not_visible_any_more(start: Callable) -> None:
    process, root = start(SLEEP), start(SLEEP)
    programs = Programs(root.pid)
    assert programs.is_visible(process.pid)
    end(process)
    assert not programs.is_visible(process.pid)


def test_an_id_that_is_used_again_is_another_process(start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    root = start(SLEEP)
    programs = Programs(os.getpid())
    programs.remember([root.pid])
    assert programs.is_own(root.pid)
    monkeypatch.setattr(psutil.Process, "is_running", lambda self: False)
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [])
    assert not programs.is_own(root.pid)


def test_a_name_that_we_may_not_know_is_empty_and_odd_ones_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> str:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "name", denied)
    assert Programs(1).name(os.getpid()) == ""
    monkeypatch.setattr(psutil.Process, "name", lambda self: " a\x1b[31m\n" + "x" * 100)
    assert Programs(1).name(os.getpid()) == "a[31m" + "x" * 27


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "MAX_REMEMBERED", 2)
    programs = Programs(os.getpid())
    for pid in (os.getpid(), os.getppid(), 1):
        programs.name(pid)
    assert len(programs._known) <= 2


# ---------------------------------------------------------------- chosen programs


class Table:
    """Processes as psutil has them; `read` are those whose names were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[int, str | Exception] = {}
        self.read: list[int] = []
        monkeypatch.setattr(psutil, "pids", lambda: list(self.names))
        monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(name=lambda: self._name(pid)))

    def _name(self, pid: int) -> str:
        self.read.append(pid)
        name = self.names[pid]
        if isinstance(name, Exception):
            raise name
        return name


def test_of_the_chosen_programs_those_that_run_are_found() -> None:
    own = psutil.Process().name().lower().removesuffix(".exe")
    assert RunningPrograms().find({own, "no-such-program"}) == {own}
    assert RunningPrograms().find(set()) == frozenset()


def test_programs_that_start_and_end_are_noticed_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    table, programs = Table(monkeypatch), RunningPrograms()
    table.names = {7: "bash", 8: "Steam.exe"}
    assert programs.find({"steam", "obs"}) == {"steam"}
    table.names = {7: "bash", 9: "obs"}
    assert programs.find({"steam", "obs"}) == {"obs"}


def test_a_launcher_that_becomes_the_game_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    table, programs = Table(monkeypatch), RunningPrograms()
    table.names = {7: "launcher"}
    assert not programs.find({"game"})
    table.names = {7: "game"}
    assert programs.find({"game"}) == {"game"}


def test_old_processes_are_read_seldom_and_not_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table, programs = Table(monkeypatch), RunningPrograms()
    table.names = dict.fromkeys(range(1, 61), "old")
    for _ in range(NUM_LOOKS_KEPT):
        programs.find({"new"})
    table.names[30] = "new"
    table.read.clear()
    found = [programs.find({"new"}) for _ in range(NUM_LOOKS_KEPT)]
    assert sorted(table.read) == sorted(table.names)
    assert max(table.read.count(pid) for pid in table.names) == 1
    assert found[-1] == {"new"}


def test_a_process_whose_name_cannot_be_read_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    table, programs = Table(monkeypatch), RunningPrograms()
    table.names = {7: psutil.NoSuchProcess(7), 8: psutil.AccessDenied(8), 9: OSError(), 10: "obs"}
    assert programs.find({"obs", ""}) >= {"obs"}
