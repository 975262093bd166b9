"""How much a worker has computed since it last told: counted at every forward, told about once a second. Pure."""

from __future__ import annotations

from client.ipc import WorkDone

REPORT_EVERY_S = 1.0
NOTHING = WorkDone(0, 0, 0, 0.0)


class WorkMeter:
    """Counts of one slice. Times are of any clock that never goes back."""

    def __init__(self) -> None:
        self._done = NOTHING
        self._since_s = 0.0

    def add(self, num_decode_rows: int, num_prompt_tokens: int, compute_s: float, now_s: float) -> None:
        """A forward with so many rows, which took `compute_s`."""
        before = self._done
        if before is NOTHING:
            self._since_s = now_s
        self._done = WorkDone(
            before.num_steps + 1,
            before.num_decode_rows + num_decode_rows,
            before.num_prompt_tokens + num_prompt_tokens,
            before.compute_s + compute_s,
        )

    def due_in_s(self, now_s: float) -> float | None:
        """When there is something to tell: 0 is now. None: nothing was computed."""
        return None if self._done is NOTHING else max(0.0, self._since_s + REPORT_EVERY_S - now_s)

    def take(self, now_s: float) -> WorkDone | None:
        """What is to be told now, and count anew; None if it is too early."""
        if self.due_in_s(now_s) != 0.0:
            return None
        done, self._done = self._done, NOTHING
        return done
