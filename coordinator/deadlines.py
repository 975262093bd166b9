"""When an answer is late: how long the steps of each session's chain take, learnt as they come. Pure.

A deadline is no verdict. It only says when to ask the stages where the rows are (verdict.py), so that a wrong one
costs a message or two.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush
from itertools import islice

from coordinator.scheduler.chain_times import ChainTimes
from protocol.values import SessionId

LEAST_S = 0.5
"""No answer is late sooner: shorter pauses are the operating system's, and hardly seen."""
LEAST_OPENING_S, LEAST_PROMPT_S = 1.0, 1.5
"""What a worker does for the first time (room for KV, a shape that it has not computed yet) takes longer."""
LEAST_SILENT_S = 4.0
"""So long a worker that is at work on prompts may say nothing in any case. Its agent counts in whole seconds."""
SAFETY = 4.0
"""So many times what the slowest steps took."""
NUM_TRIPS = 4.0
"""So many times once around the chain."""
WINDOW = 128
"""Steps that are remembered. Of so many the 99th percentile leaves out one."""
ENOUGH_STEPS = 8
"""Before so many the forecast counts, too."""
MOST_BIAS = 8.0
"""By how much forecasts of prompts are corrected at most."""
MAX_PATIENCE = 6
"""Each time that a session was moved, or could not be, all its deadlines double, up to 64-fold."""
GOOD_STEPS = 16
"""After so many steps in a row it is judged like any other again."""
NUM_RECENT = 8
TIMES_SLOWER = 3.0
"""A chain that takes so much longer than it usually did is slow, if that lasts."""
SLOW_FOR_S = 3.0


class StepTimes:
    """The last WINDOW durations."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, seconds: float) -> None:
        if len(self._latest) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(seconds)
        insort(self._sorted, seconds)

    @property
    def p99_s(self) -> float:
        """The duration that 99 of 100 do not exceed; 0 before the first."""
        return self._sorted[math.ceil(0.99 * len(self._sorted)) - 1] if self._sorted else 0.0

    def usual_s(self) -> float | None:
        """The mean of those before the last NUM_RECENT; None if they are fewer. Not the median: tokens that come in
        bursts have one of next to nothing."""
        num_before = len(self._latest) - NUM_RECENT
        return sum(islice(self._latest, num_before)) / num_before if num_before >= NUM_RECENT else None

    def recent_s(self) -> float | None:
        """The mean of the last NUM_RECENT; None before that."""
        if len(self._latest) < NUM_RECENT:
            return None
        return sum(self._latest[-number] for number in range(1, NUM_RECENT + 1)) / NUM_RECENT


class Phase(Enum):
    """What a session waits for."""

    OPENING = auto()
    PROMPT = auto()
    STEP = auto()


@dataclass(slots=True)
class Watch:
    """One session on one chain. `since_s` is when what it waits for began; `num_rows` is its prompt on this chain."""

    times: ChainTimes
    num_rows: int
    since_s: float
    phase: Phase = Phase.OPENING
    steps: StepTimes = field(default_factory=StepTimes)
    due_s: float = math.inf
    listed_s: float = math.inf
    """Where it stands in the heap: no later than it is due."""
    usual_s: float = math.inf
    """What steps took, as long as they are not slow."""
    slow_since_s: float = math.inf
    prompt_by_s: float = -math.inf
    """Until then its first token is not late, whoever else's prompts are computed before."""

    def step_limit_s(self) -> float:
        p99_s = self.steps.p99_s
        usual_s = p99_s if len(self.steps) >= ENOUGH_STEPS else max(p99_s, self.times.step_s)
        return max(LEAST_S, SAFETY * usual_s, NUM_TRIPS * self.times.ring_s)

    def seen_step(self, seconds: float, now_s: float) -> None:
        """Learn from a step, and notice when steps take much longer than they did."""
        self.steps.add(seconds)
        recent_s, usual_s = self.steps.recent_s(), self.steps.usual_s()
        if recent_s is None or usual_s is None:
            return
        if recent_s <= TIMES_SLOWER * self.usual_s:
            self.usual_s, self.slow_since_s = usual_s, math.inf
        elif math.isinf(self.slow_since_s):
            self.slow_since_s = now_s

    @property
    def bias(self) -> float:
        """How much longer this chain took than was forecast, when it was not slow."""
        return max(1.0, self.usual_s / self.times.step_s) if math.isfinite(self.usual_s) else 1.0


