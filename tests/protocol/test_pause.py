"""Rules for pausing: what nobody decided, and which of two is the stricter."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from protocol.pause import (
    DEFAULT_RULES,
    Hours,
    PauseMode,
    PauseRules,
    PoolDefaults,
    strictest,
    with_defaults,
)

ALWAYS, WHEN_FREE, WHEN_AWAY = PauseMode
NIGHT, DAY = Hours(22 * 60, 7 * 60), Hours(9 * 60, 17 * 60)

hours = st.builds(Hours, st.integers(0, 1439), st.integers(0, 1439))
rules = st.builds(
    PauseRules,
    mode=st.none() | st.sampled_from(PauseMode),
    run_on_battery=st.none() | st.booleans(),
    away_after_s=st.none() | st.floats(1, 86_400),
    other_gpu_percent=st.none() | st.integers(1, 100),
    min_free_gpu_bytes=st.none() | st.integers(0, 2**40),
    max_temperature_c=st.none() | st.integers(40, 110),
    programs=st.lists(st.text(min_size=1, max_size=64), max_size=4).map(tuple),
    hours=st.none() | hours,
)


@pytest.mark.parametrize(
    ("name", "lax", "strict"),
    [
        ("mode", ALWAYS, WHEN_FREE),
        ("mode", WHEN_FREE, WHEN_AWAY),
        ("mode", ALWAYS, WHEN_AWAY),
        ("run_on_battery", True, False),
        ("away_after_s", 60.0, 600.0),
        ("other_gpu_percent", 50, 10),
        ("min_free_gpu_bytes", 0, 2**30),
        ("max_temperature_c", 90, 75),
    ],
)
def test_what_gives_the_gpu_back_sooner_is_taken_whoever_wants_it(name: str, lax: object, strict: object) -> None:
    one, other = PauseRules(**{name: lax}), PauseRules(**{name: strict})
    assert getattr(strictest(one, other), name) == getattr(strictest(other, one), name) == strict


def test_what_only_one_decides_is_as_that_one_says() -> None:
    lax = PauseRules(mode=ALWAYS, run_on_battery=True, max_temperature_c=100)
    assert strictest(lax, PauseRules()) == strictest(PauseRules(), lax) == lax


def test_programs_are_united_in_order_and_once() -> None:
    merged = strictest(PauseRules(programs=("blender", "steam")), PauseRules(programs=("steam", "obs")))
    assert merged.programs == ("blender", "steam", "obs")


def test_the_volunteers_own_hours_count_and_else_the_pools() -> None:
    assert strictest(PauseRules(hours=NIGHT), PauseRules(hours=DAY)).hours == NIGHT
    assert strictest(PauseRules(), PauseRules(hours=DAY)).hours == DAY


def test_what_nobody_decides_is_as_by_default() -> None:
    assert with_defaults(PauseRules()) == DEFAULT_RULES
    assert with_defaults(PauseRules(min_free_gpu_bytes=0, run_on_battery=False)).min_free_gpu_bytes == 0
    assert with_defaults(PauseRules(mode=ALWAYS)).mode is ALWAYS
    assert with_defaults(PauseRules(hours=NIGHT, programs=("steam",))).programs == ("steam",)


@given(rules, rules)
def test_every_decided_field_comes_from_one_of_the_two(own: PauseRules, pool: PauseRules) -> None:
    merged = asdict(strictest(own, pool))
    for name, value in merged.items():
        if name == "programs":
            assert set(value) == {*own.programs, *pool.programs}
        else:
            assert value in (getattr(own, name), getattr(pool, name))
            assert (value is None) == (getattr(own, name) is None and getattr(pool, name) is None)


@given(rules)
def test_a_pool_that_wants_the_same_or_nothing_changes_nothing(own: PauseRules) -> None:
    same = msgspec.structs.replace(own, programs=tuple(dict.fromkeys(own.programs)))
    assert strictest(own, own) == strictest(own, PauseRules()) == strictest(PauseRules(), own) == same


@given(rules)
def test_after_defaults_only_hours_may_be_undecided(own: PauseRules) -> None:
    decided = asdict(with_defaults(own))
    assert {name for name, value in decided.items() if value is None} <= {"hours"}
    assert with_defaults(with_defaults(own)) == with_defaults(own)


@given(rules)
def test_rules_travel_with_the_pools_defaults(own: PauseRules) -> None:
    defaults = PoolDefaults(rules=own)
    assert msgspec.json.decode(msgspec.json.encode(defaults), type=PoolDefaults) == defaults


@pytest.mark.parametrize(
    "bad",
    ['{"other_gpu_percent":0}', '{"other_gpu_percent":101}', '{"mode":"never"}', '{"max_temperature_c":10}',
     '{"away_after_s":0}', '{"programs":[""]}', '{"hours":{"start_minute":1440,"stop_minute":0}}', '{"noise":1}'],
)  # fmt: skip
def test_rules_out_of_range_are_refused(bad: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(bad, type=PauseRules)
