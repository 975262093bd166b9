"""When this machine gives its GPU back: readings and rules in, a verdict out. Pure; time is an argument.

What was seen (a *condition*) is a reason to pause once it has been seen for the condition's span, in readings of their
own (`Readings.at_s`): one busy moment is no game. A reason holds while its condition does, and then QUIET_S must pass
without any: loading the weights again costs the volunteer and the pool more than a minute's work is worth. A machine
that pauses again soon after it went on waits twice as long. What nobody knows (None) is no reason to pause, except
where a person may be at the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from protocol.pause import Hours, PauseMode, PauseReason, PauseRules, with_defaults
from protocol.values import DeviceId

SAMPLE_S = 0.5
"""The time between two readings, and what a reading of the GPU's use is an average of."""
SUSTAIN_S = 1.5
"""For so long somebody's program computes before it is a reason: it is seen in two readings of three, or in two in a
row. When it shares the GPU with our worker, the driver gives some readings to the one and some to the other (on an
H100: 66, 0, 82, 0, 80 percent for a game that never rests)."""
APART_S = 0.4
"""Two readings closer than this are one; a timer is late, rarely early."""
GAP_S = 0.9
"""One reading without it, between two with it, is no end."""
VIDEO_S = 3.0
HOT_S = 5.0
COOL_C = 8
"""Hot ends this far below the limit: a resting card cools in seconds, and would soon be as hot again."""
SETTLE_S = 0.9
"""Before the first verdict: a machine that is busy at the start never joins. A shorter span is enough then."""
QUIET_S = 60.0
MAX_QUIET_S = 600.0
FLAP_S = 300.0
"""A pause so soon after a resume doubles the wait."""
CALM_S = 1800.0
"""Without a reason for so long, the wait is QUIET_S again."""
CEASED_S = 5.0
"""A reason that the volunteer waived has passed when it was not seen for so long: a game's use has gaps."""
GROWTH_BYTES = 300 * 10**6
"""More memory of others than when we began to serve: where nothing else tells, a program has come."""
LOW_MEMORY_GROWTH_BYTES = 2**27
"""A browser's tab; a card that was as full when we began is not short of memory because of anybody else."""
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What others do with one GPU. None: not known. Names of programs are for the person at this machine only."""

    device_id: DeviceId
    others_percent: int | None = None
    """Of the GPU's time since the reading before, by processes that are not ours."""
    others_program: str = ""
    video_percent: int | None = None
    """Of the video decoder's."""
    video_program: str = ""
    free_bytes: int | None = None
    others_growth_bytes: int | None = None
    """Since our layers were last loaded."""
    growth_program: str = ""
    temperature_c: int | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """The machine at `at_s` (monotonic). None: not known, or not asked for."""

    at_s: float
    gpus: tuple[GpuReading, ...] = ()
    on_battery: bool | None = None
    programs: frozenset[str] = frozenset()
    """`program_key` of programs that run."""
    second_of_day: float | None = None
    """Local time."""
    idle_s: float | None = None
    is_fullscreen: bool | None = None
    is_locked: bool | None = None


SOFT_REASONS = frozenset({PauseReason.HOURS, PauseReason.BATTERY})
"""Half a minute more or less does not matter to these."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Serve, or pause with reasons; neither (no reasons) only before the first verdict, while the machine is looked at.

    `until_s` is the end of a manual pause that has one; at `resumes_at_s` the machine goes on if nothing stirs (None:
    when the reason has passed, whenever that is). Both monotonic."""

    serve: bool
    reasons: tuple[PauseReason, ...] = ()
    detail: str = ""
    until_s: float | None = None
    resumes_at_s: float | None = None
    after_answers: bool = False
    """Whoever paused it by hand lets it finish what runs here."""

    @property
    def is_soft(self) -> bool:
        """Whether nothing that pauses the machine is in a hurry."""
        soft = SOFT_REASONS | {PauseReason.MANUAL} if self.after_answers else SOFT_REASONS
        return bool(self.reasons) and soft.issuperset(self.reasons)


