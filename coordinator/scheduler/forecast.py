"""What lanes are expected to do, many at once: time per token, time to first token, throughput within the bound.

A lane at rate x (tokens per second) keeps x * (TTFT / answer + TPOT) sessions open (Little's law): the most it can do
is the largest x at which TPOT and TTFT keep the bound and the sessions find KV room. All three grow with x, so it is
found by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS
from coordinator.scheduler.plan import Forecast, Lane, Problem, Stage
from coordinator.scheduler.tables import (
    Floats,
    LaneBatch,
    ModelTable,
    OfferTable,
    Sketch,
    lane_batch,
    model_table,
    offer_table,
    wanted_rate,
)
from protocol.values import LayerRange

BISECTIONS = 10
TOKEN_BYTES = 4
LEAST_SLACK = 1e-6
"""In place of none: times come out a million times too long instead of infinite, and no operation is undefined."""
TOO_SLOW_WORTH = 0.01
"""Of the tokens of a lane that cannot keep the bound even for one request alone. Next to nothing beside lanes that do,
but a pool of slow machines is to be planned, too."""
DEMANDS = np.array([0.7, 1.0, 1.4, 2.0])
CHANCES = np.array([0.2, 0.35, 0.3, 0.15])
"""What the next hour may want, in parts of what is wanted now, and how likely: bursts come, devices leave, estimates
are wrong. What a plan serves is the mean over these."""
LATENCY_WEIGHT = 0.8
SLOWNESS_SCALE = 100.0
SPARE_WEIGHT = 0.05
PLANNED_LOAD = 0.75
"""A lane's most is where this part of the room between its idle latency and the bound is used: at the bound itself on
average, every other request would miss it."""
PLANNED_KV = 0.85
"""Of the KV room that sessions fill on average: they come by chance and are not all alike, and who finds no room
waits."""


@dataclass(frozen=True, slots=True)
class LaneTimes:
    """What lanes' holders and hops take: input of every forecast."""

    share: Floats
    """[holders] of their stage's sessions: 1 of a lone holder."""
    fixed_s: Floats
    row_s: Floats
    prefill_s: Floats
    """[holders] per step, row and prompt token."""
    num_sessions: Floats
    """[lanes] KV room, in sessions."""
    hops_s: Floats
    """[lanes] all hops of one row."""
    prompt_hop_s: Floats
    """[stages] of each hop, per prompt token, if the uplink carries nothing else."""
    up_s: Floats
    """[holders] that a row keeps the uplink busy."""
    way_s: Floats
    """[lanes] of the first token beside its prompt: delays and one step of each stage."""


@dataclass(frozen=True, slots=True)
class LaneRates:
    """Forecasts of lanes, [lanes]: alone and at most."""

    tokens_per_s: Floats
    tpot_s: Floats
    ttft_s: Floats
    num_sessions: Floats


@dataclass(frozen=True, slots=True)
class Tables:
    """A problem with its tables, made once."""

    problem: Problem
    offers: OfferTable
    model: ModelTable
    wanted_per_s: float


def tables_of(problem: Problem) -> Tables:
    """Tables of this problem."""
    wanted = wanted_rate(problem.workload, problem.bound.tpot_s, len(problem.offers))
    return Tables(problem, offer_table(problem), model_table(problem), wanted)


def lane_times(p: Tables, batch: LaneBatch, counts: Floats) -> LaneTimes:
    """Times of lanes whose stages have `counts` layers."""
    o, m, holders = p.offers, p.model, batch.holders
    work = (counts * m.work)[batch.stage_of]
    fixed_s = work * o.step_s[holders] + o.head_s[holders] * batch.is_last[batch.stage_of]
    rooms = _kv_rooms(p, batch, counts)
    share = _shares(rooms, fixed_s, batch)
    is_ring = (batch.num_stages > 1)[batch.lane_of]  # the holders of a lone stage send each other nothing
    delay_s = _hop_delays(p, batch) * is_ring
    token_s = np.where(batch.is_last, float(TOKEN_BYTES), m.hidden_bytes) * _mean(1.0 / o.uploads[holders], batch)
    token_s *= is_ring
    up_bytes = np.where(batch.is_last, 0.0, m.hidden_bytes * is_ring)  # a token is nothing beside it
    delays_s = np.add.reduceat(delay_s, batch.lane_starts)
    return LaneTimes(
        share,
        fixed_s,
        row_s=work * o.row_s[holders],
        prefill_s=work * o.prefill_s[holders],
        num_sessions=np.minimum.reduceat(np.floor(rooms / share + 1e-9), batch.holder_starts),
        hops_s=delays_s + np.add.reduceat(token_s, batch.lane_starts),
        prompt_hop_s=np.where(batch.is_last, 0.0, token_s),
        up_s=up_bytes[batch.stage_of] / o.uploads[holders],
        way_s=delays_s + np.add.reduceat(fixed_s * share, batch.holder_starts),
    )


