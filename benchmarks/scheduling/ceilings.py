"""What lanes can be worth at most, over all their cuts: bounds that never fall short, for the exact optimum.

Of a lane at rate x call G = TPOT + TTFT / answer. It decides both how many sessions are open (x G) and how long a mean
answer takes, and it is a sum over stages, each a function of its number of layers. So the least G over all cuts bounds
what the lane can be worth. For up to two stages all cuts are tried. For more, the sum is bounded by replacing each
stage's increments, layer by layer, by the least that follow, which makes it convex: then the smallest increments of all
stages together are the best cut, and where increments never fall anyway, the bound is exact.

What a lane may take of a latency bound is less than all of it, by what it takes without load (forecast.PLANNED_LOAD):
its rise over a part of that, too, is a sum over stages, and is bounded in the same way (`Limits`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np

from benchmarks.scheduling.stages import ALONE, ANY, FIRST, LAST, MIDDLE, Groups, Numbers, Terms
from benchmarks.scheduling.worlds import ENDLESS
from coordinator.scheduler.cost import MIN_TIME_S, PREFILL_CHUNK_TOKENS
from coordinator.scheduler.forecast import (
    PLANNED_KV,
    PLANNED_LOAD,
    TOKEN_BYTES,
    TOO_SLOW_WORTH,
    Tables,
    answer_limit_s,
    score_of,
    slowness,
)
from coordinator.scheduler.links import Floats, Ints
from coordinator.scheduler.tables import Bools

CHUNK = 300
"""Lanes at once."""
MIXTURES = (0.25, 0.5, 0.75)
"""Of the two latency bounds, each relative to its limit: a cut that keeps both keeps every mixture of them."""
FASTEST = float(score_of(1.0, 0.0, ENDLESS))
"""What one token per second is worth if answers take no time, while demand has no end."""
SLOWEST = float(score_of(1.0, 1.0, ENDLESS))
"""The same if answers take as long as the bound allows."""
TRIP_STEP = 1.01
MOST_TRIP_S = 1e9
MOST_IN_ORDER = 8
"""Stages for which the orders are tried (optimum.py); for more, each stage's hop is bounded alone."""


@dataclass(frozen=True)
class Limits:
    """What lanes keep at their most: each latency less `alone` times what it is without load is at most `tpot`, `ttft`
    times its bound. `worth`: what counts of their tokens."""

    alone: float
    tpot: float
    ttft: float
    worth: float


KEPT = Limits(1.0 - PLANNED_LOAD, PLANNED_LOAD, PLANNED_LOAD, 1.0)
"""Of lanes that keep the bound. From alone + PLANNED_LOAD * (bound - alone), with all that depends on load to the
left."""
MISSED = Limits(2.0, 1.0, math.inf, TOO_SLOW_WORTH)
"""Of lanes that do not, even without load: the greater of the bound and of twice the time alone is less than both
together."""


@dataclass(frozen=True)
class Hops:
    """What lanes' hops take, [lanes], if the uplinks carry nothing else: as part of TPOT and of TTFT, and the slowest
    one's bytes, in seconds."""

    tpot_s: Floats
    ttft_s: Floats
    slowest_s: Floats

    def at(self, lanes: Ints | slice) -> Hops:
        return Hops(self.tpot_s[lanes], self.ttft_s[lanes], self.slowest_s[lanes])


@dataclass(frozen=True)
class Found:
    """The least G, [lanes] (inf: the rate is out of reach), and the cuts that promise it."""

    least: Floats
    counts: Ints

    @property
    def is_reached(self) -> Bools:
        return np.isfinite(self.least)


@dataclass(frozen=True)
class Rises:
    """Lanes' latencies less what is left out of them (Limits), as parts of what they may be: the stages' [lanes,
    stages, layers], and the hops' [lanes]."""

    row: Floats
    prompt: Floats
    row_hops: Floats
    prompt_hops: Floats

    def at(self, lanes: Ints) -> Rises:
        return Rises(self.row[lanes], self.prompt[lanes], self.row_hops[lanes], self.prompt_hops[lanes])

    def are_kept(self, caps: Ints) -> Bools:
        """Whether no mixture of the two latency bounds is out of reach with at most so many layers per stage."""
        kept = np.ones(len(caps), dtype=bool)
        for part in (0.0, *MIXTURES, 1.0):
            left = np.flatnonzero(kept)
            mixed = self.row[left] * part + self.prompt[left] * (1.0 - part)
            hops = self.row_hops[left] * part + self.prompt_hops[left] * (1.0 - part)
            kept[left] = _least_sum(mixed, caps[left])[0] + hops <= 1.0
        return kept


