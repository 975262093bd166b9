"""When a volunteer's machine gives its GPU back: the rules, and the reasons that people are told.

Rules are in the wire because a pool may have defaults for all of its machines (a laboratory's). A volunteer's own rules
are never loosened by them: `strictest` takes, field by field, what gives the GPU back sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from protocol.values import Bytes, Count, Value


class PauseMode(StrEnum):
    """In the order of strictness."""

    ALWAYS = "always"
    """Other programs and the person at the machine do not matter; the other rules still do."""
    WHEN_FREE = "when_free"
    """When nothing else needs the GPU (the default)."""
    WHEN_AWAY = "when_away"
    """Only when nobody is at the machine; includes WHEN_FREE."""


class PauseReason(StrEnum):
    """Why a machine does not serve. Only these leave the machine, never what was measured."""

    MANUAL = "manual"
    OTHER_GPU_USE = "other_gpu_use"
    VIDEO = "video"
    LOW_GPU_MEMORY = "low_gpu_memory"
    FULLSCREEN = "fullscreen"
    PROGRAM = "program"
    BATTERY = "battery"
    USER_ACTIVE = "user_active"
    HOT = "hot"
    HOURS = "hours"


Percent = Annotated[int, Meta(ge=1, le=100)]
Minute = Annotated[int, Meta(ge=0, lt=24 * 60)]
ProgramName = Annotated[str, Meta(min_length=1, max_length=64)]


class Hours(Value, frozen=True):
    """Contribute only from `start_minute` to `stop_minute` of the day, local time; may cross midnight."""

    start_minute: Minute
    stop_minute: Minute


class PauseRules(Value, frozen=True):
    """None: not decided here. What nobody decides is as in DEFAULT_RULES."""

    mode: PauseMode | None = None
    run_on_battery: bool | None = None
    away_after_s: Annotated[float, Meta(ge=1, le=86_400)] | None = None
    other_gpu_percent: Percent | None = None
    """Other programs' share of the GPU's time from which it is theirs."""
    min_free_gpu_bytes: Bytes | None = None
    """Less free GPU memory than this: somebody needs more."""
    max_temperature_c: Annotated[int, Meta(ge=40, le=110)] | None = None
    programs: Annotated[tuple[ProgramName, ...], Meta(max_length=64)] = ()
    """Names of programs that have the machine to themselves."""
    hours: Hours | None = None


DEFAULT_RULES = PauseRules(
    mode=PauseMode.WHEN_FREE,
    run_on_battery=False,
    away_after_s=180.0,
    other_gpu_percent=20,
    min_free_gpu_bytes=2**30,
    max_temperature_c=83,
)


class PoolDefaults(Value, frozen=True):
    """What a pool's operator wants of every machine, unless its owner is stricter."""

    rules: PauseRules = PauseRules()
    max_memory_bytes: Bytes | None = None
    """Per device."""
    max_layers: Count | None = None
    max_disk_bytes: Bytes | None = None


def with_defaults(rules: PauseRules) -> PauseRules:
    """The rules with everything decided, by DEFAULT_RULES where they say nothing. No hours: at any time."""
    undecided = {name: getattr(DEFAULT_RULES, name) for name in _STRICTER if getattr(rules, name) is None}
    return replace(rules, **undecided)


def strictest(own: PauseRules, pool: PauseRules) -> PauseRules:
    """Field by field what gives the GPU back sooner; what only one of the two decides is as that one says.

    Programs are united. Two spans of hours have no stricter one: the volunteer's own count."""
    decided = {name: _stricter_of(name, getattr(own, name), getattr(pool, name)) for name in _STRICTER}
    programs = tuple(dict.fromkeys((*own.programs, *pool.programs)))
    return PauseRules(**decided, programs=programs, hours=own.hours or pool.hours)


_MODES = tuple(PauseMode)
_STRICTER: dict[str, Callable[[Any, Any], Any]] = {
    "mode": lambda one, other: max(one, other, key=_MODES.index),
    "run_on_battery": lambda one, other: one and other,
    "away_after_s": max,
    "other_gpu_percent": min,
    "min_free_gpu_bytes": max,
    "max_temperature_c": min,
}


def _stricter_of(name: str, own: Any, pool: Any) -> Any:
    if own is None or pool is None:
        return pool if own is None else own
    return _STRICTER[name](own, pool)
