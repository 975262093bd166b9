"""What lanes can be worth at most, over all their cuts: bounds that never fall short, for the exact optimum.

Of a lane at rate x call G = TPOT + TTFT / answer. It decides both how many sessions are open (x G) and how long a mean
answer takes, and it is a sum over stages, each a function of its number of layers. So the least G over all cuts bounds
what the lane can be worth. For up to two stages all cuts are tried. For more, the sum is bounded by replacing each
stage's increments, layer by layer, by the least that follow, which makes it convex: then the smallest increments of all
stages together are the best cut, and where increments never fall anyway, the bound is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np

from benchmarks.scheduling.stages import ALONE, ANY, FIRST, LAST, MIDDLE, Groups, Terms
from benchmarks.scheduling.worlds import ENDLESS
from coordinator.scheduler.cost import MIN_TIME_S, PREFILL_CHUNK_TOKENS
from coordinator.scheduler.forecast import TOKEN_BYTES, Tables, answer_limit_s, score_of, slowness
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
class Hops:
    """What lanes' hops take, [lanes]: as part of TPOT and of TTFT, and the slowest one's bytes, in seconds."""

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


class Ceilings:
    """Lanes are [lanes, stages] of groups: in order if `ordered`, else without order, and ends are whatever is best."""

    def __init__(self, p: Tables, groups: Groups) -> None:
        self._p, self._groups = p, groups
        workload = p.problem.workload
        self._answer = workload.num_answer_tokens
        self._chunk = min(workload.num_prompt_tokens, PREFILL_CHUNK_TOKENS)
        self._num_more = max(0.0, workload.num_prompt_tokens / self._chunk - 1.0)
        self._limit_s = answer_limit_s(p)

    def worth(self, rates: Floats, least: Floats) -> Floats:
        """Of lanes at these rates, if the demand has no end (forecast.score_of)."""
        return rates * token_worth(self._answer * least / self._limit_s)

    def able(self, lanes: Ints, hops: Hops, worth: float, *, ordered: bool) -> Ints:
        """Those that this bound does not exclude from being worth so much."""
        live, rate = np.arange(len(lanes)), worth / FASTEST
        for _ in range(3):
            if not len(live):
                break
            found = self.least(lanes[live], hops.at(live), np.full(len(live), rate), ordered=ordered)
            live = live[found.is_reached]
            needed = worth / token_worth(self._answer * found.least[found.is_reached] / self._limit_s)
            if not len(live) or needed.min() <= rate * 1.002:
                break
            rate = float(needed.min())
        return live

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
        terms = self._terms(lanes, hops, rates, ordered=ordered)
        if lanes.shape[1] <= 2:
            return self._listed(terms, hops, rates)
        return self._convex(terms, hops, rates)

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
            self._groups.least_terms(groups, own_rates, own_trips_s)
            if is_open
            else self._groups.terms(groups, places, own_rates, own_trips_s)
        )
        return terms.take(where, lanes.shape)

    def _listed(self, terms: Terms, hops: Hops, rates: Floats) -> Found:
        """By all cuts."""
        bound = self._p.problem.bound
        cuts = _all_cuts(self._groups.num_layers, terms.fixed_s.shape[1])

        def each(part: Floats) -> list[Floats]:
            return [part[:, stage, cuts[:, stage]] for stage in range(cuts.shape[1])]

        tpot_s = sum(each(terms.response_s)) + hops.tpot_s[:, None]
        ttft_s = sum(each(self._chunk * terms.prefill_s + terms.fixed_s)) + hops.ttft_s[:, None]
        slowest_s = np.maximum(np.maximum.reduce(each(terms.slowest_s)), hops.slowest_s[:, None])
        ttft_s = ttft_s + self._chunk * self._num_more * slowest_s
        least = tpot_s + ttft_s / self._answer
        kept = (tpot_s <= bound.tpot_s) & (ttft_s <= bound.ttft_s)
        kept &= rates[:, None] * least <= np.minimum.reduce(each(terms.sessions)) + 1e-9
        least = np.where(kept, least, np.inf)
        best = least.argmin(axis=1)
        return Found(least[np.arange(len(least)), best], cuts[best])

    def _convex(self, terms: Terms, hops: Hops, rates: Floats) -> Found:
        """By convex bounds. More sessions leave room for fewer layers, which takes longer, which opens more sessions:
        their number is raised until it suffices."""
        num, size = terms.fixed_s.shape[:2]
        prefill_s, ttft_hops_s = self._ttft(terms, hops)
        stage_g = terms.response_s + prefill_s / self._answer
        hops_g = hops.tpot_s + ttft_hops_s / self._answer
        least, counts = np.full(num, np.inf), np.zeros((num, size), dtype=np.intp)
        live, sessions = np.arange(num), np.maximum(1.0, np.ceil(rates * hops_g - 1e-9))
        while len(live):
            caps = _caps(terms.sessions[live], sessions[live])
            live, caps = _enough(live, caps, self._groups.num_layers)
            if not len(live):
                break
            sums, cuts = _least_sum(stage_g[live], caps)
            total = sums + hops_g[live]
            needed = np.ceil(rates[live] * total - 1e-9)
            done = needed <= sessions[live]
            kept = done & self._keeps(
                terms.response_s[live], prefill_s[live], hops.tpot_s[live], ttft_hops_s[live], caps
            )
            least[live[kept]], counts[live[kept]] = total[kept], cuts[kept]
            sessions[live] = np.maximum(sessions[live], needed)
            live = live[~done & (total <= self._p.problem.bound.tpot_s + self._p.problem.bound.ttft_s / self._answer)]
        return Found(least, counts)

    def _ttft(self, terms: Terms, hops: Hops) -> tuple[Floats, Floats]:
        """(stages', hops') parts of a bound of TTFT. The slowest part of the way is at least the slowest hop, and at
        least the mean of the stages: whichever is likely to be more."""
        size = terms.fixed_s.shape[1]
        middle = self._groups.num_layers // size
        by_hop = hops.slowest_s > terms.slowest_s[:, :, middle].min(axis=1)
        weight = np.where(by_hop, 0.0, self._num_more / size)[:, None, None]
        stages_s = self._chunk * (terms.prefill_s + weight * terms.slowest_s) + terms.fixed_s
        return stages_s, hops.ttft_s + self._chunk * self._num_more * np.where(by_hop, hops.slowest_s, 0.0)

    def _keeps(self, response_s: Floats, prefill_s: Floats, tpot_s: Floats, ttft_s: Floats, caps: Ints) -> Bools:
        """Whether no mixture of the two latency bounds is out of reach."""
        bound = self._p.problem.bound
        kept = np.ones(len(caps), dtype=bool)
        for part in (0.0, *MIXTURES, 1.0):
            left = np.flatnonzero(kept)
            mixed = response_s[left] * (part / bound.tpot_s) + prefill_s[left] * ((1.0 - part) / bound.ttft_s)
            hops = tpot_s[left] * (part / bound.tpot_s) + ttft_s[left] * ((1.0 - part) / bound.ttft_s)
            kept[left] = _least_sum(mixed, caps[left])[0] + hops <= 1.0
        return kept

    # ------------------------------------------------------------ over rates

    def most(self, lanes: Ints, hops: Hops, rate: float) -> tuple[Floats, Ints]:
        """(rates that are out of reach, at least `rate`, to 0.1 %; cuts just below) of ordered lanes."""
        low, high = np.full(len(lanes), rate), np.full(len(lanes), np.nan)
        counts = np.zeros(lanes.shape, dtype=np.intp)
        while (open_ := np.flatnonzero(np.isnan(high))).size:
            self._try(lanes, hops, open_, low[open_] * (1.15 if counts[open_].any() else 1.0), low, high, counts)
        for _ in range(7):
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
        """The most that ordered lanes can be worth at rates between `low` and `high`, in steps of 1 %."""
        most, rates, live = np.zeros(len(lanes)), np.full(len(lanes), low), np.arange(len(lanes))
        while len(live):
            following = np.minimum(rates[live] * 1.01, high[live])
            found = self.least(lanes[live], hops.at(live), rates[live], ordered=True)
            worth = self.worth(following, np.where(found.is_reached, found.least, 0.0))
            most[live] = np.maximum(most[live], np.where(found.is_reached, worth, 0.0))
            rates[live] = following
            live = live[found.is_reached & (following < high[live])]
        return most


def token_worth(latency: Floats) -> Floats:
    """Of one token per second, where answers take this part of the longest time that keeps the bound."""
    return np.asarray(FASTEST - (FASTEST - SLOWEST) * slowness(latency, 1.0))


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
