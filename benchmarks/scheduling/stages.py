"""All ways to hold a stage, for the exact optimum: who holds it is told by kind and number only.

Offers that can be exchanged for one another without any effect are of one kind. What a stage takes is tabulated over
its number of layers, by the same physics as coordinator/scheduler/forecast.py (a test compares them).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduler.forecast import LEAST_SLACK, Tables
from coordinator.scheduler.links import Floats, Ints

MIDDLE, FIRST, LAST, ALONE = ENDS = range(4)
"""What a stage's place adds to its layers: nothing, the embedding, the head, both."""
ANY = 4
"""The stage's place is open: of everything the least over all places, of sessions the most."""
OPEN = (MIDDLE, FIRST, LAST)
"""The places that there are: a stage that is alone is known to be."""
Numbers = tuple[int, ...]
"""How many offers of each kind."""


@dataclass(frozen=True)
class Kinds:
    """`members`: offers of each kind. `delays_s`: one way between two different offers of these kinds."""

    members: tuple[tuple[int, ...], ...]
    delays_s: Floats

    @property
    def numbers(self) -> Numbers:
        return tuple(len(members) for members in self.members)


def kinds_of(p: Tables) -> Kinds:
    """Offers with the same figures and the same delays to everybody else."""
    o = p.offers
    delays_s = _all_delays(p)
    figures = np.stack([o.memory, o.max_layers, o.step_s, o.row_s, o.prefill_s, o.head_s, o.uploads])
    kinds: list[list[int]] = []
    for i in range(len(o.memory)):
        home = next((kind for kind in kinds if _are_equal(figures, delays_s, kind, i)), None)
        if home is None:
            kinds.append([i])
        else:
            home.append(i)
    first, other = [kind[0] for kind in kinds], [kind[-1] for kind in kinds]
    between = delays_s[np.ix_(first, first)]
    np.fill_diagonal(between, delays_s[first, other])
    return Kinds(tuple(tuple(kind) for kind in kinds), between)


def _all_delays(p: Tables) -> Floats:
    rows, num = p.offers.rows, len(p.offers.rows)
    return p.problem.links.pair_delays_s(np.repeat(rows, num), np.tile(rows, num)).reshape(num, num)


def _are_equal(figures: Floats, delays_s: Floats, kind: list[int], i: int) -> bool:
    j = kind[0]
    others = [k for k in range(len(delays_s)) if k not in (i, j)]
    same = bool((figures[:, i] == figures[:, j]).all()) and delays_s[i, j] == delays_s[j, i]
    same = same and bool((delays_s[i, others] == delays_s[j, others]).all())
    same = same and bool((delays_s[others, i] == delays_s[others, j]).all())
    return same and (len(kind) == 1 or delays_s[i, j] == delays_s[kind[0], kind[1]])


@dataclass(frozen=True)
class Terms:
    """What stages with 0 ... all layers take at some rate: arrays with a last axis of `num_layers + 1`."""

    response_s: Floats
    """Of a row: the stage, and its wait for the uplink."""
    prefill_s: Floats
    """Per prompt token: mean over the holders, and the wait for the uplink."""
    slowest_s: Floats
    """The same of the slowest holder, or of the hop if that takes longer."""
    slowest_alone_s: Floats
    """The same without any load."""
    fixed_s: Floats
    row_rise_s: Floats
    """`response_s` less some part (Groups.terms) of what it is without any load."""
    prompt_rise_s: Floats
    """`prefill_s` less that part of what it is without any load."""
    sessions: Floats
    """That find KV room; -1 where the layers do not fit."""

    def take(self, where: Ints, shape: tuple[int, ...]) -> Terms:
        return Terms(*(getattr(self, each.name)[where].reshape(*shape, -1) for each in fields(self)))