LOOKING = Verdict(serve=False)


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last reading that showed a condition, without a break between them."""

    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the policy remembers between two verdicts. Mappings are never changed, only replaced."""

    first_at_s: float | None = None
    has_begun: bool = False
    is_paused: bool = False
    seen: Mapping[str, Span] = field(default_factory=dict)
    """Conditions that are seen, or were a moment ago."""
    held: Mapping[PauseReason, str] = field(default_factory=dict)
    """Reasons that hold, and what was seen when each began to."""
    waived: Mapping[PauseReason, float] = field(default_factory=dict)
    """Reasons that do not count, and when each was last seen."""
    manual_until_s: float | None = None
    """None: not paused by hand. Infinity: until Resume."""
    after_answers: bool = False
    """The pause by hand is in no hurry."""
    last_held: Mapping[PauseReason, str] = field(default_factory=dict)
    last_held_s: float = -inf
    quiet_s: float = QUIET_S
    quiet_until_s: float | None = None
    resumed_s: float = -inf


def program_key(name: str) -> str:
    """Names of programs are compared so: without case, and as Windows or not."""
    return name.strip().lower().removesuffix(".exe")


# ---------------------------------------------------------------- what can be seen

Look = Callable[[Readings, PauseRules, bool], str | None]
"""Readings, rules, whether the reason holds already: what is seen, in words; None when it is not seen."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A reason once it is seen for `span_s`; readings without it for less than `gap_s` are passed over."""

    reason: PauseReason
    look: Look
    span_s: float = 0.0
    gap_s: float = 0.0