def lane_rates(p: Tables, batch: LaneBatch, times: LaneTimes) -> LaneRates:
    """The most each lane does within the bound, and how fast it answers one request alone.

    A lane that is too slow for the bound counts with a small part (TOO_SLOW_WORTH) of what it does in twice the time
    that one request alone takes."""
    bound, answer = p.problem.bound, p.problem.workload.num_answer_tokens
    lanes = _Lanes(p, batch, times)
    low = np.zeros(len(batch.lane_starts))
    alone_tpot_s, alone_ttft_s = lanes.latencies(low)
    high = np.minimum(lanes.most_per_s(), times.num_sessions / (alone_tpot_s + alone_ttft_s / answer))
    keeps = (alone_tpot_s <= bound.tpot_s) & (alone_ttft_s <= bound.ttft_s)
    most_tpot_s = np.where(keeps, _planned(alone_tpot_s, bound.tpot_s), np.maximum(bound.tpot_s, 2 * alone_tpot_s))
    most_ttft_s = np.where(keeps, _planned(alone_ttft_s, bound.ttft_s), np.maximum(bound.ttft_s, 2 * alone_ttft_s))
    num_sessions = np.maximum(PLANNED_KV * times.num_sessions, np.minimum(1.0, times.num_sessions))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tpot_s, ttft_s = lanes.latencies(middle)
        ok = (tpot_s <= most_tpot_s) & (ttft_s <= most_ttft_s)
        ok &= middle * (tpot_s + ttft_s / answer) <= num_sessions
        low, high = np.where(ok, middle, low), np.where(ok, high, middle)
    rates = np.where(keeps, low, low * TOO_SLOW_WORTH)
    return LaneRates(rates, alone_tpot_s, alone_ttft_s, times.num_sessions)


def _planned(alone_s: Floats, bound_s: float) -> Floats:
    return np.asarray(alone_s + PLANNED_LOAD * (bound_s - alone_s))


def latencies(p: Tables, batch: LaneBatch, times: LaneTimes, tokens_per_s: Floats) -> tuple[Floats, Floats]:
    """(TPOT, TTFT) of each lane at this rate; a million times too long where a holder has more to do than it can."""
    return _Lanes(p, batch, times).latencies(tokens_per_s)


