"""What a simulation found: one value with every figure, and the recorder that collects it while time passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from coordinator.scheduler.cost import Bound
from coordinator.simulate.world import SimSession

BUCKET_S = 10.0
"""Grain of the time series."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of all values: mean, median and 99th percentile, in seconds; zeros if there are none."""

    mean: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """The pool at one time, in seconds since the traffic began; `tokens_per_s` over the bucket before it."""

    at_s: float
    tokens_per_s: float
    num_running: int
    num_waiting: int
    num_nodes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a device held at the end, and how busy it was: one row of the map of layers and nodes."""

    node: int
    device: str
    region: str
    model: str
    start: int
    stop: int
    utilisation: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rates are over the time from warm-up to the end of the traffic; latencies are of the requests that arrived then.

    `goodput_tokens_per_s`: tokens of the requests that arrived then and were answered within the latency bound, though
    it be later: who is slow but within the bound has long answers, and must not lose those that end after the traffic.
    `tokens_per_s`: of all answers that ended then. `longest_gap_s`: the longest time in
    which no user got a token though some waited. Every request that arrived is finished, refused, failed (it broke
    after it had begun) or unfinished."""

    scenario: str
    policy: str
    seed: int
    requests_per_s: float
    duration_s: float
    goodput_tokens_per_s: float
    tokens_per_s: float
    latency_s: Spread
    ttft_s: Spread
    tpot_s: Spread
    share_in_bound: float
    num_arrived: int
    num_finished: int
    num_refused: int
    num_failed: int
    num_unfinished: int
    num_restarted: int
    longest_gap_s: float
    bytes_moved: dict[str, float]
    series: tuple[Moment, ...]
    held: tuple[Held, ...]
    latencies_s: tuple[float, ...]
    num_scheduler_events: int

    @property
    def mean_utilisation(self) -> float:
        """Over devices that held something."""
        return float(np.mean([row.utilisation for row in self.held])) if self.held else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished request."""

    arrived_s: float
    first_token_s: float
    finished_s: float
    num_tokens: int

    @property
    def latency_s(self) -> float:
        return self.finished_s - self.arrived_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; of one-token answers 0."""
        return (self.finished_s - self.first_token_s) / max(1, self.num_tokens - 1)

    def is_within(self, bound: Bound) -> bool:
        return self.ttft_s <= bound.ttft_s and self.tpot_s <= bound.tpot_s


@dataclass(slots=True)
class Record:
    """Collects while time passes. Times are as the timeline has them; `start_s` is when the traffic began."""

    start_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    num_arrived: int = 0
    num_refused: int = 0
    num_failed: int = 0
    num_restarted: int = 0
    bytes_moved: dict[str, float] = field(default_factory=dict)
    series: list[Moment] = field(default_factory=list)
    longest_gap_s: float = 0.0
    _bucket_tokens: float = 0.0
    _silent_from_s: float | None = None

    def tokens(self, num: int, from_s: float, to_s: float) -> None:
        """Users got so many tokens, evenly from then to then."""
        self._bucket_tokens += num
        self.silence_ends(from_s)
        self._silent_from_s = to_s if self._silent_from_s is None else max(self._silent_from_s, to_s)

    def silence_ends(self, at_s: float) -> None:
        if self._silent_from_s is not None:
            self.longest_gap_s = max(self.longest_gap_s, at_s - self._silent_from_s)

    def nobody_waits(self, at_s: float) -> None:
        """Silence begins to count from here at the earliest."""
        self._silent_from_s = at_s

    def moved(self, cause: str, num_bytes: float) -> None:
        self.bytes_moved[cause] = self.bytes_moved.get(cause, 0.0) + num_bytes

    def finished(self, session: SimSession, now_s: float) -> None:
        first_s = now_s if session.first_token_s is None else session.first_token_s
        self.answers.append(Answer(session.arrived_s, first_s, max(now_s, first_s), session.num_answer))

    def moment(self, now_s: float, num_running: int, num_waiting: int, num_nodes: int) -> None:
        """The end of a bucket."""
        rate = self._bucket_tokens / BUCKET_S
        self.series.append(Moment(now_s - self.start_s, rate, num_running, num_waiting, num_nodes))
        self._bucket_tokens = 0.0


def spread(values: Iterable[float]) -> Spread:
    array = np.fromiter(values, float)
    if not array.size:
        return Spread()
    p50, p99 = np.percentile(array, [50, 99])
    return Spread(float(array.mean()), float(p50), float(p99))