class Groups:
    """Every possible set of holders. Ends are MIDDLE, FIRST, LAST or ALONE."""

    def __init__(self, p: Tables, kinds: Kinds) -> None:
        self._p, self.kinds = p, kinds
        self.num_layers = p.model.num_layers
        ranges = (range(number + 1) for number in kinds.numbers)
        self.numbers: list[Numbers] = [numbers for numbers in itertools.product(*ranges) if any(numbers)]
        self.index = {numbers: i for i, numbers in enumerate(self.numbers)}
        self.members = np.array(self.numbers, dtype=float)
        self.sizes = self.members.sum(axis=1)
        first = [members[0] for members in kinds.members]
        o, work = p.offers, p.model.work
        self._layers = np.arange(self.num_layers + 1, dtype=float)
        self._step_s, self._head_s = o.step_s[first] * work, o.head_s[first]
        self._row_s = np.outer(o.row_s[first] * work, self._layers)
        self._prefill_s = np.outer(o.prefill_s[first] * work, self._layers)
        self.layer_prefill_s = o.prefill_s[first] * work
        self._memory, self._max_layers = o.memory[first], o.max_layers[first]
        self.upload_s = (self.members @ (1.0 / o.uploads[first])) / self.sizes
        self._up_s = p.model.hidden_bytes / o.uploads[first]
        workload = p.problem.workload
        self._prompts = workload.num_prompt_tokens / max(1.0, workload.num_answer_tokens)
        self.hop_s = self._least_hops()
        tabled = [self._table(ends) for ends in ENDS]
        self._fixed_s, self._shares = np.stack([t[0] for t in tabled]), np.stack([t[1] for t in tabled])
        self.sessions = np.stack([t[2] for t in tabled])
        self.most_sessions = self.sessions.max(axis=0)
        """[groups, layers] whatever the ends are."""

    def most_rate(self, numbers: Numbers) -> float:
        """Tokens per second at which these devices have nothing but work, each on as many layers as it can keep up
        with for its share of the sessions: over a stage's holders these shares of its layers add up to them."""
        busy_s = self._row_s[:, 1] + self._prompts * self._prefill_s[:, 1]
        return float((np.array(numbers) / np.maximum(busy_s, 1e-30)).sum()) / self.num_layers

    def most_room(self, numbers: Numbers) -> float:
        """Sessions that find KV room if all these devices' memory, less one copy of the layers, is used up."""
        m = self._p.model
        session = self.num_layers * m.kv_token_bytes * self._p.problem.workload.num_reserved_tokens
        return float(np.array(numbers) @ self._memory - self.num_layers * m.weight_bytes) / session

    def least_alone(self, numbers: Numbers) -> tuple[float, float]:
        """(seconds per row, per prompt token) of all layers on the fastest of these, without any load."""
        held = np.array(numbers) > 0
        row_s = (self._step_s + self._row_s[:, 1])[held].min()
        return float(row_s) * self.num_layers, float(self._prefill_s[held, 1].min()) * self.num_layers

    def _table(self, ends: int) -> tuple[Floats, Floats, Floats]:
        """(fixed seconds [kinds, layers], shares [groups, kinds, layers], sessions [groups, layers])."""
        m, layers = self._p.model, self._layers
        ends_bytes = m.embedding_bytes * (ends & FIRST) + m.head_bytes * ((ends & LAST) // LAST)
        free = self._memory[:, None] - layers * m.weight_bytes - ends_bytes
        session = np.maximum(layers, 1e-9) * m.kv_token_bytes * self._p.problem.workload.num_reserved_tokens
        rooms = np.maximum(0.0, free) / session
        fits = free + 1e-6 >= layers * m.kv_token_bytes * m.kv_floor_tokens
        fits &= (layers >= 1) & (layers <= self._max_layers[:, None])
        fixed_s = np.outer(self._step_s, layers) + self._head_s[:, None] * (ends & LAST) / LAST
        merit = np.sqrt((rooms + 1e-3) / np.maximum(fixed_s, 1e-30))
        total = np.einsum("gt,tc->gc", self.members, merit)
        held = (self.members > 0)[:, :, None]
        shares = np.where(held, merit / total[:, None, :], 0.0)
        shares = np.where((self.sizes == 1)[:, None, None], held * 1.0, shares)
        with np.errstate(divide="ignore", invalid="ignore"):
            sessions = np.where(held, np.floor(rooms / shares + 1e-9), np.inf).min(axis=1)
        return fixed_s, shares, np.where((held & ~fits).any(axis=1), -1.0, sessions)

    def _least_hops(self) -> Floats:
        """[groups, groups] one way between two stages, with the leads that make it least."""
        mean = self.members @ self.kinds.delays_s / self.sizes[:, None]
        led = np.where((self.members > 0)[None, :, :], mean[:, None, :], np.inf).min(axis=2)
        return np.asarray((led + led.T) / 2.0)

    def rough(self, groups: Ints, ends: Ints, rates: Floats) -> Floats:
        """[n, layers] seconds that these stages add to a row's trip at lanes' rates if rows waited for themselves."""
        shares, fixed_s, free = self._loaded(groups, ends, rates)
        slack = np.maximum(free - rates[:, None, None] * shares * self._row_s, LEAST_SLACK)
        parts = shares * self.members[groups][:, :, None]
        stages_s = ((fixed_s + self._row_s) / slack * parts).sum(axis=1)
        return np.asarray(stages_s + self._waits(groups, ends, rates, shares))

    def terms(
        self, groups: Ints, ends: Ints, rates: Floats, trips_s: Floats, part: float, *, sends: bool = True
    ) -> Terms:
        """Of these stages, [n], at lanes' rates in tokens per second, if a row's trip takes so long at least. Rises are
        over this part of what there is without any load. `sends`: with uplinks."""
        members = self.members[groups][:, :, None]
        shares, fixed_s, free = self._loaded(groups, ends, rates)
        first_s, trip_s = fixed_s + self._row_s, trips_s[:, None, None]
        others = np.maximum(0.0, rates[:, None, None] * shares - 1.0 / trip_s)
        step_s = first_s / np.maximum(free - others * self._row_s, LEAST_SLACK)
        step_s = np.minimum(step_s, (first_s + others * trip_s * self._row_s) / free)
        waiting = (1.0 - np.minimum(1.0, step_s / trip_s)) * np.minimum(1.0, others * step_s) / 2.0
        parts = shares * members
        token_s = self._prefill_s / free
        waits_s = self._waits(groups, ends, rates, shares) if sends else np.zeros((len(groups), 1))
        response_s = (step_s * (1.0 + waiting) * parts).sum(axis=1) + waits_s
        prefill_s = (token_s * parts).sum(axis=1) + waits_s
        hop_s = (self._p.model.hidden_bytes * self.upload_s[groups] * _sends(ends) * sends)[:, None]
        return Terms(
            response_s,
            prefill_s,
            np.maximum(np.where(members > 0, token_s, 0.0).max(axis=1), hop_s + waits_s),
            np.maximum(np.where(members > 0, self._prefill_s, 0.0).max(axis=1), hop_s),
            (fixed_s * parts).sum(axis=1),
            response_s - part * (first_s * parts).sum(axis=1),
            prefill_s - part * (self._prefill_s * parts).sum(axis=1),
            self.sessions[ends, groups],
        )

    def _waits(self, groups: Ints, ends: Ints, rates: Floats, shares: Floats) -> Floats:
        """[n, layers] seconds that a row waits for its stage's uplink."""
        up_s = (self._up_s * _sends(ends)[:, None])[:, :, None]
        sent = np.minimum(rates[:, None, None] * shares * (1.0 + self._prompts) * up_s, 1.0 - LEAST_SLACK)
        return np.asarray((shares * up_s * sent / (1.0 - sent) * self.members[groups][:, :, None]).sum(axis=1))

    def least_waits(self, groups: Ints, rates: Floats) -> Floats:
        """[n] of stages that send to another, at the best place among those and with the best number of layers."""
        each = [
            self._waits(groups, ends, rates, self._shares[ends, groups]) for ends in _all_at((FIRST, MIDDLE), groups)
        ]
        return np.asarray(np.minimum.reduce(each)[:, 1:].min(axis=1))

    def _loaded(self, groups: Ints, ends: Ints, rates: Floats) -> tuple[Floats, Floats, Floats]:
        """(shares, fixed seconds, part of the time that prompts leave): [n, kinds, layers]."""
        shares = self._shares[ends, groups]
        free = np.maximum(1.0 - rates[:, None, None] * shares * self._prompts * self._prefill_s, LEAST_SLACK)
        return shares, self._fixed_s[ends], free

    def least_rough(self, groups: Ints, rates: Floats) -> Floats:
        """`rough` at the best place."""
        return np.asarray(np.minimum.reduce([self.rough(groups, ends, rates) for ends in _all_at(OPEN, groups)]))

    def least_terms(self, groups: Ints, rates: Floats, trips_s: Floats, part: float) -> Terms:
        """`terms`, the best of each over all places; without uplinks, as it is open who has none."""
        each = [self.terms(groups, ends, rates, trips_s, part, sends=False) for ends in _all_at(OPEN, groups)]
        names = [each.name for each in fields(Terms)]
        least = {name: np.minimum.reduce([getattr(terms, name) for terms in each]) for name in names}
        slowest_alone_s = np.maximum.reduce([terms.slowest_alone_s for terms in each])  # the most, as it is taken off
        return Terms(**least | {"slowest_alone_s": slowest_alone_s, "sessions": self.most_sessions[groups]})

    def fit(self, groups: tuple[int, ...], counts: tuple[int, ...]) -> bool:
        """Whether an ordered lane's stages can hold these layers and a session."""
        last = len(groups) - 1
        return all(
            1 <= count <= self.num_layers and self.sessions[FIRST * (i == 0) + LAST * (i == last), group, count] >= 1
            for i, (group, count) in enumerate(zip(groups, counts, strict=True))
        )


def _sends(ends: Ints) -> Floats:
    """1 where a stage sends rows to another: the last one sends no more than a token."""
    return np.where(ends & LAST, 0.0, 1.0)


def _all_at(places: Sequence[int], groups: Ints) -> list[Ints]:
    return [np.full(len(groups), ends) for ends in places]


def ways(groups: Groups, numbers: Numbers) -> dict[int, NDArray[np.intp]]:
    """All ways to split these offers into stages, without order: [ways, stages] of groups, by number of stages."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for way in _splits(groups, numbers, groups.index[numbers]):
        found.setdefault(len(way), []).append(way)
    return {size: np.array(some, dtype=np.intp) for size, some in found.items()}


def _splits(groups: Groups, left: Numbers, most: int) -> Iterator[tuple[int, ...]]:
    if not any(left):
        yield ()
        return
    for i in range(most, -1, -1):
        numbers = groups.numbers[i]
        if all(a <= b for a, b in zip(numbers, left, strict=True)):
            rest = tuple(b - a for a, b in zip(numbers, left, strict=True))
            for others in _splits(groups, rest, i):
                yield (i, *others)
