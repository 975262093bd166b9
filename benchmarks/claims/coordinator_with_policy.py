"""`python -m benchmarks.claims.coordinator_with_policy POLICY LOG WORDS...`: `decentllm-coordinator serve WORDS...`.

The same program with another scheduler in it: one that has the named policy and notes what happens in LOG. On SIGUSR1
it takes the policy that the file beside LOG names (`policy_file`) and plans anew: so every policy begins with
its own plan for all nodes, not with the order in which they happened to join, and many are tried on the same nodes.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import coordinator.app
from benchmarks.claims.policies import policy_named
from benchmarks.claims.watching import Watch
from coordinator.__main__ import main as coordinator_main
from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command
from coordinator.scheduler.dispatcher import Dispatcher
from coordinator.scheduler.planner import Planner
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.scheduler import Scheduler
from coordinator.scheduler.workload import Workloads

NUM_OWN_WORDS = 2


def policy_file(log: Path) -> Path:
    """Whose content is the name of the policy that is wanted."""
    return log.with_name("policy")


class WatchedScheduler(Scheduler):
    """Decides as its policy does. `next_policy` is asked for it whenever a new plan is wanted."""

    def __init__(self, next_policy: Callable[[], Policy], watch: Watch) -> None:
        super().__init__(policy=next_policy())
        self._next_policy = next_policy
        self._watch = watch
        self._is_replan_wanted = False

    def want_replan(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: the hub tells the scheduler of time twice a second."""
        self._is_replan_wanted = True

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        commands = self._timed(event, now_s)
        if self._is_replan_wanted and isinstance(event, ev.TimePassed):
            self._is_replan_wanted = False
            self._begin_anew(self._next_policy())
            commands = [*commands, *self._timed(ev.Replan(), now_s)]
        return commands

    def _begin_anew(self, policy: Policy) -> None:
        """As Scheduler.__init__ does, over the nodes and links that are known. What another policy's requests have
        taught it is forgotten, so that none profits from its place in the row. Raises ValueError under way."""
        if self.state.running or self.state.waiting:
            raise ValueError("A policy is not exchanged while requests run.")
        self.policy, self.workloads = policy, Workloads()
        for device in self.state.devices.values():
            device.slowdown, device.suspicion = 1.0, 0.0
        router = policy.make_router(self.state)
        self._dispatcher = Dispatcher(self.state, router, self.config, self.workloads)
        self._planner = Planner(self.state, policy, self.config, self.workloads, self._dispatcher.drop_requests_on)
        for device in self.state.devices.values():
            self._dispatcher.changed(device)

    def _timed(self, event: ev.Event, now_s: float) -> list[Command]:
        began_s = time.perf_counter()
        commands = super().handle(event, now_s)
        self._watch.note(event, commands, time.perf_counter() - began_s)
        return commands


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name, log = words[0], Path(words[1])
    policy_file(log).write_text(name, encoding="utf-8")
    with Watch.open(log) as watch:
        scheduler = WatchedScheduler(lambda: policy_named(policy_file(log).read_text(encoding="utf-8")), watch)
        signal.signal(signal.SIGUSR1, scheduler.want_replan)
        coordinator.app.build_pool = functools.partial(coordinator.app.build_pool, scheduler=scheduler)
        return coordinator_main(["serve", *words[NUM_OWN_WORDS:]])


if __name__ == "__main__":
    sys.exit(main())
