"""Which processes are ours, and what the others are called. Blocking; called off the event loop."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psutil

from client.agent.policy import program_key

MAX_NAME_CHARACTERS = 32
MAX_REMEMBERED = 512
NUM_LOOKS_KEPT = 15


@dataclass(frozen=True, slots=True)
class _Known:
    process: psutil.Process
    is_own: bool
    name: str


class Programs:
    """Processes by their ids. Ours are `root_pid` (the agent) and everything that it started, also just after its end:
    the driver still lists what a killed worker did last."""

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid
        self._known: dict[int, _Known] = {}

    def remember(self, worker_pids: Collection[int]) -> None:
        """Our workers, so that they are still known as ours when they have ended."""
        for pid in worker_pids:
            if pid not in self._known:
                self._find(pid)

    def is_own(self, pid: int) -> bool:
        known = self._find(pid)
        return known is not None and known.is_own

    def is_visible(self, pid: int) -> bool:
        """False for a process that has ended or is outside of our container: nobody knows whose it is."""
        return self._find(pid) is not None

    def name(self, pid: int) -> str:
        """For people; empty if it has none that we may know."""
        known = self._find(pid)
        return known.name if known is not None else ""

    def _find(self, pid: int) -> _Known | None:
        known = self._known.get(pid)
        if known is not None and known.process.is_running():  # compares the time of its start: ids are used again
            return known
        try:
            process = psutil.Process(pid)
            found = _Known(process, self._is_descendant(process), _name_of(process))
        except (psutil.Error, OSError, ValueError):  # ValueError: an id that no process can have
            return known if known is not None and known.is_own else None
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[pid] = found
        return found

    def _is_descendant(self, process: psutil.Process) -> bool:
        return process.pid == self._root_pid or any(parent.pid == self._root_pid for parent in process.parents())


def _name_of(process: psutil.Process) -> str:
    try:
        name = process.name()
    except psutil.AccessDenied:
        return ""
    return "".join(char for char in name if char.isprintable()).strip()[:MAX_NAME_CHARACTERS]


class RunningPrograms:
    """Names of what runs. A process becomes another program soon after its start, if ever: an old one's name is read
    again at every NUM_LOOKS_KEPT-th look only, as reading all of a desktop's is what costs most of our watching."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, int]] = {}
        """By process id: its `program_key`, and how often it was seen."""

    def find(self, chosen: Collection[str]) -> frozenset[str]:
        """Which of the chosen ones (`program_key`) run now."""
        self._seen = {pid: self._see(pid) for pid in psutil.pids()}
        return frozenset(chosen) & {key for key, _ in self._seen.values()}

    def _see(self, pid: int) -> tuple[str, int]:
        key, num_looks = self._seen.get(pid, ("", 0))
        is_due = num_looks < NUM_LOOKS_KEPT or num_looks % NUM_LOOKS_KEPT == pid % NUM_LOOKS_KEPT
        return (_key_of(pid) if is_due else key), num_looks + 1


def _key_of(pid: int) -> str:
    try:
        return program_key(psutil.Process(pid).name())
    except (psutil.Error, OSError):  # it has ended, or is not ours to know
        return ""