class Ceilings:
    """Lanes are [lanes, stages] of groups: in order if `ordered`, else without order, and ends are whatever is best."""

    def __init__(self, p: Tables, groups: Groups, limits: Limits = KEPT) -> None:
        self._p, self._groups, self._limits = p, groups, limits
        self._most_tpot_s = limits.tpot * p.problem.bound.tpot_s
        self._most_ttft_s = limits.ttft * p.problem.bound.ttft_s
        workload = p.problem.workload
        self._answer = workload.num_answer_tokens
        self._chunk = min(workload.num_prompt_tokens, PREFILL_CHUNK_TOKENS)
        self._num_more = max(0.0, workload.num_prompt_tokens / self._chunk - 1.0)
        self._limit_s = answer_limit_s(p)
        self._most_sessions = float(groups.most_sessions.max(initial=0.0))

    def worth(self, rates: Floats, least: Floats) -> Floats:
        """Of lanes at these rates, if the demand has no end (forecast.score_of)."""
        return rates * token_worth(self._answer * least / self._limit_s)

    def able(self, lanes: Ints, hops: Hops, worth: float, *, ordered: bool) -> Ints:
        """Those that this bound does not exclude from being worth so much."""
        live, rate = np.arange(len(lanes)), worth / self._limits.worth / FASTEST
        for _ in range(3):
            if not len(live):
                break
            found = self.least(lanes[live], hops.at(live), np.full(len(live), rate), ordered=ordered)
            live = live[found.is_reached]
            least = found.least[found.is_reached]
            if len(live) and self._limits.worth < 1.0:  # they are asked for no more than this part
                rates = np.full(len(live), rate * self._limits.worth)
                least = self.least(lanes[live], hops.at(live), rates, ordered=ordered).least
            needed = worth / self._limits.worth / token_worth(self._answer * least / self._limit_s)
            if not len(live) or needed.min() <= rate * 1.002:
                break
            rate = float(needed.min())
        return live

    def at_a_glance(self, numbers: Numbers) -> float:
        """What no lane of these devices is worth: by their work and memory alone, whatever the stages are."""
        room = self._groups.most_room(numbers)
        if room < 1.0:
            return 0.0
        row_s, prompt_s = self._groups.least_alone(numbers)
        least = row_s + self._chunk * prompt_s / self._answer
        rate = min(self._groups.most_rate(numbers), max(PLANNED_KV * room, 1.0) / least)
        return self._limits.worth * float(self.worth(np.array(rate), np.array(least)))

    # ------------------------------------------------------------ hops

    def any_hops(self, lanes: Ints) -> Hops:
        """The least that hops can take in any order."""
        size = lanes.shape[1]
        between = self._groups.hop_s[lanes[:, :, None], lanes[:, None, :]].copy()
        between[:, np.arange(size), np.arange(size)] = np.inf
        delays_s = between.min(axis=2).sum(axis=1) if size > 1 else np.zeros(len(lanes))
        uploads = np.sort(self._groups.upload_s[lanes], axis=1)[:, :-1]
        return self._hops(delays_s, uploads, np.zeros(len(lanes)))

    def hops_of(self, lanes: Ints) -> Hops:
        """Of lanes in this order."""
        size = lanes.shape[1]
        if size > MOST_IN_ORDER:
            return self.any_hops(lanes)
        following = np.roll(lanes, -1, axis=1)
        delays_s = self._groups.hop_s[lanes, following].sum(axis=1) if size > 1 else np.zeros(len(lanes))
        uploads = self._groups.upload_s[lanes]
        return self._hops(delays_s, uploads[:, :-1], uploads[:, -1] * TOKEN_BYTES * (size > 1))

    def _hops(self, delays_s: Floats, uploads: Floats, back_s: Floats) -> Hops:
        each = uploads * self._p.model.hidden_bytes
        total = each.sum(axis=1)
        slowest = each.max(axis=1, initial=0.0)
        return Hops(delays_s + total + back_s, delays_s + self._chunk * total, slowest)

    # ------------------------------------------------------------ the least G

    def least(self, lanes: Ints, hops: Hops, rates: Floats, *, ordered: bool) -> Found:
        """Over all cuts that keep the bound at these rates."""
        if len(lanes) > CHUNK:
            parts = [slice(i, i + CHUNK) for i in range(0, len(lanes), CHUNK)]
            each = [self.least(lanes[part], hops.at(part), rates[part], ordered=ordered) for part in parts]
            return Found(np.concatenate([f.least for f in each]), np.concatenate([f.counts for f in each]))
        waits_s = np.zeros(len(lanes)) if ordered else self._any_waits(lanes, rates)
        terms = self._terms(lanes, hops, rates, ordered=ordered)
        if lanes.shape[1] <= 2:
            return self._listed(terms, hops, rates, waits_s)
        return self._convex(terms, hops, rates, waits_s)

    def _any_waits(self, lanes: Ints, rates: Floats) -> Floats:
        """[lanes] seconds that rows wait for uplinks whatever the order is: any stage may be the last one, whose
        uplink carries next to nothing."""
        own_rates, which = np.unique(rates, return_inverse=True)
        num = len(self._groups.numbers)
        keys, where = np.unique((which.reshape(-1, 1) * num + lanes).ravel(), return_inverse=True)
        waits_s = self._groups.least_waits(keys % num, own_rates[keys // num])[where].reshape(lanes.shape)
        return np.asarray(waits_s.sum(axis=1) - waits_s.max(axis=1))

    def _terms(self, lanes: Ints, hops: Hops, rates: Floats, *, ordered: bool) -> Terms:
        """What each stage takes, [lanes, stages, layers]. How long rows wait for others depends on the whole trip, and
        grows with it: the least that the trip can take stands in for it, rounded down so that many lanes share it."""
        ends = np.full(lanes.shape, ANY)
        if lanes.shape[1] == 1:
            ends[:] = ALONE
        elif ordered:
            ends[:, :] = MIDDLE
            ends[:, 0], ends[:, -1] = FIRST, LAST
        sessions = self._groups.most_sessions[lanes] if not ordered else self._groups.sessions[ends, lanes]
        rough = self._tabled(lanes, ends, rates, None)
        caps = np.maximum(1, _caps(sessions, np.ones(len(lanes))))
        sums = _least_sum(rough, caps)[0] if lanes.shape[1] > 1 else rough[:, 0, -1]
        trips_s = np.maximum(MIN_TIME_S, sums + hops.tpot_s)
        finite = np.where(np.isfinite(trips_s), trips_s, MOST_TRIP_S)
        rounded = TRIP_STEP ** np.floor(np.log(np.minimum(finite, MOST_TRIP_S)) / np.log(TRIP_STEP))
        terms: Terms = self._tabled(lanes, ends, rates, rounded)
        return terms

    @overload
    def _tabled(self, lanes: Ints, ends: Ints, rates: Floats, trips_s: None) -> Floats: ...
    @overload
    def _tabled(self, lanes: Ints, ends: Ints, rates: Floats, trips_s: Floats) -> Terms: ...
    def _tabled(self, lanes: Ints, ends: Ints, rates: Floats, trips_s: Floats | None) -> Terms | Floats:
        """Each different combination is reckoned once."""
        pairs = np.stack([rates, np.zeros(len(rates)) if trips_s is None else trips_s])
        pairs, which = np.unique(pairs, axis=1, return_inverse=True)
        num = len(self._groups.numbers)
        keys = (which.reshape(-1, 1) * (ANY + 1) + ends) * num + lanes
        keys, where = np.unique(keys.ravel(), return_inverse=True)
        groups, rest = keys % num, keys // num
        own_rates, own_trips_s = pairs[:, rest // (ANY + 1)]
        places, is_open = rest % (ANY + 1), bool((ends == ANY).all())
        if trips_s is None:
            rough = (
                self._groups.least_rough(groups, own_rates)
                if is_open
                else self._groups.rough(groups, places, own_rates)
            )
            return rough[where].reshape(*lanes.shape, -1)
        terms = (
            self._groups.least_terms(groups, own_rates, own_trips_s, self._limits.alone)
            if is_open
            else self._groups.terms(groups, places, own_rates, own_trips_s, self._limits.alone)
        )
        return terms.take(where, lanes.shape)

    def _listed(self, terms: Terms, hops: Hops, rates: Floats, waits_s: Floats) -> Found:
        """By all cuts."""
        part = 1.0 - self._limits.alone
        more = self._chunk * self._num_more
        cuts = _all_cuts(self._groups.num_layers, terms.fixed_s.shape[1])

        def each(part: Floats) -> list[Floats]:
            return [part[:, stage, cuts[:, stage]] for stage in range(cuts.shape[1])]

        slowest_s = np.maximum(np.maximum.reduce(each(terms.slowest_s)), hops.slowest_s[:, None])
        slowest_alone_s = np.maximum(np.maximum.reduce(each(terms.slowest_alone_s)), hops.slowest_s[:, None])
        ttft_s = sum(each(self._chunk * terms.prefill_s + terms.fixed_s)) + more * slowest_s
        ttft_s = ttft_s + (hops.ttft_s + self._chunk * waits_s)[:, None]
        least = sum(each(terms.response_s)) + (hops.tpot_s + waits_s)[:, None] + ttft_s / self._answer
        tpot_rise_s = sum(each(terms.row_rise_s)) + (part * hops.tpot_s + waits_s)[:, None]
        ttft_rise_s = sum(each(self._chunk * terms.prompt_rise_s + part * terms.fixed_s))
        ttft_rise_s = ttft_rise_s + (part * hops.ttft_s + self._chunk * waits_s)[:, None]
        slowest_rise_s = np.maximum(part * slowest_s, slowest_s - self._limits.alone * slowest_alone_s)
        kept = tpot_rise_s <= self._most_tpot_s
        kept &= ttft_rise_s + more * slowest_rise_s <= self._most_ttft_s
        kept &= needed_sessions(rates[:, None] * least) <= np.minimum.reduce(each(terms.sessions))
        least = np.where(kept, least, np.inf)
        best = least.argmin(axis=1)
        return Found(least[np.arange(len(least)), best], cuts[best])

    def _convex(self, terms: Terms, hops: Hops, rates: Floats, waits_s: Floats) -> Found:
        """By convex bounds. More sessions leave room for fewer layers, which takes longer, which opens more sessions:
        their number is raised until it suffices."""
        num, size = terms.fixed_s.shape[:2]
        by_stage, slowest_s = self._slowest(terms, hops)
        stage_g = terms.response_s + (self._chunk * (terms.prefill_s + by_stage) + terms.fixed_s) / self._answer
        hops_g = hops.tpot_s + waits_s + (hops.ttft_s + self._chunk * (slowest_s + waits_s)) / self._answer
        rises = self._rises(terms, hops, waits_s, (by_stage, slowest_s))
        least, counts = np.full(num, np.inf), np.zeros((num, size), dtype=np.intp)
        live, sessions = np.arange(num), needed_sessions(rates * hops_g)
        while len(live):
            caps = _caps(terms.sessions[live], sessions[live])
            live, caps = _enough(live, caps, self._groups.num_layers)
            if not len(live):
                break
            sums, cuts = _least_sum(stage_g[live], caps)
            total = sums + hops_g[live]
            needed = needed_sessions(rates[live] * total)
            done = needed <= sessions[live]
            kept = done & rises.at(live).are_kept(caps)
            least[live[kept]], counts[live[kept]] = total[kept], cuts[kept]
            sessions[live] = np.maximum(sessions[live], needed)
            live = live[~done & (needed <= self._most_sessions)]
        return Found(least, counts)

    def _slowest(self, terms: Terms, hops: Hops) -> tuple[Floats, Floats]:
        """(stages', [lanes, stages, layers], and hops', [lanes]) parts of a bound of what further chunks of a prompt
        wait for, per token. The slowest part of the way is at least the slowest hop, and at least the mean of the
        stages: whichever is likely to be more."""
        size = terms.fixed_s.shape[1]
        middle = self._groups.num_layers // size
        by_hop = hops.slowest_s > terms.slowest_s[:, :, middle].mean(axis=1)
        by_stage = np.where(by_hop, 0.0, self._num_more / size)[:, None, None] * terms.slowest_s
        return by_stage, np.where(by_hop, self._num_more * hops.slowest_s, 0.0)

    def _rises(self, terms: Terms, hops: Hops, waits_s: Floats, slowest: tuple[Floats, Floats]) -> Rises:
        part = 1.0 - self._limits.alone
        prompt_s = self._chunk * (terms.prompt_rise_s + part * slowest[0]) + part * terms.fixed_s
        prompt_hops_s = part * (hops.ttft_s + self._chunk * slowest[1]) + self._chunk * waits_s
        return Rises(
            terms.row_rise_s / self._most_tpot_s,
            prompt_s / self._most_ttft_s,
            (part * hops.tpot_s + waits_s) / self._most_tpot_s,
            prompt_hops_s / self._most_ttft_s,
        )

    # ------------------------------------------------------------ over rates

    def most(self, lanes: Ints, hops: Hops, rate: float) -> tuple[Floats, Ints]:
        """(rates that are out of reach, at least `rate`, to 0.1 %; cuts just below) of ordered lanes."""
        low, high = np.full(len(lanes), rate), np.full(len(lanes), np.nan)
        counts = np.zeros(lanes.shape, dtype=np.intp)
        while (open_ := np.flatnonzero(np.isnan(high))).size:
            self._try(lanes, hops, open_, low[open_] * (2.0 if counts[open_].any() else 1.0), low, high, counts)
        for _ in range(10):
            self._try(lanes, hops, np.arange(len(lanes)), (low + high) / 2.0, low, high, counts)
        return high, counts

    def _try(
        self, lanes: Ints, hops: Hops, which: Ints, rates: Floats, low: Floats, high: Floats, counts: Ints
    ) -> None:
        found = self.least(lanes[which], hops.at(which), rates, ordered=True)
        good = found.is_reached
        low[which[good]], counts[which[good]] = rates[good], found.counts[good]
        high[which[~good]] = rates[~good]

    def ceiling(self, lanes: Ints, hops: Hops, low: float, high: Floats) -> Floats:
        """The most that ordered lanes can be worth at rates between `low` and `high`, in steps of 1 %: downwards, to
        where even the answers of the lowest rate would not make up for it."""
        at_low = self.least(lanes, hops, np.full(len(lanes), low), ordered=True)
        most, rates, live = np.zeros(len(lanes)), high.copy(), np.flatnonzero(at_low.is_reached)
        while len(live):
            below = np.maximum(rates[live] / 1.01, low)
            found = self.least(lanes[live], hops.at(live), below, ordered=True)
            most[live] = np.maximum(most[live], self.worth(rates[live], found.least) * found.is_reached)
            rates[live] = below
            live = live[(below > low) & (self.worth(below, at_low.least[live]) > most[live])]
        return most


def token_worth(latency: Floats) -> Floats:
    """Of one token per second, where answers take this part of the longest time that keeps the bound."""
    return np.asarray(FASTEST - (FASTEST - SLOWEST) * slowness(latency, 1.0))


def needed_sessions(num_open: Floats) -> Floats:
    """KV room that a lane needs so that it may have so many sessions open on average (forecast.PLANNED_KV): at least
    one, which it may fill."""
    return np.where(num_open <= 1.0 + 1e-9, 1.0, np.ceil(num_open / PLANNED_KV - 1e-9))


@lru_cache(maxsize=64)
def _all_cuts(num_layers: int, size: int) -> Ints:
    if size == 1:
        return np.array([[num_layers]], dtype=np.intp)
    return np.array([(first, num_layers - first) for first in range(1, num_layers)], dtype=np.intp)


def _caps(sessions: Floats, needed: Floats) -> Ints:
    """The most layers, [lanes, stages], that leave room for so many sessions."""
    room = sessions >= needed[:, None, None]
    most = room.shape[2] - 1 - room[:, :, ::-1].argmax(axis=2)
    return np.asarray(np.where(room.any(axis=2), most, 0))


def _enough(live: Ints, caps: Ints, num_layers: int) -> tuple[Ints, Ints]:
    good = (caps.sum(axis=1) >= num_layers) & (caps.min(axis=1) > 0)
    return live[good], caps[good]


def _least_sum(stages: Floats, caps: Ints) -> tuple[Floats, Ints]:
    """(a bound of the least sum over stages with together all layers, the cuts that it would have)."""
    num, size, width = stages.shape
    steps = np.where(np.arange(2, width) <= caps[:, :, None], stages[:, :, 2:] - stages[:, :, 1:-1], np.inf)
    steps = np.minimum.accumulate(steps[:, :, ::-1], axis=2)[:, :, ::-1].reshape(num, size * (width - 2))
    lowest = np.where(np.arange(1, width) <= caps[:, :, None], stages[:, :, 1:], np.inf).min(axis=2).sum(axis=1)
    chosen = np.argpartition(steps, width - 2 - size, axis=1)[:, : width - 1 - size]
    counts = 1 + (chosen[:, :, None] // (width - 2) == np.arange(size)).sum(axis=1)
    convex = stages[:, :, 1].sum(axis=1) + np.take_along_axis(steps, chosen, 1).sum(axis=1)
    return np.maximum(convex, lowest), counts