def _reaches(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value >= limit


def _gpu_use(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    busy = [(gpu.others_percent or 0, gpu.others_program) for gpu in readings.gpus
            if _reaches(gpu.others_percent, rules.other_gpu_percent)]  # fmt: skip
    if rules.mode is PauseMode.ALWAYS or not busy:
        return None
    percent, program = max(busy)
    return f"{program} uses {percent} % of the GPU" if program else f"other programs use {percent} % of the GPU"


def _gpu_growth(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    """Where the driver does not say who computes (containers, WSL, MIG)."""
    blind = [gpu for gpu in readings.gpus if gpu.others_percent is None]
    grown = [gpu.others_growth_bytes for gpu in blind if _reaches(gpu.others_growth_bytes, GROWTH_BYTES)]
    if rules.mode is PauseMode.ALWAYS or not grown:
        return None
    return f"another program took {_gb(max(size for size in grown if size))} of the GPU's memory"


def _video(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    programs = [gpu.video_program for gpu in readings.gpus if gpu.video_percent]
    if rules.mode is PauseMode.ALWAYS or not programs:
        return None
    return f"{max(programs)} plays a video" if max(programs) else "a video is playing"


def _low_memory(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    for gpu in readings.gpus:
        is_low = gpu.free_bytes is not None and gpu.free_bytes < (rules.min_free_gpu_bytes or 0)
        if is_low and _reaches(gpu.others_growth_bytes, LOW_MEMORY_GROWTH_BYTES):
            taker = f" ({gpu.growth_program} needs it)" if gpu.growth_program else ""
            return f"only {_gb(gpu.free_bytes or 0)} of the GPU's memory is free{taker}"
    return None


def _fullscreen(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    return "a program fills the screen" if readings.is_fullscreen and rules.mode is not PauseMode.ALWAYS else None


def _program(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    return next((f"{name} is running" for name in rules.programs if program_key(name) in readings.programs), None)


def _battery(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    return "on battery" if readings.on_battery and not rules.run_on_battery else None


def _user_active(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    if rules.mode is not PauseMode.WHEN_AWAY or readings.is_locked or _reaches(readings.idle_s, rules.away_after_s):
        return None
    if readings.idle_s is None:
        return "somebody may be at the machine: idle detection is not available here"
    return "somebody is at the machine"


def _hot(readings: Readings, rules: PauseRules, holds: bool) -> str | None:
    known = [gpu.temperature_c for gpu in readings.gpus if gpu.temperature_c is not None]
    if not known or rules.max_temperature_c is None:
        return None
    is_hot = max(known) > rules.max_temperature_c - COOL_C if holds else max(known) >= rules.max_temperature_c
    return f"the GPU is at {max(known)} °C" if is_hot else None


def _hours(readings: Readings, rules: PauseRules, _: bool) -> str | None:
    if rules.hours is None or readings.second_of_day is None or _is_within(rules.hours, readings.second_of_day):
        return None
    return f"contributes from {_clock(rules.hours.start_minute)} to {_clock(rules.hours.stop_minute)} only"


def _is_within(hours: Hours, second_of_day: float) -> bool:
    """Equal ends mean the whole day."""
    start_s, stop_s = 60 * hours.start_minute, 60 * hours.stop_minute
    return (second_of_day - start_s) % DAY_S < ((stop_s - start_s) % DAY_S or DAY_S)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


CONDITIONS: dict[str, Condition] = {
    "gpu_use": Condition(PauseReason.OTHER_GPU_USE, _gpu_use, APART_S, GAP_S),
    "gpu_growth": Condition(PauseReason.OTHER_GPU_USE, _gpu_growth, SUSTAIN_S),
    "video": Condition(PauseReason.VIDEO, _video, VIDEO_S, GAP_S),
    "low_memory": Condition(PauseReason.LOW_GPU_MEMORY, _low_memory),
    "fullscreen": Condition(PauseReason.FULLSCREEN, _fullscreen),
    "program": Condition(PauseReason.PROGRAM, _program),
    "battery": Condition(PauseReason.BATTERY, _battery),
    "user_active": Condition(PauseReason.USER_ACTIVE, _user_active),
    "hot": Condition(PauseReason.HOT, _hot, HOT_S),
    "hours": Condition(PauseReason.HOURS, _hours),
}
AT_ONCE = frozenset({PauseReason.MANUAL, PauseReason.USER_ACTIVE, PauseReason.HOURS})
"""After these no quiet is waited for: each says itself when it is over."""


# ---------------------------------------------------------------- the verdict


def decide(readings: Readings, rules: PauseRules, state: PolicyState, now_s: float) -> tuple[PolicyState, Verdict]:
    """The verdict on these readings, and what to remember until the next. `rules` may leave things undecided."""
    rules = with_defaults(rules)
    looks = _look(readings, rules, state)
    state = _remember(looks, readings, state, now_s)
    state = _wait_for_quiet({CONDITIONS[name].reason for name in looks}, state, now_s)
    if state.manual_until_s is not None and state.manual_until_s <= now_s:
        state = replace(state, manual_until_s=None)
    state = replace(state, has_begun=state.has_begun or _has_settled(readings, state))
    is_quiet = state.quiet_until_s is None or state.quiet_until_s <= now_s
    if state.held or state.manual_until_s is not None or not is_quiet:
        return replace(state, is_paused=True), _pause(readings, rules, state, now_s)
    if not state.has_begun:
        return state, LOOKING
    resumed_s = now_s if state.quiet_until_s is not None else state.resumed_s
    return replace(state, is_paused=False, quiet_until_s=None, resumed_s=resumed_s), Verdict(serve=True)


def _look(readings: Readings, rules: PauseRules, state: PolicyState) -> dict[str, str]:
    """The conditions that are seen, and what each looks like."""
    holding = {*state.held, *state.waived}
    looks = {name: c.look(readings, rules, c.reason in holding) for name, c in CONDITIONS.items()}
    return {name: look for name, look in looks.items() if look is not None}


def _remember(looks: Mapping[str, str], readings: Readings, state: PolicyState, now_s: float) -> PolicyState:
    """What is seen, what of it holds, and what is waived."""
    seen = _spans(looks, readings.at_s, state.seen)
    seen_reasons = {CONDITIONS[name].reason for name in looks}
    last_seen = {reason: now_s if reason in seen_reasons else at_s for reason, at_s in state.waived.items()}
    waived = {reason: at_s for reason, at_s in last_seen.items() if now_s - at_s < CEASED_S}
    details = {**state.held}
    for name, look in looks.items():
        details.setdefault(CONDITIONS[name].reason, look)
    holding = {CONDITIONS[name].reason for name, span in seen.items() if _holds(name, span, state)}
    held = {reason: detail for reason, detail in details.items() if reason in holding and reason not in waived}
    first_at_s = readings.at_s if state.first_at_s is None else state.first_at_s
    return replace(state, first_at_s=first_at_s, seen=seen, waived=waived, held=held)


def _spans(looks: Mapping[str, str], at_s: float, before: Mapping[str, Span]) -> dict[str, Span]:
    """What is seen now goes on or begins; what is not ends, unless that may be a gap."""
    kept = {name: span for name, span in before.items() if at_s - span.last_s < CONDITIONS[name].gap_s}
    return {**kept, **{name: Span(before.get(name, Span(at_s, at_s)).first_s, at_s) for name in looks}}


def _holds(name: str, span: Span, state: PolicyState) -> bool:
    """It has been seen for long enough: at the start, for as long as two readings are apart."""
    condition = CONDITIONS[name]
    span_s = condition.span_s if state.has_begun else min(condition.span_s, APART_S)
    return condition.reason in state.held or span.last_s - span.first_s >= span_s


def _wait_for_quiet(seen: Collection[PauseReason], state: PolicyState, now_s: float) -> PolicyState:
    """The wait begins anew while a reason holds, and is twice as long for a machine that was paused lately."""
    restless = {reason: detail for reason, detail in state.held.items() if reason in seen and reason not in AT_ONCE}
    if now_s - state.last_held_s >= CALM_S:
        state = replace(state, quiet_s=QUIET_S)
    if not restless:
        return state
    flaps = not state.is_paused and now_s - state.resumed_s < FLAP_S
    quiet_s = min(2 * state.quiet_s, MAX_QUIET_S) if flaps else state.quiet_s
    return replace(
        state, last_held=restless, last_held_s=now_s, quiet_s=quiet_s, quiet_until_s=now_s + quiet_s
    )  # fmt: skip


def _has_settled(readings: Readings, state: PolicyState) -> bool:
    """A GPU has been watched for long enough to say that nobody uses it."""
    return not readings.gpus or state.first_at_s is None or readings.at_s - state.first_at_s >= SETTLE_S


def _pause(readings: Readings, rules: PauseRules, state: PolicyState, now_s: float) -> Verdict:
    is_manual = state.manual_until_s is not None
    reasons = state.held or ({} if is_manual else state.last_held)
    manual = (PauseReason.MANUAL,) if is_manual else ()
    return Verdict(
        serve=False,
        reasons=(*manual, *(reason for reason in PauseReason if reason in reasons)),
        detail="; ".join(reasons[reason] for reason in PauseReason if reason in reasons),
        until_s=_finite(state.manual_until_s),
        resumes_at_s=_resumes_at_s(readings, rules, state, now_s),
        after_answers=is_manual and state.after_answers,
    )


def _resumes_at_s(readings: Readings, rules: PauseRules, state: PolicyState, now_s: float) -> float | None:
    if state.held.keys() - {PauseReason.HOURS}:
        return None
    ends = [end_s for end_s in (state.manual_until_s, state.quiet_until_s) if end_s is not None and end_s > now_s]
    if PauseReason.HOURS in state.held and rules.hours and readings.second_of_day is not None:
        ends.append(now_s + (60 * rules.hours.start_minute - readings.second_of_day) % DAY_S)
    return _finite(max(ends, default=None))


def _finite(value_s: float | None) -> float | None:
    return None if value_s == inf else value_s


# ---------------------------------------------------------------- what people say


def pause(state: PolicyState, now_s: float, for_s: float | None, *, after_answers: bool = False) -> PolicyState:
    """By hand, for so long; None: until `resume`. The last word counts, also on whether it is in a hurry."""
    until_s = inf if for_s is None else now_s + max(0.0, for_s)
    return replace(state, manual_until_s=until_s, after_answers=after_answers)


def resume(state: PolicyState, now_s: float, *, anyway: bool) -> PolicyState:
    """The end of a manual pause and of a wait for quiet: somebody is there and wants it to go on.

    `anyway`: what is seen now does not count until it has passed once."""
    seen = {CONDITIONS[name].reason for name in state.seen} if anyway else set()
    waived = {**state.waived, **dict.fromkeys(seen, now_s)}
    return replace(state, manual_until_s=None, quiet_until_s=None, resumed_s=-inf, waived=waived)


def change_rules(state: PolicyState) -> PolicyState:
    """Other rules apply from the next verdict on, at once: what held, and the wait after it, was by the old ones."""
    return replace(state, held={}, quiet_until_s=None)
