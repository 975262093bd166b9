"""A problem with its groups of devices, and lanes drawn at random in it: what the optimum's bounds are tested with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.scheduling.ceilings import KEPT, MISSED, Ceilings, Limits, token_worth
from benchmarks.scheduling.stages import Groups, kinds_of
from coordinator.scheduler.forecast import (
    TOO_SLOW_WORTH,
    LaneTimes,
    Tables,
    answer_limit_s,
    answer_times,
    lane_rates,
    lane_times,
    latencies,
    tables_of,
)
from coordinator.scheduler.links import Ints
from coordinator.scheduler.plan import Problem
from coordinator.scheduler.tables import LaneBatch, Sketch, lane_batch


@dataclass(frozen=True)
class Known:
    """A lane as the forecast has it: its most (of which a hundredth counts if it misses the bound), what it is worth,
    and G at its most."""

    rate: float
    worth: float
    least: float
    limits: Limits


class Pool:
    """A problem with its groups, and lanes drawn at random in it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.p: Tables = tables_of(problem)
        self.kinds = kinds_of(self.p)
        self.groups = Groups(self.p, self.kinds)
        self._random = np.random.default_rng(seed)

    def ceilings(self, limits: Limits) -> Ceilings:
        return Ceilings(self.p, self.groups, limits)

    def drawn(self) -> tuple[Sketch, tuple[int, ...]]:
        """Some devices as some stages with some numbers of layers; whether they fit is open."""
        num_layers, num = self.p.model.num_layers, len(self.p.offers.memory)
        members = self._random.permutation(num)[: int(self._random.integers(1, num + 1))].tolist()
        size = int(self._random.integers(1, min(len(members), num_layers) + 1))
        sketch: list[list[int]] = [[member] for member in members[:size]]
        for member in members[size:]:
            sketch[int(self._random.integers(size))].append(member)
        weights = self.p.offers.memory[[stage[0] for stage in sketch]] * self._random.uniform(0.7, 1.3, size)
        counts = np.maximum(1, np.floor(num_layers * weights / weights.sum())).astype(int)
        counts[int(np.argmax(counts))] += num_layers - counts.sum()
        return tuple(tuple(stage) for stage in sketch), tuple(counts.tolist())

    def lane(self, sketch: Sketch) -> Ints:
        kind_of = {i: kind for kind, members in enumerate(self.kinds.members) for i in members}
        numbers = [np.bincount([kind_of[i] for i in s], minlength=len(self.kinds.members)) for s in sketch]
        return np.array([[self.groups.index[tuple(n.tolist())] for n in numbers]], dtype=np.intp)

    def times(self, sketch: Sketch, counts: tuple[int, ...]) -> tuple[LaneBatch, LaneTimes]:
        """As the forecast has it."""
        batch = lane_batch([sketch])
        return batch, lane_times(self.p, batch, np.array(counts, dtype=float))

    def known(self, sketch: Sketch, counts: tuple[int, ...]) -> Known | None:
        """None if the layers do not fit, or it serves nothing."""
        lane = self.lane(sketch)
        if min(counts) < 1 or not self.groups.fit(tuple(lane[0].tolist()), counts):
            return None
        batch, times = self.times(sketch, counts)
        rates = lane_rates(self.p, batch, times)
        bound = self.p.problem.bound
        keeps = bool(rates.tpot_s[0] <= bound.tpot_s and rates.ttft_s[0] <= bound.ttft_s)
        worth = rates.tokens_per_s * token_worth(
            answer_times(self.p, batch, times, rates.tokens_per_s) / answer_limit_s(self.p)
        )
        rate = rates.tokens_per_s if keeps else rates.tokens_per_s / TOO_SLOW_WORTH
        tpot_s, ttft_s = latencies(self.p, batch, times, rate)
        least = float(tpot_s[0] + ttft_s[0] / self.p.problem.workload.num_answer_tokens)
        return Known(float(rate[0]), float(worth[0]), least, KEPT if keeps else MISSED) if rate[0] > 0.0 else None
