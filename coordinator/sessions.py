"""One generation each: token log, epoch, chain, recovery by replay. Pure: what happened in, actions out.

The log (prompt + committed tokens) is the truth about a session; a chain is only the place where its KV happens to
be. Losing a chain means: new epoch, new chain, the log as the new prompt; stages that are in both chains keep their KV
(survivors.py). The epoch fences: whatever an older chain still says is dropped, so that no token is lost, repeated or
changed (ARCHITECTURE.md, one chat request).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey
from coordinator.survivors import HARMLESS_TO_KV, LINK_LOST, NOTHING_KEPT, Survivors
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.messages import CloseSession, OpenSession, TokensSampled
from protocol.values import FinishReason, Hop, NodeId, Sampling, SessionId, StepTiming, StopRule

MAX_ROWS_PER_FRAME = 8192
MAX_BREAKS = 4
"""A session whose chains break this often by themselves (not by nodes leaving), and without a token in between, is
given up: it may be the cause."""
KV_FULL = "kv_full"
MAX_FULL = 24
"""A session that finds no room this often, where there should have been some, is given up. It waits in between."""


class SessionState(Enum):
    QUEUED = auto()
    OPENING = auto()
    RUNNING = auto()
    ENDED = auto()


class SessionSignal(Enum):
    CHAIN = auto()
    OPENED = auto()
    LOST = auto()
    END = auto()


TRANSITIONS: dict[tuple[SessionState, SessionSignal], SessionState] = {
    (SessionState.QUEUED, SessionSignal.CHAIN): SessionState.OPENING,
    (SessionState.QUEUED, SessionSignal.END): SessionState.ENDED,
    (SessionState.OPENING, SessionSignal.OPENED): SessionState.RUNNING,
    (SessionState.OPENING, SessionSignal.CHAIN): SessionState.OPENING,
    (SessionState.OPENING, SessionSignal.LOST): SessionState.QUEUED,
    (SessionState.OPENING, SessionSignal.END): SessionState.ENDED,
    (SessionState.RUNNING, SessionSignal.CHAIN): SessionState.OPENING,
    (SessionState.RUNNING, SessionSignal.LOST): SessionState.QUEUED,
    (SessionState.RUNNING, SessionSignal.END): SessionState.ENDED,
}


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asked for, in tokens. `tenant` is who asks, `deadline_s` how long it may wait in the queue at most
    (None: as long as the pool lets it)."""

    session_id: SessionId
    manifest_hash: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    tenant: str = ""
    deadline_s: float | None = None

    @property
    def num_tokens(self) -> int:
        """KV room the session may need in all."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Contact:
    """How a node's neighbours reach it; address None: only through the coordinator's relay.

    `fingerprint` is that of the certificate it shows there (wss only)."""

    address: str | None = None
    ticket: str | None = None
    fingerprint: str | None = None


# ------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class SendMessage:
    node_id: NodeId
    message: OpenSession | CloseSession


@dataclass(frozen=True, slots=True)
class SendFrame:
    node_id: NodeId
    frame: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """Commit these tokens to the log, then stream them to the user."""

    session_id: SessionId
    position: int
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    timing: StepTiming


@dataclass(frozen=True, slots=True)
class Queued:
    """No chain has been free for the request yet; `place` 1 is next. `expected_wait_s` is None if nothing is known."""

    place: int
    num_waiting: int
    expected_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The session runs over this chain from now on."""

    session_id: SessionId
    chain: tuple[ChainStage, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    session_id: SessionId
    code: str
    message: str
    retry_after_s: float | None = None
    started: bool = True


@dataclass(frozen=True, slots=True)
class NeedChain:
    """Ask the scheduler for a chain, away from these devices if that is possible. Devices in `kept` still hold the
    session's KV."""

    session_id: SessionId
    avoid: frozenset[DeviceKey]
    kept: tuple[DeviceKey, ...] = ()


@dataclass(frozen=True, slots=True)
class WantMove:
    """Now is a good moment for another chain, if there is one: the session runs on over its own until then."""

    session_id: SessionId
    avoid: frozenset[DeviceKey]


Action = SendMessage | SendFrame | Deliver | Rerouted | Failed | NeedChain | WantMove


@dataclass(slots=True)
class Session:
    """One generation. Methods return what is to be done; the caller does it in that order."""

    order: Order
    state: SessionState = SessionState.QUEUED
    tokens: list[int] = field(default_factory=list)
    epoch: int = 0
    chain: tuple[ChainStage, ...] = ()
    opened: set[int] = field(default_factory=set)
    num_breaks: int = 0
    num_full: int = 0
    avoid: frozenset[DeviceKey] = frozenset()
    survivors: Survivors = field(default_factory=Survivors)
    num_kept: tuple[int, ...] = ()
    """Per stage of the chain: rows that are not computed again."""
    has_committed: bool = False
    """In this epoch."""
    wants_move: bool = False

    @property
    def log(self) -> tuple[int, ...]:
        """Prompt and committed tokens."""
        return (*self.order.prompt, *self.tokens)

    def start(
        self,
        chain: tuple[ChainStage, ...],
        contacts: dict[NodeId, Contact],
        keepers: frozenset[DeviceKey] = frozenset(),
    ) -> list[Action]:
        """A chain was found: open the session on its stages, tail first, so that rows never arrive before it.

        `keepers`: devices of the chain that can keep KV over epochs. What was open elsewhere is closed after that, as
        a node may have stages of both chains."""
        self._move(SessionSignal.CHAIN)
        left = [stage for stage in (*self.chain, *self.survivors.open) if stage not in chain]
        closes = self._closes(left)
        self.epoch += 1
        self.chain, self.num_kept = chain, self.survivors.start(chain, keepers)
        self.has_committed = self.wants_move = False
        self.opened.clear()
        opens = [self._open(stage, contacts) for stage in reversed(range(len(chain)))]
        return [Rerouted(self.order.session_id, chain), *opens, *closes]

    def stage_opened(self, node_id: NodeId, epoch: int, stage: int) -> list[Action]:
        """Once every stage is open the head gets the log, or what it has not kept of it."""
        if epoch != self.epoch or self.state is not SessionState.OPENING or not self._is_stage(node_id, stage):
            return []
        self.opened.add(stage)
        if len(self.opened) < len(self.chain):
            return []
        self._move(SessionSignal.OPENED)
        return [SendFrame(self.chain[0].device.node_id, frame) for frame in self._prompt_frames()]

    def sampled(self, node_id: NodeId, message: TokensSampled) -> list[Action]:
        """Tokens from the tail. Anything but the next position of this epoch from this tail is dropped."""
        if self.state is not SessionState.RUNNING or message.epoch != self.epoch:
            return []
        if not self._is_stage(node_id, len(self.chain) - 1) or message.position != len(self.log):
            return []
        if len(self.tokens) + len(message.tokens) > self.order.max_new_tokens:
            return self.broken(node_id, self.epoch, len(self.chain) - 1, "too_many_tokens", "the tail did not stop")
        self.tokens += message.tokens
        self.num_breaks = 0
        self.has_committed = True
        self.survivors.committed(message.position)
        finish = message.finish_reason
        if finish is None and len(self.tokens) == self.order.max_new_tokens:
            finish = FinishReason.LENGTH  # a tail that forgot to say so must not leave the user waiting
        deliver = Deliver(self.order.session_id, message.position, message.tokens, finish, message.timing)
        return [deliver, *self.end()] if finish else [deliver, *self._move_now()]

    def move_soon(self) -> list[Action]:
        """A node of the chain wants to go. Between two tokens nothing is lost; before the first one, nothing yet."""
        self.wants_move = self._has_chain()
        return [] if self.has_committed else self._move_now()

    def broken(self, node_id: NodeId, epoch: int, stage: int, code: str, message: str) -> list[Action]:
        """A stage cannot go on. Another chain is tried, up to a limit. That a stage has not kept what it should is
        nobody's fault: it computes everything anew, and so do those before it, which have not kept more."""
        if epoch != self.epoch or not self._has_chain() or not self._is_stage(node_id, stage):
            return []
        if code == NOTHING_KEPT and self.num_kept[stage]:
            self.survivors.forget(set(self.chain[: stage + 1]))
            return self._lose(set())
        if not self._may_try_again(code):
            num_tries = self.num_full if code == KV_FULL else self.num_breaks
            return self.fail(code, f"{num_tries} chains in turn could not compute this answer; last: {message}")
        if code not in HARMLESS_TO_KV:
            self.survivors.forget({self.chain[stage]})
        return self._lose({self._culprit(stage, code)})

    def devices_lost(self, lost: set[DeviceKey], *, to_blame: bool = True) -> list[Action]:
        """Devices are gone; if the session ran over one of them it moves, and avoids those that are `to_blame`."""
        self.survivors.lost(lost)
        hit = lost & {stage.device for stage in self.chain}
        return self._lose(hit if to_blame else set(), hit) if hit and self._has_chain() else []

    def let_go(self) -> list[Action]:
        """It has waited for so long that what stages keep for it is given up."""
        closes = [] if self._has_chain() else self._closes(self.survivors.open)
        if closes:
            self.survivors = Survivors()
        return closes

    def move_away(self, avoid: Collection[DeviceKey]) -> list[Action]:
        """It waits in vain where it is: another chain, without these devices if that is possible."""
        return self._lose(set(avoid)) if self._has_chain() else []

    def fail(self, code: str, message: str, retry_after_s: float | None = None) -> list[Action]:
        """Give up: close what is open and tell the user."""
        failed = Failed(self.order.session_id, code, message, retry_after_s, started=bool(self.tokens))
        return [*self.end(), failed]

    def end(self) -> list[Action]:
        """Finished or cancelled: the chain is closed."""
        closes = self._closes((*self.chain, *self.survivors.open)) if self.state is not SessionState.ENDED else []
        self._move(SessionSignal.END)
        return closes

    def is_current(self, epoch: int) -> bool:
        """Whether rows of this epoch still have a chain to go to; others are late."""
        return epoch == self.epoch and self._has_chain()

    def device_at(self, node_id: NodeId, epoch: int, stage: int) -> DeviceKey | None:
        """The device that this news of a node is about; None if it is not about the session's chain of now."""
        return self.chain[stage].device if self.is_current(epoch) and self._is_stage(node_id, stage) else None

    def relay_target(self, sender: NodeId, segment: Segment) -> NodeId | None:
        """Where the rows of a current segment go, or None if this sender must not send them in this session."""
        if not segment.stage < len(self.chain):
            return None
        allowed = self._is_stage(sender, (segment.stage or len(self.chain)) - 1)
        return self.chain[segment.stage].device.node_id if allowed else None

    # ------------------------------------------------------------ parts

    def _may_try_again(self, code: str) -> bool:
        """A full node is no reason to suspect the session: room comes back."""
        if code == KV_FULL:
            self.num_full += 1
        else:
            self.num_breaks += 1
        return self.num_full < MAX_FULL and self.num_breaks < MAX_BREAKS

    def _lose(self, culprits: set[DeviceKey], gone: Collection[DeviceKey] = ()) -> list[Action]:
        """The chain is no more. Nodes that hold something worth keeping are closed when the next chain is known."""
        self._move(SessionSignal.LOST)
        closes = self._closes(self.survivors.leave(self.chain, gone))
        self.avoid |= culprits
        self.chain = self.num_kept = ()
        self.has_committed = self.wants_move = False
        self.opened.clear()
        kept = tuple(stage.device for stage in self.survivors.open)
        return [*closes, NeedChain(self.order.session_id, self.avoid, kept)]

    def _move_now(self) -> list[Action]:
        wanted, self.wants_move = self.wants_move, False
        return [WantMove(self.order.session_id, self.avoid)] if wanted else []

    def _culprit(self, stage: int, code: str) -> DeviceKey:
        """Of a lost link the far end: the near one is there to tell of it."""
        return self.chain[(stage + (code == LINK_LOST)) % len(self.chain)].device

    def _open(self, stage: int, contacts: dict[NodeId, Contact]) -> SendMessage:
        place, last = self.chain[stage], len(self.chain) - 1
        tail = stage == last
        message = OpenSession(
            session_id=self.order.session_id,
            epoch=self.epoch,
            device_id=place.device.device_id,
            generation=place.generation,
            stage=stage,
            num_stages=len(self.chain),
            num_prompt_tokens=len(self.log),
            num_reserved_tokens=self.order.num_tokens,
            previous=self._hop(stage - 1 if stage else last, {}),
            next=self._hop(0 if tail else stage + 1, contacts),
            sampling=self.order.sampling if tail else None,
            stop=StopRule(self.order.num_tokens, self.order.stop_tokens) if tail else None,
            history=self.log if tail else (),
            num_kept_tokens=self.num_kept[stage],
            next_from=0 if tail else self.num_kept[stage + 1],
        )
        return SendMessage(place.device.node_id, message)

    def _hop(self, stage: int, contacts: dict[NodeId, Contact]) -> Hop:
        node_id = self.chain[stage].device.node_id
        contact = contacts.get(node_id, Contact())
        return Hop(node_id, stage, contact.address, contact.ticket, contact.fingerprint)

    def _prompt_frames(self) -> list[bytes]:
        log, frames = self.log, []
        for seq, start in enumerate(range(self.num_kept[0], len(log), MAX_ROWS_PER_FRAME)):
            tokens = log[start : start + MAX_ROWS_PER_FRAME]
            segment = Segment(self.order.session_id, self.epoch, start, len(tokens), seq, 0, Phase.PREFILL)
            payload = struct.pack(f"<{len(tokens)}i", *tokens)
            frames.append(encode_frame(Frame(FrameKind.TOKENS, WireDtype.INT32, 1, (segment,), payload)))
        return frames

    def _closes(self, stages: Iterable[ChainStage]) -> list[Action]:
        message = CloseSession(self.order.session_id, self.epoch)
        return [SendMessage(node_id, message) for node_id in dict.fromkeys(s.device.node_id for s in stages)]

    def _has_chain(self) -> bool:
        return self.state in (SessionState.OPENING, SessionState.RUNNING)

    def _is_stage(self, node_id: NodeId, stage: int) -> bool:
        return stage < len(self.chain) and self.chain[stage].device.node_id == node_id

    def _move(self, signal: SessionSignal) -> None:
        self.state = TRANSITIONS[self.state, signal]

    def validate(self) -> None:
        """Re-derive the invariants; raises AssertionError."""
        assert bool(self.chain) == self._has_chain() or self.state is SessionState.ENDED, self
        assert len(self.tokens) <= self.order.max_new_tokens, self
        assert self.opened <= set(range(len(self.chain))), self
        if self.state is not SessionState.ENDED:
            assert len(self.num_kept) == len(self.chain), self
            assert all(num < len(self.log) for num in self.num_kept), self
            assert not (self.survivors.open and self._has_chain()), self
        self.survivors.validate()