class _Lanes:
    """Lanes whose latencies are asked at one rate after the other: what does not depend on it is reckoned once."""

    def __init__(self, p: Tables, batch: LaneBatch, times: LaneTimes) -> None:
        self._batch, self._times = batch, times
        self._first_s = times.fixed_s + times.row_s
        prompts = _prompts_per_token(p)
        self._prompt_s = prompts * times.prefill_s
        self._sent_s = (1.0 + prompts) * times.up_s
        self._shared_up_s = times.share * times.up_s
        num_tokens = p.problem.workload.num_prompt_tokens
        self._chunk = min(num_tokens, PREFILL_CHUNK_TOKENS)
        self._num_more = max(0.0, num_tokens / self._chunk - 1.0) if self._chunk else 0.0

    def most_per_s(self) -> Floats:
        """The rate at which the busiest holder of each lane has no time left, or its uplink."""
        holder_s = self._times.share * np.maximum(self._times.row_s + self._prompt_s, self._sent_s)
        return np.asarray(1.0 / np.maximum.reduceat(holder_s, self._batch.holder_starts))

    def latencies(self, tokens_per_s: Floats) -> tuple[Floats, Floats]:
        """cost.response_s for many holders: first as if rows waited for themselves, too, which gives about the time of
        a trip; from that follow how many sessions there are and what the others among them do. A stage with several
        holders takes the mean of theirs. Rows wait for an uplink as in a queue of one server (M/M/1): a home's carries
        a few hundred rows per second, which is less than its device could do."""
        batch, times, first_s = self._batch, self._times, self._first_s
        rate = tokens_per_s[batch.lane_of_holder] * times.share
        free = np.maximum(1.0 - rate * self._prompt_s, LEAST_SLACK)
        slack = np.maximum(free - rate * times.row_s, LEAST_SLACK)
        sent = np.minimum(rate * self._sent_s, 1.0 - LEAST_SLACK)
        waits_s = self._shared_up_s * sent / (1.0 - sent)
        hops_s = times.hops_s + np.add.reduceat(waits_s, batch.holder_starts)
        roughly_s = self._mean_sums(first_s / slack) + hops_s
        trip_s = roughly_s[batch.lane_of_holder]
        others = np.maximum(0.0, rate - 1.0 / trip_s)
        busy = others * times.row_s
        step_s = first_s / np.maximum(free - busy, LEAST_SLACK)
        step_s = np.minimum(step_s, (first_s + busy * trip_s) / free)
        response_s = step_s * (1.0 + (1.0 - np.minimum(1.0, step_s / trip_s)) * np.minimum(1.0, others * step_s) / 2.0)
        tpot_s = self._mean_sums(response_s) + hops_s
        tpot_s = np.where(np.minimum.reduceat(slack, batch.holder_starts) > LEAST_SLACK, tpot_s, roughly_s)
        return tpot_s, self._ttft_s(times.prefill_s / free, waits_s)

    def _ttft_s(self, token_s: Floats, waits_s: Floats) -> Floats:
        """cost.prefill_s for many lanes, and the way: chunks follow one another through the stages."""
        batch, times = self._batch, self._times
        hop_s = times.prompt_hop_s + _of_stages(waits_s, batch)
        each = self._mean_sums(token_s) + np.add.reduceat(hop_s, batch.lane_starts)
        if not self._num_more:
            return np.asarray(self._chunk * each + times.way_s)
        slowest = np.maximum.reduceat(token_s, batch.holder_starts)
        slowest = np.maximum(slowest, np.maximum.reduceat(hop_s, batch.lane_starts))
        return np.asarray(self._chunk * (each + self._num_more * slowest) + times.way_s)

    def _mean_sums(self, values: Floats) -> Floats:
        """[lanes]: over their stages, each the mean of its holders."""
        shared = values if self._batch.is_plain else values * self._times.share
        return np.asarray(np.add.reduceat(shared, self._batch.holder_starts))


def _prompts_per_token(p: Tables) -> float:
    """Prompt tokens that come with each generated one."""
    workload = p.problem.workload
    return workload.num_prompt_tokens / max(1.0, workload.num_answer_tokens)


def _hop_delays(p: Tables, batch: LaneBatch) -> Floats:
    """One way to the next stage, [stages]; from the last one to the first. With several holders: their mean, each
    against the neighbour's first."""
    rows = p.offers.rows[batch.holders]
    lead = rows[batch.stage_starts]
    num_stages = len(lead)
    following = np.arange(1, num_stages + 1)
    following[batch.is_last] = batch.lane_starts
    out_s = _mean(p.problem.links.pair_delays_s(rows, lead[following][batch.stage_of]), batch)
    if len(rows) == num_stages:
        return out_s
    preceding = np.empty(num_stages, dtype=np.intp)
    preceding[following] = np.arange(num_stages)
    into_s = _mean(p.problem.links.pair_delays_s(lead[preceding][batch.stage_of], rows), batch)
    return (out_s + into_s[following]) / 2.0


def _kv_rooms(p: Tables, batch: LaneBatch, counts: Floats) -> Floats:
    """Sessions that find KV room on each holder, [holders]."""
    m, reserved = p.model, p.problem.workload.num_reserved_tokens
    ends = m.embedding_bytes * batch.is_first + m.head_bytes * batch.is_last
    memory = p.offers.memory[batch.holders] - (counts * m.weight_bytes + ends)[batch.stage_of]
    session = (counts * m.kv_token_bytes * reserved)[batch.stage_of]
    return np.asarray(np.maximum(0.0, memory) / session)


def _shares(rooms: Floats, fixed_s: Floats, batch: LaneBatch) -> Floats:
    """Of a stage's sessions, how many each holder has: by its KV room and its speed alike (the router weighs both),
    [holders]. A session is on one of them with both its rows and its KV."""
    if len(rooms) == len(batch.num_holders):
        return np.ones(len(rooms))
    merit = np.sqrt((rooms + 1e-3) / fixed_s)
    return np.asarray(merit / np.add.reduceat(merit, batch.stage_starts)[batch.stage_of])


