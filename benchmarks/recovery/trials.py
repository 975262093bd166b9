"""One fault at one moment of one answer, as often as wanted, and what came of it."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.recovery.counting import Fate, Recovery, Tally, fate, recovery, tally
from benchmarks.recovery.faults import Fault, break_it, replaceable, send
from benchmarks.recovery.pools import Rig
from benchmarks.recovery.reader import Heard, Reader

_logger = logging.getLogger(__name__)
MARGIN_TOKENS = 6
"""No fault in the first and last tokens of an answer: before it there is to be something to compare with, and after it
something to wait for."""
PREFILL_AFTER_S = 0.15
"""After the chain is known its stages are opened; then the prompt is computed."""


class Moment(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    HAND_OVER = "hand-over"
    """A node leaves; the chain after it is known, and has given no token yet."""


@dataclass(frozen=True, slots=True)
class Known:
    """A question with its undisturbed answer."""

    content: str
    answer: tuple[int, ...]
    prompt_s: float
    """To its first token, undisturbed."""


@dataclass(frozen=True, slots=True)
class Trial:
    """`hit_at`: how many tokens there were at the fault. `found` is None if the answer needed no other chain."""

    fault: Fault
    moment: Moment
    known: Known
    heard: Heard
    hit_at: int
    found: Recovery | None

    @property
    def fate(self) -> Fate:
        return fate(self.heard.tokens, list(self.known.answer), self.heard.error)

    @property
    def tally(self) -> Tally:
        return tally([(self.heard, self.known.answer)], int(self.found is not None))


class NothingToDo(Exception):  # noqa: N818 - reads as what happened
    """No node of the chain can be spared."""


def learn(rig: Rig, content: str, num_tokens: int) -> Known:
    """Ask it twice: the first time, workers do much of what they do for the first time. Raises ValueError if the answer
    is shorter than wanted, or not the same."""
    first, began_s = rig.ask(content, num_tokens), time.monotonic()
    second = rig.ask(content, num_tokens)
    if first.tokens != second.tokens or len(second.tokens) != num_tokens:
        raise ValueError(f"{len(first.tokens)} and {len(second.tokens)} tokens, not the same: {second.error}")
    return Known(content, tuple(second.tokens), second.times_s[0] - began_s)


def trial(rig: Rig, known: Known, fault: Fault, moment: Moment, rng: random.Random) -> Trial:
    """Raises NothingToDo if no node can be spared, PoolFailed if the pool does not become whole again."""
    rig.wait_whole()
    layers = rig.layers()
    reader = rig.reader(known.content, len(known.answer))
    leaver = _wait_for(rig, reader, layers, moment, known, rng)
    chain = reader.heard.chains[-1].nodes
    victim = _victim(layers, chain, fault, leaver, rng)
    at_s, hit_at = time.monotonic(), len(reader.heard.tokens)
    with break_it(rig, fault, victim, chain):
        heard = reader.wait()
    rig.make_whole()
    found = recovery(f"{fault} in {moment}", heard, at_s)
    done = Trial(fault, moment, known, heard, hit_at, found)
    _logger.info("%s in %s at %d: %s %s", fault, moment, hit_at, done.tally, found)
    return done


def _wait_for(
    rig: Rig, reader: Reader, layers: dict[str, str], moment: Moment, known: Known, rng: random.Random
) -> frozenset[str]:
    """Until it is time; returns who leaves."""
    num_tokens = len(known.answer)
    reader.wait_for(lambda heard: bool(heard.chains))
    if moment is Moment.PREFILL:
        time.sleep(min(PREFILL_AFTER_S + rng.random() * known.prompt_s / 2, 0.7 * known.prompt_s))
        return frozenset()
    reader.wait_for_tokens(rng.randrange(MARGIN_TOKENS, num_tokens - MARGIN_TOKENS))
    if moment is Moment.DECODE:
        return frozenset()
    num_chains = len(reader.heard.chains)
    leaver = _one_of(replaceable(layers, reader.heard.chains[-1].nodes), rng)
    send((rig.node(leaver).process.pid,), signal.SIGINT)
    reader.wait_for(lambda heard: len(heard.chains) > num_chains)
    return frozenset({leaver})


def _victim(
    layers: dict[str, str], chain: Sequence[str], fault: Fault, leaver: frozenset[str], rng: random.Random
) -> str:
    return chain[0] if fault is Fault.PAIR else _one_of(replaceable(layers, chain, leaver), rng)


def _one_of(names: Sequence[str], rng: random.Random) -> str:
    if not names:
        raise NothingToDo
    return rng.choice(names)


def total(trials: Iterable[Trial]) -> Tally:
    return sum((trial.tally for trial in trials), Tally())
