"""`python -m benchmarks.claims.coordinator_with_policy POLICY LOG WORDS...`: `decentllm-coordinator serve WORDS...`.

The same program with another scheduler in it: one that has the named policy, notes what happens in LOG, and plans
everything anew on SIGUSR1, so that every policy begins with its own plan for all nodes and not with the order in which
they happened to join.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import coordinator.app
from benchmarks.claims.policies import policy_named
from benchmarks.claims.watching import Watch
from coordinator.__main__ import main as coordinator_main
from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.scheduler import Scheduler

NUM_OWN_WORDS = 2


class WatchedScheduler(Scheduler):
    """Decides as its policy does."""

    def __init__(self, policy: Policy, watch: Watch) -> None:
        super().__init__(policy=policy)
        self._watch = watch
        self._is_replan_wanted = False

    def want_replan(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: the hub tells the scheduler of time twice a second."""
        self._is_replan_wanted = True

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        commands = self._timed(event, now_s)
        if self._is_replan_wanted and isinstance(event, ev.TimePassed):
            self._is_replan_wanted = False
            commands = [*commands, *self._timed(ev.Replan(), now_s)]
        return commands

    def _timed(self, event: ev.Event, now_s: float) -> list[Command]:
        began_s = time.perf_counter()
        commands = super().handle(event, now_s)
        self._watch.note(event, commands, time.perf_counter() - began_s)
        return commands


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name, log = words[:NUM_OWN_WORDS]
    with Watch.open(Path(log)) as watch:
        scheduler = WatchedScheduler(policy_named(name), watch)
        signal.signal(signal.SIGUSR1, scheduler.want_replan)
        coordinator.app.build_pool = functools.partial(coordinator.app.build_pool, scheduler=scheduler)
        return coordinator_main(["serve", *words[NUM_OWN_WORDS:]])


if __name__ == "__main__":
    sys.exit(main())