def _mean(values: Floats, batch: LaneBatch) -> Floats:
    return values if len(values) == len(batch.num_holders) else _of_stages(values, batch) / batch.num_holders


def _of_stages(values: Floats, batch: LaneBatch) -> Floats:
    """Sums, [stages], of what holders have."""
    return values if len(values) == len(batch.num_holders) else np.asarray(np.add.reduceat(values, batch.stage_starts))


# ---------------------------------------------------------------- the objective


def score_of(rate: Floats | float, slow: Floats | float, wanted: float) -> Floats:
    """What a plan is worth, in tokens per second: what it serves of what may be wanted, less the longer answers take
    (`slow`: the mean of `slowness`), and a little for each doubling of what it could serve: demand is known only when
    it is there, and then it is late to move layers."""
    rate, slow = np.asarray(rate, dtype=float), np.asarray(slow, dtype=float)
    served = np.minimum(rate[..., None], wanted * DEMANDS) @ CHANCES
    return np.asarray(served * (1.0 - LATENCY_WEIGHT * slow) + SPARE_WEIGHT * wanted * np.log2(1.0 + rate / wanted))


def slowness(answers_s: Floats | float, limit_s: float) -> Floats:
    """0 for an answer at once, 1 for one that just keeps the bound: by orders of magnitude, as twice as fast is as
    welcome in a fast pool as in a slow one."""
    part = np.minimum(1.0, np.asarray(answers_s, dtype=float) / limit_s)
    return np.asarray(np.log2(1.0 + SLOWNESS_SCALE * part) / np.log2(1.0 + SLOWNESS_SCALE))


def answer_limit_s(p: Tables) -> float:
    """How long a mean answer takes that just keeps the bound."""
    return p.problem.bound.ttft_s + p.problem.workload.num_answer_tokens * p.problem.bound.tpot_s


def answer_times(p: Tables, batch: LaneBatch, times: LaneTimes, rates: Floats) -> Floats:
    """Seconds of a mean answer on each lane at these rates."""
    tpot_s, ttft_s = latencies(p, batch, times, rates)
    return np.minimum(ttft_s + p.problem.workload.num_answer_tokens * tpot_s, 10.0 * answer_limit_s(p))


# ---------------------------------------------------------------- lanes as values


def lanes_of(problem: Problem, held: Mapping[int, LayerRange]) -> tuple[Lane, ...]:
    """What these offers hold, as lanes: slices that continue each other, each with the nearest of the next ones that
    are left. Every holder is in at most one lane; those that complete none are in none. Fewest stages first."""
    by_range: dict[tuple[int, int], list[int]] = {}
    for index, layers in held.items():
        by_range.setdefault((layers.start, layers.stop), []).append(index)
    rows = {i: problem.links.row(problem.offers[i].key.node_id) for i in held}
    found: list[list[Stage]] = []
    while path := _shortest_path(by_range, problem.model.num_layers):
        while all(piece in by_range for piece in path):  # as long as it can be taken again it stays the shortest
            found.append(_nearest(problem, path, by_range, rows))
    _add_holders(found, by_range)
    return tuple(Lane(tuple(stages)) for stages in found)


def _nearest(
    problem: Problem,
    path: Sequence[tuple[int, int]],
    by_range: dict[tuple[int, int], list[int]],
    rows: Mapping[int, int],
) -> list[Stage]:
    """One holder for each piece, taken out of `by_range`: from the scarcest piece on, the next are the nearest."""
    begin = min(range(len(path)), key=lambda n: len(by_range[path[n]]))
    order = [*range(begin, len(path)), *reversed(range(begin))]
    chosen: dict[int, int] = {}
    near = None
    for n in order:
        near = chosen.get(begin) if n == begin - 1 else near
        choice = by_range[path[n]]
        best = 0
        if near is not None and len(choice) > 1:
            targets = np.array([rows[i] for i in choice], dtype=np.intp)
            best = int(np.argmin(problem.links.pair_delays_s(np.full(len(choice), rows[near]), targets)))
        near = chosen[n] = choice.pop(best)
        if not choice:
            del by_range[path[n]]
    return [Stage(LayerRange(*piece), (chosen[n],)) for n, piece in enumerate(path)]


