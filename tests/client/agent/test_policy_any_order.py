"""The policy under anything that a machine and its owner may do: what must always hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from client.agent import policy
from client.agent.policy import (
    AT_ONCE,
    CONDITIONS,
    MAX_QUIET_S,
    QUIET_S,
    SAMPLE_S,
    GpuReading,
    PolicyState,
    Readings,
    Verdict,
)
from protocol.pause import Hours, PauseMode, PauseReason, PauseRules, strictest, with_defaults
from protocol.values import DeviceId
from tests.client.agent.machine import QUIET, QUIET_GPU

rules = st.builds(
    PauseRules,
    mode=st.none() | st.sampled_from(PauseMode),
    run_on_battery=st.none() | st.booleans(),
    away_after_s=st.none() | st.sampled_from([1.0, 60.0, 600.0]),
    other_gpu_percent=st.none() | st.sampled_from([1, 20, 60, 100]),
    min_free_gpu_bytes=st.none() | st.sampled_from([0, 10**9, 10**10]),
    max_temperature_c=st.none() | st.sampled_from([50, 70, 83, 110]),
    programs=st.sampled_from([(), ("steam",), ("obs", "steam")]),
    hours=st.none() | st.just(Hours(540, 1020)),
)
gpus = st.builds(
    GpuReading,
    device_id=st.just(DeviceId("cuda:0")),
    others_percent=st.none() | st.sampled_from([0, 1, 20, 59, 60, 100]),
    video_percent=st.none() | st.sampled_from([0, 5]),
    free_bytes=st.none() | st.sampled_from([0, 10**9, 2 * 10**10]),
    others_growth_bytes=st.none() | st.sampled_from([-(10**9), 0, 2 * 10**8, 10**9]),
    temperature_c=st.none() | st.sampled_from([40, 46, 65, 76, 83, 120]),
)
readings = st.builds(
    Readings,
    at_s=st.just(0.0),
    gpus=st.lists(gpus, max_size=2).map(tuple),
    on_battery=st.none() | st.booleans(),
    programs=st.sampled_from([frozenset(), frozenset({"steam"})]),
    second_of_day=st.none() | st.sampled_from([0.0, 43_200.0]),
    idle_s=st.none() | st.sampled_from([0.0, 30.0, 1000.0]),
    is_fullscreen=st.none() | st.booleans(),
    is_locked=st.none() | st.booleans(),
)


@dataclass(frozen=True)
class Phase:
    """So many readings alike; first, somebody may click."""

    readings: Readings
    num_readings: int
    click: str = ""


phases = st.builds(Phase, readings, st.sampled_from([1, 2, 3, 7, 12, 125]))
days = st.lists(phases, min_size=1, max_size=8)
clicks = st.sampled_from(["", "", "", "pause", "pause 20", "resume", "anyway"])
busy_days = st.lists(st.builds(Phase, readings, st.integers(1, 12), clicks), min_size=1, max_size=20)
stricter = st.tuples(rules.map(with_defaults), rules).map(lambda pair: (pair[0], strictest(*pair)))


@dataclass(frozen=True)
class Moment:
    """One decision: what it was made on and from, and what came out."""

    now_s: float
    readings: Readings
    before: PolicyState
    after: PolicyState
    verdict: Verdict


def lived(day: list[Phase], rules: PauseRules) -> Iterator[Moment]:
    state, now_s = PolicyState(), 1000.0
    for phase in day:
        state = clicked(state, phase.click, now_s)
        for _ in range(phase.num_readings):
            reading = replace(phase.readings, at_s=now_s)
            before = state
            state, verdict = policy.decide(reading, rules, before, now_s)
            yield Moment(now_s, reading, before, state, verdict)
            now_s += SAMPLE_S


def clicked(state: PolicyState, click: str, now_s: float) -> PolicyState:
    if click.startswith("pause"):
        return policy.pause(state, now_s, 20.0 if click == "pause 20" else None)
    return policy.resume(state, now_s, anyway=click == "anyway") if click else state


def looks(readings: Readings, rules: PauseRules) -> set[str]:
    """The conditions that are there, without hysteresis."""
    decided = with_defaults(rules)
    return {name for name, condition in CONDITIONS.items() if condition.look(readings, decided, False) is not None}


@given(days, rules)
def test_it_never_serves_while_a_reason_has_been_there_for_its_span(day: list[Phase], rules: PauseRules) -> None:
    since_s: dict[str, float] = {}
    for moment in lived(day, rules):
        there = looks(moment.readings, rules)
        since_s = {name: since_s.get(name, moment.now_s) for name in there}
        sustained = {name for name in there if moment.now_s - since_s[name] >= CONDITIONS[name].span_s}
        assert not (moment.verdict.serve and sustained)


@given(days, rules)
def test_it_pauses_only_for_reasons_that_have_been_there_within_the_wait(day: list[Phase], rules: PauseRules) -> None:
    seen_s: dict[PauseReason, float] = {}
    for moment in lived(day, rules):
        holding = {*moment.before.held}
        decided = with_defaults(rules)
        for condition in CONDITIONS.values():
            if condition.look(moment.readings, decided, condition.reason in holding) is not None:
                seen_s[condition.reason] = moment.now_s
        for reason in moment.verdict.reasons:
            assert moment.now_s - seen_s[reason] <= (0 if reason in AT_ONCE else MAX_QUIET_S)


@given(busy_days, rules)
def test_a_verdict_is_to_serve_or_has_reasons_or_is_the_first_look(day: list[Phase], rules: PauseRules) -> None:
    has_decided = False
    for moment in lived(day, rules):
        verdict = moment.verdict
        assert not (verdict.serve and verdict.reasons)
        assert verdict.serve or verdict.reasons or not has_decided or not moment.before.has_begun
        assert len(set(verdict.reasons)) == len(verdict.reasons)
        assert verdict.resumes_at_s is None or verdict.resumes_at_s > moment.now_s
        assert (PauseReason.MANUAL in verdict.reasons) == (moment.after.manual_until_s is not None)
        has_decided |= verdict.serve


@given(days, rules)
def test_it_never_flaps_faster_than_the_quiet(day: list[Phase], rules: PauseRules) -> None:
    held_s = None
    for moment in lived(day, rules):
        seen = {CONDITIONS[name].reason for name, span in moment.after.seen.items() if span.last_s == moment.now_s}
        if seen & set(moment.after.held) - AT_ONCE:
            held_s = moment.now_s
        if moment.verdict.serve and held_s is not None:
            assert moment.now_s - held_s >= QUIET_S


@settings(max_examples=25)
@given(busy_days, rules)
def test_when_all_is_quiet_it_goes_on(day: list[Phase], rules: PauseRules) -> None:
    cool = (replace(QUIET_GPU, temperature_c=30),)
    quiet = replace(QUIET, gpus=cool, idle_s=10_000.0, second_of_day=43_200.0)
    rest = [Phase(quiet, 1, "resume"), Phase(quiet, round((MAX_QUIET_S + 5) / SAMPLE_S))]
    assert list(lived([*day, *rest], rules))[-1].verdict.serve
    assert list(lived([*day, Phase(quiet, 1, "pause 20"), *rest[1:]], rules))[-1].verdict.serve


@given(busy_days, rules)
def test_a_waived_reason_never_pauses_until_it_has_passed_once(day: list[Phase], rules: PauseRules) -> None:
    for moment in lived(day, rules):
        assert not set(moment.verdict.reasons) & set(moment.after.waived)
        seen = {CONDITIONS[name].reason for name in moment.after.seen}
        for reason, last_seen_s in moment.after.waived.items():
            assert reason in moment.before.waived
            assert reason in seen or moment.now_s - last_seen_s < policy.CEASED_S
        for reason in set(moment.before.waived) - set(moment.after.waived):
            assert reason not in seen


@given(days, stricter, st.booleans())
def test_from_the_same_state_stricter_rules_never_serve_where_laxer_ones_pause(
    day: list[Phase], rules: tuple[PauseRules, PauseRules], lives_by_stricter: bool
) -> None:
    lax, strict = rules
    for moment in lived(day, strict if lives_by_stricter else lax):
        _, by_lax = policy.decide(moment.readings, lax, moment.before, moment.now_s)
        _, by_strict = policy.decide(moment.readings, strict, moment.before, moment.now_s)
        assert not (by_strict.serve and not by_lax.serve)


@given(days, stricter)
def test_whatever_holds_by_lax_rules_holds_by_stricter_ones(
    day: list[Phase], rules: tuple[PauseRules, PauseRules]
) -> None:
    """Each living by its own rules from the start."""
    for by_lax, by_strict in zip(lived(day, rules[0]), lived(day, rules[1]), strict=True):
        assert set(by_lax.after.held) <= set(by_strict.after.held)


@given(days, rules)
def test_the_state_stays_small(day: list[Phase], rules: PauseRules) -> None:
    for moment in lived(day, rules):
        state: Any = moment.after
        assert len(state.seen) <= len(CONDITIONS)
        assert len(state.held) <= len(PauseReason)
        assert QUIET_S <= state.quiet_s <= MAX_QUIET_S
