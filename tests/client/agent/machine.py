"""A machine under the policy, on a clock of its own: what it shows, what was decided, what was said to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from client.agent import policy
from client.agent.policy import SAMPLE_S, GpuReading, PolicyState, Readings, Verdict
from protocol.pause import PauseReason, PauseRules
from protocol.values import DeviceId

QUIET_GPU = GpuReading(
    device_id=DeviceId("cuda:0"),
    others_percent=0,
    video_percent=0,
    free_bytes=20 * 10**9,
    others_growth_bytes=0,
    temperature_c=45,
)
QUIET = Readings(0.0, (QUIET_GPU,), on_battery=False, second_of_day=12 * 3600.0)
_GPU_FIELDS = set(GpuReading.__slots__)


def seen(at_s: float = 0.0, **what: Any) -> Readings:
    """Quiet readings but for `what`: fields of the only GPU and of the machine."""
    gpu = {name: value for name, value in what.items() if name in _GPU_FIELDS}
    machine = {name: value for name, value in what.items() if name not in _GPU_FIELDS}
    return replace(QUIET, at_s=at_s, gpus=(replace(QUIET_GPU, **gpu),), **machine)


class Machine:
    """Takes a reading every SAMPLE_S. `verdict` is the last one."""

    def __init__(self, rules: PauseRules = PauseRules(), *, serving: bool = True) -> None:
        self.rules = rules
        self.state = PolicyState()
        self.now_s = 1000.0
        self.verdict = policy.LOOKING
        if serving:
            self.shows(5)

    @property
    def reasons(self) -> tuple[PauseReason, ...]:
        return self.verdict.reasons

    def decide(self, readings: Readings) -> Verdict:
        self.state, self.verdict = policy.decide(readings, self.rules, self.state, self.now_s)
        return self.verdict

    def shows(self, for_s: float, **what: Any) -> Verdict:
        """The same for so long; the last verdict."""
        return self.verdicts(for_s, **what)[-1]

    def verdicts(self, for_s: float, **what: Any) -> list[Verdict]:
        verdicts = []
        for _ in range(round(for_s / SAMPLE_S)):
            verdicts.append(self.decide(seen(self.now_s, **what)))
            self.now_s += SAMPLE_S
        return verdicts

    def until_it_serves(self, limit_s: float, **what: Any) -> float:
        """For how long it did not yet."""
        start_s = self.now_s
        while not self.shows(SAMPLE_S, **what).serve:
            assert self.now_s - start_s <= limit_s, f"paused for longer than {limit_s} s: {self.verdict}"
        return self.now_s - SAMPLE_S - start_s

    def pause(self, for_s: float | None = None) -> None:
        self.state = policy.pause(self.state, self.now_s, for_s)

    def resume(self, *, anyway: bool = False) -> None:
        self.state = policy.resume(self.state, self.now_s, anyway=anyway)

    def change_rules(self, rules: PauseRules) -> None:
        self.rules = rules
        self.state = policy.change_rules(self.state)
