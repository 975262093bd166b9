"""Lanes under construction: sketches with their best layer counts and what they will do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.scheduler.filling import capacities, fill, most_kv_tokens
from coordinator.scheduler.forecast import (
    Tables,
    answer_limit_s,
    answer_times,
    lane_rates,
    lane_times,
    score_of,
    slowness,
)
from coordinator.scheduler.tables import Floats, Ints, LaneBatch, OfferTable, Sketch, lane_batch, repeated

Filling = tuple[float, float]
"""Of the most KV that a lane could keep and still hold all layers: how much is kept (less lets fast stages take more).
And how sharply speed counts: 1 levels the stages' times, more favours the fastest, which shortens answers when there
is little to do."""
FILLINGS: tuple[Filling, ...] = ((1.0, 1.0), (0.5, 1.0), (0.0, 2.0), (0.0, 6.0))
MANY_FILLINGS: tuple[Filling, ...] = (
    (1.0, 1.0),
    (0.75, 1.0),
    (0.5, 1.0),
    (0.25, 1.0),
    (0.0, 1.0),
    (0.0, 2.0),
    (0.0, 6.0),
)
"""For small pools, where each lane matters."""
SHIFTS = 6
STEPS = (1, 1, 2, 4)
"""When cuts are polished: trials per lane and round, and by how many layers."""
LEAST_RATE = 1e-12
"""In place of none, where something is divided by it."""


@dataclass(frozen=True, slots=True)
class Load:
    """The part of its most that each lane is expected to do. None: found from what all sketches together could do,
    which are `num_options` alternatives for the same devices; or, with `option_of` [lanes], from what those of each
    option could do."""

    part: float | None = None
    num_options: int = 1
    option_of: Ints | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A lane with counts. `rate` is the most tokens per second, `slow` how long a mean answer takes at its share
    of the demand (forecast.slowness)."""

    sketch: Sketch
    counts: tuple[int, ...]
    rate: float
    slow: float


def drafts_of(
    p: Tables, sketches: Sequence[Sketch], load: Load, fillings: Sequence[Filling] = FILLINGS
) -> list[Draft | None]:
    """Fill all sketches, each in several ways, and keep the best of each; None for one that cannot hold the model."""
    found: list[Draft | None] = [None] * len(sketches)
    able, batch, most = _able(p, sketches)
    if not len(able):
        return found
    many = repeated(batch, len(fillings))
    kv_tokens = np.concatenate([most * part for part, _ in fillings])
    counts = _filled(p, many, kv_tokens, np.repeat([sharpness for _, sharpness in fillings], len(able)))
    filled = _best_fillings(p, [sketches[i] for i in able.tolist()], many, counts, load)
    for number, draft in zip(able.tolist(), filled, strict=True):
        found[number] = draft
    return found


def _able(p: Tables, sketches: Sequence[Sketch]) -> tuple[Ints, LaneBatch, Floats]:
    """Which of them can hold the model at all; those, side by side; and the most KV that each could keep."""
    batch = lane_batch(sketches)
    most = most_kv_tokens(p.offers, p.model, batch)
    able = np.flatnonzero(most >= 0.0)
    if len(able) == len(sketches):
        return able, batch, most
    return able, lane_batch([sketches[i] for i in able.tolist()]), most[able]


def option_worths(p: Tables, options: Sequence[Sequence[Sketch]], load: Load | None = None) -> tuple[Floats, Floats]:
    """What each of these sets of lanes would be worth, [options], and the most tokens per second of each lane of all
    of them, [lanes]: 0 for one that cannot hold the model. Filled in one way only, which is enough to choose.

    Without `load` each option is reckoned as if it were the whole pool."""
    sketches = [sketch for option in options for sketch in option]
    option_of = np.repeat(np.arange(len(options)), [len(option) for option in options])
    rates, slows = np.zeros(len(sketches)), np.zeros(len(sketches))
    able, batch, most = _able(p, sketches)
    if len(able):
        counts = _filled(p, batch, most, np.ones(len(able)))
        [rates[able]], [slows[able]] = _outcomes(p, batch, counts, load or Load(option_of=option_of[able]))
    totals = _sums(rates, option_of, len(options))
    busy = _sums(rates * slows, option_of, len(options))
    return score_of(totals, busy / np.maximum(totals, LEAST_RATE), p.wanted_per_s), rates


