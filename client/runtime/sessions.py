"""The generations that are open on this stage: what each waits to compute, and which received rows it accepts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from client.ipc import EndSession, StartSession
from client.runtime.errors import KvFullError, NothingKeptError, StaleEpochError
from client.runtime.kv_cache import BLOCK_TOKENS, KvCache, KvTable
from client.runtime.send_log import SendLog
from client.runtime.shaping import Shaping
from protocol.errors import FrameError, FrameFault
from protocol.frames import Phase, Segment
from protocol.values import SessionId, StepTiming


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Consecutive rows of one session: token ids [n] or hidden states [n, hidden size], the first at `position`.

    `timing` is what their trip has cost up to here."""

    position: int
    values: Tensor
    timing: StepTiming

    def __len__(self) -> int:
        return self.values.shape[0]  # a tensor's own len() takes ten times as long, and this is asked all the time


@dataclass(slots=True, eq=False)
class Session:
    """One generation on this stage. Positions below `num_received` have arrived, below `table.length` are computed.

    `sends_again`: the next stage has not got all rows that were kept here from the epoch before. `num_offered`: rows
    that were found in the cache; the first row that comes says how many of them the whole chain has. Positions below
    `num_sound` have been seen to give finite numbers."""

    start: StartSession
    table: KvTable
    num_received: int = 0
    next_seq: int = 0
    is_finished: bool = False
    sends_again: bool = False
    num_offered: int = 0
    num_sound: int = 0
    shaping: Shaping | None = None
    """At the tail, if the request changes logits."""
    waiting: deque[Rows] = field(default_factory=deque)

    @property
    def session_id(self) -> SessionId:
        return SessionId(self.start.session_id)

    @property
    def num_waiting(self) -> int:
        return self.num_received - self.table.length

    def may_begin_at(self, position: int) -> bool:
        """Whether these can be the first rows of a session that has some from the cache: behind any of its blocks."""
        return position <= self.num_offered and position % BLOCK_TOKENS == 0

    def push(self, rows: Rows) -> None:
        """Rows to compute next. Raises FrameError if they are not the next ones, KvFullError beyond the reservation."""
        if self.is_finished or rows.position != self.num_received:
            raise FrameError(FrameFault.POSITION, f"position {rows.position}, expected {self.num_received}")
        num_received = self.num_received + len(rows)
        if num_received > self.table.capacity:
            raise KvFullError(num_received, self.table.capacity)
        self.num_received = num_received
        self.waiting.append(rows)

    def take(self, num_rows: int) -> Rows:
        """Remove the next `num_rows` waiting rows. Their timing is that of the latest one, whose token it becomes."""
        if len(self.waiting[0]) == num_rows:
            return self.waiting.popleft()
        parts: list[Rows] = []
        missing = num_rows
        while missing:
            rows = self.waiting.popleft()
            if len(rows) > missing:
                rest = replace(rows, position=rows.position + missing, values=rows.values[missing:])
                self.waiting.appendleft(rest)
                rows = replace(rows, values=rows.values[:missing])
            parts.append(rows)
            missing -= len(rows)
        if len(parts) == 1:
            return parts[0]
        return Rows(parts[0].position, torch.cat([part.values for part in parts]), parts[-1].timing)

    def segment(self, rows: Rows) -> Segment:
        """The next segment that this session sends on its link, for these rows of it. Counts `seq`."""
        phase = Phase.PREFILL if rows.position < self.start.num_prompt_tokens else Phase.DECODE
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return Segment(
            self.session_id, self.start.epoch, rows.position, len(rows), seq, self.start.next_stage, phase,
            rows.timing.compute_us, rows.timing.codec_us,
        )  # fmt: skip


