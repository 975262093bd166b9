"""Simulated time: what happens next, and the one way by which the scheduler hears of it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command

Obey = Callable[[Command, ev.Event], None]
"""Carries out a command that came in answer to that event."""


class SchedulerLike(Protocol):
    """What is simulated: anything with the scheduler's door."""

    def handle(self, event: ev.Event, now_s: float) -> Sequence[Command]: ...


class Timeline:
    """An agenda in order of time; what is due at the same time happens in the order it was written down."""

    def __init__(self, scheduler: SchedulerLike) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self.obey: Obey = _nobody
        self._scheduler = scheduler
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_written = 0
        self._news: deque[ev.Event] = deque()
        self._is_telling = False

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """`call(*arguments)` is due so many seconds from now."""
        self.at(self.now_s + delay_s, call, *arguments)

    def at(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        self._num_written += 1
        heapq.heappush(self._agenda, (when_s, self._num_written, call, arguments))

    def run(self, until_s: float, is_over: Callable[[], bool]) -> None:
        """Let time pass until then, or until nobody waits for anything any more."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until_s and not is_over():
            when_s, _, call, arguments = heapq.heappop(agenda)
            self.now_s = max(self.now_s, when_s)
            call(*arguments)

    def tell(self, event: ev.Event) -> None:
        """The scheduler hears it, and all its commands are carried out. What those cause at once is told next."""
        self._news.append(event)
        if self._is_telling:
            return
        self._is_telling = True
        while self._news:
            told = self._news.popleft()
            self.num_events += 1
            for command in self._scheduler.handle(told, self.now_s):
                self.obey(command, told)
        self._is_telling = False


def _nobody(command: Command, event: ev.Event) -> None:
    raise AssertionError(f"nobody carries out {command} after {event}")