def _best_fillings(
    p: Tables, sketches: Sequence[Sketch], many: LaneBatch, counts: Floats, load: Load
) -> Iterator[Draft]:
    """`many` are the sketches' lanes once for each filling."""
    rates, slows = _outcomes(p, many, counts, load, num_fillings=len(many.num_stages) // len(sketches))
    best, lanes = np.argmax(_merit(p, rates, slows), axis=0), np.arange(len(sketches))
    ends = [*many.lane_starts.tolist(), len(many.num_holders)]
    whole = counts.astype(int).tolist()
    columns = (
        sketches,
        (best * len(sketches) + lanes).tolist(),
        rates[best, lanes].tolist(),
        slows[best, lanes].tolist(),
    )
    for sketch, at, rate, slow in zip(*columns, strict=True):
        yield Draft(sketch, tuple(whole[ends[at] : ends[at + 1]]), rate, slow)


def _filled(p: Tables, batch: LaneBatch, kv_tokens: Floats, sharpness: Floats) -> Floats:
    """Layers per stage, [stages], beside so much KV per lane, with speed counting so sharply, [lanes]."""
    caps = capacities(p.offers, p.model, batch, kv_tokens)
    times = _layer_times(p.offers, batch) * p.model.work
    sharp = sharpness[batch.lane_of]
    fastest = np.minimum.reduceat(times, batch.lane_starts)[batch.lane_of]
    times = np.where(sharp == 1.0, times, fastest * (times / fastest) ** sharp)
    extras = p.offers.head_s[batch.holders[batch.stage_starts]] * batch.is_last
    return fill(caps, times, extras, batch, p.model.num_layers)


def _layer_times(offers: OfferTable, batch: LaneBatch) -> Floats:
    """Seconds per layer for a stage's part of the lane's rows: several holders share them."""
    each = offers.step_s[batch.holders] + offers.row_s[batch.holders]
    return np.asarray(1.0 / np.add.reduceat(1.0 / each, batch.stage_starts))


def _outcomes(p: Tables, many: LaneBatch, counts: Floats, load: Load, num_fillings: int = 1) -> tuple[Floats, Floats]:
    """(rates, slowness), [fillings, lanes]."""
    times = lane_times(p, many, counts)
    rates = lane_rates(p, many, times).tokens_per_s
    each = rates.reshape(num_fillings, -1)
    part = _expected_parts(p, each.max(axis=0), load) if load.part is None else load.part
    slows = slowness(answer_times(p, many, times, rates * part), answer_limit_s(p))
    return each, slows.reshape(num_fillings, -1)


def _expected_parts(p: Tables, rates: Floats, load: Load) -> float | Floats:
    """One part for all, or [lanes]."""
    if load.option_of is None:
        return expected_part(p, float(rates.sum()) / load.num_options)
    totals = _sums(rates, load.option_of)[load.option_of]
    return np.minimum(1.0, p.wanted_per_s / np.maximum(totals, LEAST_RATE))


def _sums(values: Floats, option_of: Ints, num_options: int = 0) -> Floats:
    """Of each option's lanes, [options]."""
    return np.asarray(np.bincount(option_of, values, num_options), dtype=np.float64)


def expected_part(p: Tables, most_per_s: float) -> float:
    """The part of its most that each lane will be asked for."""
    return min(1.0, p.wanted_per_s / most_per_s) if most_per_s > 0.0 else 1.0


def _merit(p: Tables, rates: Floats, slow: Floats) -> Floats:
    """Of fillings of one lane: throughput, and what short answers are worth."""
    return np.asarray(score_of(rates, slow, p.wanted_per_s) + 1e-9 * rates)


def polished(
    p: Tables, drafts: Sequence[Draft], load: Load, random: np.random.Generator, num_rounds: int
) -> list[Draft]:
    """The same lanes with better cuts: a few layers go from one stage to another where the lane gains by it."""
    best = list(drafts)
    many = [n for n, draft in enumerate(best) if len(draft.sketch) > 1]
    for _ in range(num_rounds if many else 0):
        trials = [(n, _shifted(best[n].counts, random)) for n in many for _ in range(SHIFTS)]
        batch = lane_batch([best[n].sketch for n, _ in trials])
        counts = np.array([count for _, shifted in trials for count in shifted], dtype=np.float64)
        floor = capacities(p.offers, p.model, batch, np.zeros(len(trials)))
        able = np.minimum.reduceat((counts >= 1.0) & (counts <= floor), batch.lane_starts)
        [rates], [slows] = _outcomes(p, batch, np.maximum(counts, 1.0), load)
        merits = np.where(able, _merit(p, rates, slows), -np.inf)
        for (n, shifted), merit, rate, slow in zip(trials, merits, rates, slows, strict=True):
            now = best[n]
            if merit > _merit(p, np.array(now.rate), np.array(now.slow)) * (1.0 + 1e-9):
                best[n] = Draft(now.sketch, shifted, float(rate), float(slow))
    return best


def _shifted(counts: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
    source, target = random.choice(len(counts), 2, replace=False).tolist()
    moved = list(counts)
    step = int(STEPS[int(random.integers(len(STEPS)))])
    moved[source] -= step
    moved[target] += step
    return tuple(moved)


def drafts_score(p: Tables, rates: Floats, slows: Floats) -> float:
    """The objective over lanes, with the slowness that the drafts have. Each lane counts by its rate: a search that
    trusted the router to leave slow lanes alone (forecast.mean_slowness) found layouts with longer answers."""
    total = float(rates.sum())
    if total <= 0.0:
        return 0.0
    return float(score_of(total, float((rates * slows).sum() / total), p.wanted_per_s))
