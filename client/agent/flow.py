"""How far a session's rows have come through one stage: what came in, what went on, since when something waits. Pure.

The agent sees every row come and go, so it can say this whatever its worker does: of one that hangs behind a healthy
connection it says that rows came in and nothing went on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MAX_MARKS = 64
"""Arrivals that are told apart. Of more the newest count as one, with the newest's time: nobody seems to wait for
longer than it does."""


@dataclass(slots=True)
class Flow:
    """Times are of any one clock, in seconds. `num_sent`: positions below have gone on to the next stage.

    `num_silent` rows at the beginning are not answered one by one (of a tail: the prompt but its last row), and `lead`
    is by how much what goes on is ahead of what came in (a tail answers the row at p with the token at p + 1)."""

    num_sent: int = 0
    num_silent: int = 0
    lead: int = 0
    _marks: deque[tuple[int, float]] = field(default_factory=deque)
    """Up to which position rows had come in, and when; of those that have not gone on."""
    _sent_at_s: float = 0.0

    def came_in(self, stop: int, now_s: float) -> None:
        """Rows below position `stop` are here now."""
        if stop <= self.num_silent:
            return
        if len(self._marks) == MAX_MARKS:
            self._marks.pop()
        self._marks.append((stop, now_s))

    def went_on(self, stop: int, now_s: float) -> None:
        """Rows (of a tail: tokens) below position `stop` have left."""
        self.num_sent = max(self.num_sent, stop)
        self._sent_at_s = now_s
        while self._marks and self._marks[0][0] + self.lead <= self.num_sent:
            self._marks.popleft()

    @property
    def is_waiting(self) -> bool:
        """Whether rows are here that have not gone on."""
        return bool(self._marks)

    def waiting_s(self, now_s: float) -> float:
        """For how long rows have been here while none went on; 0 if none are here."""
        if not self._marks:
            return 0.0
        return max(0.0, now_s - max(self._marks[0][1], self._sent_at_s))
