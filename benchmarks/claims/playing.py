"""Playing a load on an emulated pool, and what came of it: the part that all rows share."""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from benchmarks.claims.pool import EmulatedPool, emulated_pool
from benchmarks.claims.scene import Ask, Load, Scene
from benchmarks.claims.users import Answer, Change, Door, Summary, play, summarise
from coordinator.scheduler.cost import Bound

BOUND = Bound()
ENOUGH_WORSE = 0.7
"""A ladder of rates ends when goodput has fallen to this share of the best."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is played, and where. `policies` empty: those of the row."""

    seed: int
    load_s: float
    model_folder: Path
    scratch: Path
    policies: tuple[str, ...] = ()


class Played(msgspec.Struct, frozen=True):
    """One load on one pool."""

    requests_per_s: float
    summary: Summary
    served: dict[str, int]
    """Requests that each node took part in."""
    busy_share: dict[str, float]
    """Of the time, how much each node computed."""
    length_s: float
    """From the first request to the last token."""
    machine_busy_share: float
    """Of all processors of the machine that plays all nodes: near 1 the figures are the machine's, not the pool's."""
    num_errors: int


class Ladder(msgspec.Struct, frozen=True):
    """A pool with one policy under rising rates."""

    policy: str
    layers: dict[str, str]
    steps: tuple[Played, ...]
    resident_bytes: dict[str, int]

    @property
    def first(self) -> Summary:
        return self.steps[0].summary

    @property
    def best(self) -> Played:
        return max(self.steps, key=lambda step: step.summary.goodput_tokens_per_s)

    @property
    def best_goodput(self) -> float:
        return self.best.summary.goodput_tokens_per_s

    @property
    def is_open(self) -> bool:
        """Whether the highest rate was the best, so that a higher one might have been better still."""
        return self.best is self.steps[-1]


def door(pool: EmulatedPool) -> Door:
    certificate = pool.local.data_dir / "tls" / "certificate.pem"
    return Door(pool.local.url, pool.model, ssl.create_default_context(cafile=certificate))


def play_asks(
    pool: EmulatedPool, asks: Sequence[Ask], changes: Sequence[Change] = ()
) -> tuple[list[Answer], dict[str, float], float]:
    """The answers, how long each node computed, and how busy the machine was."""
    began_s = time.monotonic()
    psutil.cpu_percent()
    answers = play(door(pool), asks, changes)
    machine_busy = psutil.cpu_percent() / 100
    time.sleep(1.5)  # nodes report their work once a second
    return answers, pool.busy_s(began_s), machine_busy


def play_load(pool: EmulatedPool, load: Load, seed: int) -> Played:
    """One step of a ladder."""
    answers, busy_s, machine_busy = play_asks(pool, load.asks(seed))
    return played(answers, load, busy_s, machine_busy)


def played(answers: Sequence[Answer], load: Load, busy_s: dict[str, float], machine_busy: float) -> Played:
    """The sums."""
    length_s = max((a.token_times_s[-1] for a in answers if a.token_times_s), default=load.duration_s)
    return Played(
        requests_per_s=load.requests_per_s,
        summary=summarise(answers, load.warm_up_s, load.duration_s, BOUND),
        served=dict(Counter(name for answer in answers for name in answer.nodes)),
        busy_share={name: seconds / length_s for name, seconds in busy_s.items()},
        length_s=length_s,
        machine_busy_share=machine_busy,
        num_errors=sum(bool(answer.error) for answer in answers),
    )


def climb(pool: EmulatedPool, policy: str, loads: Sequence[Load], seed: int) -> Ladder:
    """Play rising rates until goodput falls."""
    steps: list[Played] = []
    best = 0.0
    layers, resident = pool.layers(), pool.resident_bytes()
    for load in loads:
        step = play_load(pool, load, seed)
        steps.append(step)
        goodput = step.summary.goodput_tokens_per_s
        print(f"{policy}: {load.requests_per_s:g} requests/s: {goodput:.1f} tokens/s in the bound", flush=True)
        best = max(best, goodput)
        if goodput < ENOUGH_WORSE * best:
            break
    return Ladder(policy, layers, tuple(steps), resident)


def climb_with(effort: Effort, scene: Scene, policy: str, loads: Sequence[Load]) -> Ladder:
    """The same on a fresh pool with this policy."""
    return climb_with_all(effort, scene, (policy,), loads)[0]


def climb_with_all(effort: Effort, scene: Scene, policies: Sequence[str], loads: Sequence[Load]) -> list[Ladder]:
    """The same on one fresh pool, with one policy after the other."""
    with fresh_pool(effort, scene, policies[0]) as pool:
        return [climb(used(pool, policy), policy, loads, effort.seed) for policy in policies]


def fresh_pool(effort: Effort, scene: Scene, policy: str) -> AbstractContextManager[EmulatedPool]:
    print(f"{policy}: starting {len(scene.nodes)} nodes", flush=True)
    return emulated_pool(scene, effort.model_folder, policy, effort.scratch, effort.seed)


def used(pool: EmulatedPool, policy: str) -> EmulatedPool:
    """The pool, planned anew by this policy."""
    pool.use(policy)
    return pool


def rising(effort: Effort, load: Load, num_steps: int) -> list[Load]:
    """Twice the rate at each step."""
    return [
        Load(load.requests_per_s * 2**step, effort.load_s, load.warm_up_s, load.lengths) for step in range(num_steps)
    ]