class SessionBook:
    """All open sessions of a slice, and their places in the KV pool."""

    def __init__(self, cache: KvCache, sent: SendLog | None = None) -> None:
        self.sent = sent or SendLog()
        self._cache = cache
        self._sessions: dict[SessionId, Session] = {}
        self._queue: dict[SessionId, None] = {}
        """Sessions in the order in which they were last served."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: Session) -> bool:
        """Whether it is open, in this epoch."""
        return self._sessions.get(session.session_id) is session

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    @property
    def has_waiting(self) -> bool:
        return any(session.waiting for session in self._sessions.values())

    @property
    def num_reserved_tokens(self) -> int:
        """Of the KV room, by all open sessions."""
        return self._cache.num_tokens - self._cache.num_free_tokens

    def open(self, start: StartSession) -> Session:
        """Open a session, ending an older epoch of it, or going on with what is to be kept of that.

        Raises StaleEpochError, KvFullError or NothingKeptError; of the older epoch nothing is left then."""
        current = self._sessions.get(SessionId(start.session_id))
        if current is not None and current.start.epoch > start.epoch:
            raise StaleEpochError(start.epoch, current.start.epoch)
        if current is not None and start.num_kept_tokens and self._has_kept(current, start):
            return self._go_on(current, start)
        if current is not None:
            self.close(current, current.start.prefix_hashes)
        if start.num_kept_tokens:
            raise NothingKeptError(start.num_kept_tokens)
        table = self._cache.open(start.num_reserved_tokens, _wanted(start))
        found = table.length
        session = Session(start, table, num_received=found, num_offered=found, num_sound=found)
        self._sessions[session.session_id] = session
        self._queue[session.session_id] = None
        return session

    def push(self, session: Session, rows: Rows) -> None:
        """Session.push, of which the first rows say from where on the chain computes."""
        if session.num_offered and session.may_begin_at(rows.position):
            self._cache.begin(session.table, rows.position)
            self.sent.begin(session.session_id, session.start.prefix_hashes[: rows.position // BLOCK_TOKENS])
            session.num_received = session.num_sound = rows.position
        session.push(rows)
        session.num_offered = 0

    def _has_kept(self, current: Session, start: StartSession) -> bool:
        """The reservation is the same in all epochs of a session. A part of what others have as well cannot be kept."""
        kept, table = start.num_kept_tokens, current.table
        is_own = table.num_shared * BLOCK_TOKENS <= kept
        has_rows = is_own and table.keeps(kept) and start.num_reserved_tokens <= table.capacity
        return has_rows and (not _sends_again(start) or self.sent.num_rows(current.session_id) >= kept)

    def _go_on(self, current: Session, start: StartSession) -> Session:
        """What waited was of the older epoch. The rows that were computed beyond the kept ones come again."""
        kept = start.num_kept_tokens
        current.table.truncate(kept)
        self.sent.cut(current.session_id, kept)
        num_sound = min(kept, current.num_sound)
        session = Session(start, current.table, kept, sends_again=_sends_again(start), num_sound=num_sound)
        self._sessions[session.session_id] = session
        return session

    def close(self, session: Session, names: Sequence[str] = ()) -> bool:
        """Forget the session and free its room. False, and nothing changes, if it is not open.

        `names`: what its rows are called, block by block, so that others may begin with them."""
        if self._sessions.get(session.session_id) is not session:
            return False
        del self._sessions[session.session_id], self._queue[session.session_id]
        self._cache.close(session.table, names, session.num_sound)
        self.sent.leave(session.session_id, names[: session.num_sound // BLOCK_TOKENS])
        return True

    def end(self, end: EndSession) -> None:
        """End a session if it is open at this epoch or an older one. Of that only the prompt's names are known."""
        session = self._sessions.get(SessionId(end.session_id))
        if session is not None and session.start.epoch <= end.epoch:
            has_names = end.prefix_hashes and session.start.epoch == end.epoch
            self.close(session, end.prefix_hashes if has_names else session.start.prefix_hashes)

    def find(self, segment: Segment) -> Session:
        """Whose rows these are. Raises FrameError if nobody here waits for them."""
        session = self._sessions.get(segment.session_id)
        if session is None:
            raise FrameError(FrameFault.UNKNOWN_SESSION, "no such session is open")
        if segment.epoch != session.start.epoch:
            raise FrameError(FrameFault.EPOCH, f"epoch {segment.epoch}, current is {session.start.epoch}")
        if segment.stage != session.start.stage:
            raise FrameError(FrameFault.STAGE, f"for stage {segment.stage}, this is {session.start.stage}")
        return session

    def waiting(self) -> list[tuple[SessionId, int]]:
        """(session, rows it waits to compute), those served longest ago first."""
        counts = ((session_id, self._sessions[session_id].num_waiting) for session_id in self._queue)
        return [(session_id, num_rows) for session_id, num_rows in counts if num_rows]

    def served(self, session_id: SessionId) -> Session:
        """The session, moved to the end of the queue."""
        del self._queue[session_id]
        self._queue[session_id] = None
        return self._sessions[session_id]


def _wanted(start: StartSession) -> Sequence[str]:
    """What may come from the cache: not the prompt's last row, out of which the first token comes."""
    return start.prefix_hashes[: (start.num_prompt_tokens - 1) // BLOCK_TOKENS]


def _sends_again(start: StartSession) -> bool:
    """Whether the next stage lacks rows that are not computed again here. The tail's rows are its own business."""
    is_tail = start.stage == start.num_stages - 1
    return not is_tail and start.next_from < start.num_kept_tokens