def _shortest_path(pieces: Mapping[tuple[int, int], list[int]], num_layers: int) -> list[tuple[int, int]]:
    best: dict[int, tuple[int, tuple[int, int] | None]] = {0: (0, None)}
    for start, stop in sorted(pieces):
        if start in best and (stop not in best or best[start][0] + 1 < best[stop][0]):
            best[stop] = (best[start][0] + 1, (start, stop))
    path: list[tuple[int, int]] = []
    at = num_layers
    while at and at in best:
        piece = best[at][1]
        assert piece is not None, "only layer 0 has no way to it"
        path.append(piece)
        at = piece[0]
    return path[::-1] if at == 0 and path else []


def _add_holders(found: list[list[Stage]], left: Mapping[tuple[int, int], list[int]]) -> None:
    """What completes no lane of its own strengthens a stage that has the same layers."""
    for stages in found:
        for i, stage in enumerate(stages):
            more = left.get((stage.layers.start, stage.layers.stop))
            if more:
                stages[i] = Stage(stage.layers, (*stage.holders, *more))
                more.clear()


def lane_forecast(problem: Problem, lane: Lane) -> Forecast:
    """What this lane will do."""
    return lane_forecasts(problem, [lane])[0]


def layout_forecast(problem: Problem, lanes: Sequence[Lane]) -> Forecast:
    """All lanes together: rates and sessions add up, latencies are means by rate."""
    return total_forecast(lane_forecasts(problem, lanes))


def total_forecast(each: Sequence[Forecast]) -> Forecast:
    """Of lanes with these forecasts; without any it takes for ever."""
    if not each:
        return Forecast(float("inf"), float("inf"), 0.0, 0)
    total = sum(f.tokens_per_s for f in each)
    weights = [f.tokens_per_s / total if total else 1.0 / len(each) for f in each]
    return Forecast(
        sum(w * f.tpot_s for w, f in zip(weights, each, strict=True)),
        sum(w * f.ttft_s for w, f in zip(weights, each, strict=True)),
        total,
        sum(f.num_sessions for f in each),
    )


def score(problem: Problem, lanes: Sequence[Lane]) -> float:
    """The objective of phase 1: bigger is better (`score_of`)."""
    if not lanes:
        return 0.0
    p = tables_of(problem)
    batch, counts = _laid_out(lanes)
    times = lane_times(p, batch, counts)
    rates = lane_rates(p, batch, times).tokens_per_s
    return float(layout_score(p, batch, times, rates))


def layout_score(p: Tables, batch: LaneBatch, times: LaneTimes, rates: Floats) -> float:
    """Of lanes whose most are `rates`; each is loaded in proportion to that."""
    total = float(rates.sum())
    if total <= 0.0:
        return 0.0
    loads = rates * min(1.0, p.wanted_per_s / total)
    slow = slowness(answer_times(p, batch, times, loads), answer_limit_s(p))
    return float(score_of(total, mean_slowness(rates, slow, p.wanted_per_s), p.wanted_per_s))


def mean_slowness(rates: Floats, slow: Floats, wanted_per_s: float) -> float:
    """Of what people want, if it goes over the quickest lanes first, as the router does: a lane more never makes
    anybody's answer longer."""
    total = float(rates.sum())
    if total <= wanted_per_s:
        return float((slow * rates).sum()) / total if total > 0.0 else 1.0
    order = np.argsort(slow, kind="stable")
    sorted_rates = rates[order]
    used = np.clip(wanted_per_s - (np.cumsum(sorted_rates) - sorted_rates), 0.0, sorted_rates)
    return float((used * slow[order]).sum() / used.sum())


def lane_forecasts(problem: Problem, lanes: Sequence[Lane]) -> list[Forecast]:
    """What each of these lanes will do, all reckoned at once."""
    if not lanes:
        return []
    p = tables_of(problem)
    batch, counts = _laid_out(lanes)
    rates = lane_rates(p, batch, lane_times(p, batch, counts))
    columns = (rates.tpot_s, rates.ttft_s, rates.tokens_per_s, rates.num_sessions)
    return [
        Forecast(float(tpot_s), float(ttft_s), float(rate), int(num))
        for tpot_s, ttft_s, rate, num in zip(*columns, strict=True)
    ]


def _laid_out(lanes: Sequence[Lane]) -> tuple[LaneBatch, Floats]:
    sketches: list[Sketch] = [tuple(stage.holders for stage in lane.stages) for lane in lanes]
    counts = [float(len(stage.layers)) for lane in lanes for stage in lane.stages]
    return lane_batch(sketches), np.array(counts)