class Deadlines:
    """Of all sessions that have a chain. Time may stand still, but never goes back."""

    def __init__(self) -> None:
        self._watches: dict[SessionId, Watch] = {}
        self._heap: list[tuple[float, SessionId]] = []
        self._patience: dict[SessionId, int] = {}
        self._num_good: dict[SessionId, int] = {}
        self._prompt_bias = StepTimes()
        """What prompts took by what was forecast."""

    @property
    def next_s(self) -> float:
        """Nothing is due before this; inf if nothing ever is."""
        return self._heap[0][0] if self._heap else math.inf

    @property
    def prompt_bias(self) -> float:
        known = self._prompt_bias.p99_s if len(self._prompt_bias) >= ENOUGH_STEPS else 1.0
        return min(max(1.0, known), MOST_BIAS)

    def watch(self, session_id: SessionId) -> Watch | None:
        return self._watches.get(session_id)

    def patience(self, session_id: SessionId) -> float:
        """The factor of all limits for this session."""
        return 2.0 ** self._patience.get(session_id, 0)

    # ------------------------------------------------------------ what happens

    def opens(self, session_id: SessionId, times: ChainTimes, num_rows: int, now_s: float) -> None:
        """Its stages have been told to open; it has so many rows to compute. Nothing of an older chain counts."""
        self._watches[session_id] = Watch(times, num_rows, now_s)
        allowed_s = max(LEAST_OPENING_S, SAFETY * times.step_s, NUM_TRIPS * times.ring_s)
        self._allow(session_id, allowed_s * self.patience(session_id), now_s)

    def runs(self, session_id: SessionId, num_rows_ahead: int, now_s: float) -> None:
        """All stages are open and the rows are under way, behind so many rows of others' prompts.

        All of them may take minutes, but no worker is silent for so long: therefore it is asked sooner."""
        watch = self._watches[session_id]
        watch.phase, watch.since_s = Phase.PROMPT, now_s
        slowest_row_s = max(stage.prompt_row_s for stage in watch.times.stages)
        expected_s = watch.times.prompt_s(watch.num_rows) + num_rows_ahead * slowest_row_s
        allowed_s = max(LEAST_PROMPT_S, SAFETY * self.prompt_bias * expected_s, NUM_TRIPS * watch.times.ring_s)
        watch.prompt_by_s = now_s + allowed_s * self.patience(session_id)
        self._allow(session_id, min(allowed_s, LEAST_SILENT_S) * self.patience(session_id), now_s)

    def steps(self, session_id: SessionId, now_s: float) -> None:
        """Its prompt was computed before this was its chain: the next thing is a token."""
        watch = self._watches[session_id]
        watch.phase, watch.since_s = Phase.STEP, now_s
        self._allow(session_id, watch.step_limit_s() * self.patience(session_id), now_s)

    def answered(self, session_id: SessionId, num_tokens: int, now_s: float) -> None:
        """Tokens have been committed."""
        watch = self._watches[session_id]
        took_s = now_s - watch.since_s
        if watch.phase is Phase.STEP:
            watch.seen_step(took_s / num_tokens, now_s)
            self._count_good(session_id)
        else:
            self._prompt_bias.add(took_s / watch.times.prompt_s(watch.num_rows))
        watch.phase, watch.since_s = Phase.STEP, now_s
        self._allow(session_id, watch.step_limit_s() * self.patience(session_id), now_s)

    def stops(self, session_id: SessionId) -> None:
        """It has no chain now. Harmless if it had none. How patient one is with it is remembered (`forget`)."""
        self._watches.pop(session_id, None)
        self._num_good.pop(session_id, None)

    def forget(self, session_id: SessionId) -> None:
        """It has ended."""
        self.stops(session_id)
        self._patience.pop(session_id, None)

    def is_impatient(self, session_id: SessionId) -> bool:
        """Whether one has been as patient with it as one ever is."""
        return self._patience.get(session_id, 0) >= MAX_PATIENCE

    def slow(self, now_s: float) -> list[SessionId]:
        """Sessions whose steps have taken much longer than they did for SLOW_FOR_S; each once in that time."""
        found = [s for s, watch in self._watches.items() if now_s - watch.slow_since_s >= SLOW_FOR_S]
        for session_id in found:
            self._watches[session_id].slow_since_s = now_s
        return found

    def be_patient(self, session_id: SessionId) -> None:
        """It was moved, or should have been: the next time it takes longer."""
        self._patience[session_id] = min(self._patience.get(session_id, 0) + 1, MAX_PATIENCE)
        self._num_good.pop(session_id, None)

    def allow(self, session_id: SessionId, seconds: float, now_s: float) -> None:
        """It is not looked at again before that."""
        if session_id in self._watches:
            self._allow(session_id, seconds, now_s)

    def forgive(self, lag_s: float) -> None:
        """Nobody was looked after for so long: nothing of it counts."""
        for watch in self._watches.values():
            watch.since_s += lag_s
            watch.due_s += lag_s
            watch.prompt_by_s += lag_s

    def due(self, now_s: float) -> list[SessionId]:
        """Takes those out whose time is over; `allow` lists them again."""
        late = []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, session_id = heappop(self._heap)
            watch = self._watches.get(session_id)
            if watch is None or watch.listed_s != at_s:
                continue  # it has another entry, or none is wanted
            watch.listed_s = math.inf
            if watch.due_s <= now_s:
                watch.due_s = math.inf
                late.append(session_id)
            else:
                self._list(session_id, watch)
        return late

    # ------------------------------------------------------------ parts

    def _allow(self, session_id: SessionId, seconds: float, now_s: float) -> None:
        watch = self._watches[session_id]
        watch.due_s = now_s + seconds
        if watch.due_s < watch.listed_s:
            self._list(session_id, watch)

    def _list(self, session_id: SessionId, watch: Watch) -> None:
        watch.listed_s = watch.due_s
        heappush(self._heap, (watch.due_s, session_id))

    def _count_good(self, session_id: SessionId) -> None:
        if session_id not in self._patience:
            return
        self._num_good[session_id] = self._num_good.get(session_id, 0) + 1
        if self._num_good[session_id] >= GOOD_STEPS:
            del self._num_good[session_id], self._patience[session_id]
