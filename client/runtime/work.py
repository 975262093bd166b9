"""A step's work: each session's share of it, how it is cut when memory is short, and what waits for its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

from client.runtime.sampling import Draws, is_certain
from client.runtime.sessions import Rows, Session
from protocol.values import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One session's share of a step: rows up to, not including, position `stop`, where the next token belongs."""

    session: Session
    rows: Rows
    num_rows: int
    stop: int

    @property
    def is_sampled(self) -> bool:
        """The prompt's last row and every later one; earlier rows only fill the KV cache."""
        return self.stop >= self.session.start.num_prompt_tokens

    @property
    def num_decode_rows(self) -> int:
        """The rows behind the prompt's last one."""
        return max(0, min(self.num_rows, self.stop - self.session.start.num_prompt_tokens))

    @property
    def sampling(self) -> Sampling:
        return self.session.start.sampling or Sampling()

    @property
    def ends_here(self) -> bool:
        """Whether the answer has its length with this token, whatever it is."""
        stop = self.session.start.stop
        return stop is None or self.stop + 1 >= stop.max_position

    def may_run_ahead(self, vocab_size: int) -> bool:
        """Whether its next row can be computed before anybody has seen this token: the row is for this very stage, has
        room, and nothing but the device is needed to draw it."""
        is_own = self.session.start.next_link is None and self.sampling.num_logprobs is None
        has_room = self.ends_here or self.stop < self.session.table.capacity
        return is_own and has_room and is_certain(self.sampling, vocab_size)

    def part(self, start: int, stop: int) -> Work:
        """Its rows from the `start`th on, up to, not including, the `stop`th."""
        rows = Rows(self.rows.position + start, self.rows.values[start:stop], self.rows.timing)
        return Work(self.session, rows, stop - start, rows.position + stop - start)


@dataclass(slots=True, eq=False)
class Step:
    """What was computed at once. `sampled`: those whose tokens are drawn, in the order of `draws`. `end_ns` is 0 until
    they have been read."""

    work: list[Work]
    sampled: list[Work]
    draws: Draws
    begin_ns: int
    end_ns: int = 0

    def read(self) -> list[int | None]:
        """Wait for the tokens."""
        tokens = self.draws.read()
        self.end_ns = perf_counter_ns()
        return tokens


def num_rows_of(work: list[Work]) -> int:
    return sum(item.num_rows for item in work)


def is_untouched(work: list[Work]) -> bool:
    """Whether nothing of it was computed: then it may be tried again, as no row is computed twice."""
    return all(item.session.table.length == item.rows.position for item in work)


def halves(work: list[Work]) -> tuple[list[Work], list[Work]]:
    """The first rows, and the others; a chunk that lies across the middle is cut."""
    first, second, room = list[Work](), list[Work](), -(-num_rows_of(work) // 2)
    for item in work:
        taken = min(room, item.num_rows)
        room -= taken
        if taken:
            first.append(item.part(0, taken))
        if taken < item.num_rows:
            second.append(item.part(taken, item.num_rows))
    return first, second
