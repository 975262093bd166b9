"""One generation each: token log, epoch, chain, recovery by replay. Pure: what happened in, actions out.

The log (prompt + committed tokens) is the truth about a session; a chain is only the place where its KV happens to
be. Losing a chain means: new epoch, new chain, the log as the new prompt; stages that are in both chains keep their KV
(survivors.py). The epoch fences: whatever an older chain still says is dropped, so that no token is lost, repeated or
changed (ARCHITECTURE.md, one chat request). While a session runs it may have a second chain beside its own (hedges.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from msgspec import structs

from coordinator.hedges import MAX_HEDGES, Hedge, HedgeState, Step
from coordinator.openings import Contact as Contact
from coordinator.openings import Order as Order
from coordinator.openings import Run, first_row, may_begin, names_for, prompt_frames
from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey
from coordinator.survivors import HARMLESS_TO_KV, LINK_LOST, NOTHING_KEPT, Survivors
from protocol.frames import Segment
from protocol.messages import CloseSession, OpenSession, TokensSampled
from protocol.values import FinishReason, NodeId, SessionId, StepTiming, TokenLogprobs

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
    SWITCH = auto()
    """Its second chain was first, and is its own from now on."""
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
    (SessionState.RUNNING, SessionSignal.SWITCH): SessionState.RUNNING,
    (SessionState.RUNNING, SessionSignal.LOST): SessionState.QUEUED,
    (SessionState.RUNNING, SessionSignal.END): SessionState.ENDED,
}


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
    """Commit these tokens to the log, then stream them to the user. `num_cached_tokens`, with the first of them: so
    many of the prompt were not computed for it, as all stages had them."""

    session_id: SessionId
    position: int
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    timing: StepTiming
    num_cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Queued:
    """No chain has been free for the request yet; `place` 1 is next. `expected_wait_s` is None if nothing is known."""

    place: int
    num_waiting: int
    expected_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The session runs over this chain from now on, in this epoch."""

    session_id: SessionId
    chain: tuple[ChainStage, ...]
    epoch: int = 0


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
    session's KV. `takes_over`: the chain of its hedge."""

    session_id: SessionId
    avoid: frozenset[DeviceKey]
    kept: tuple[DeviceKey, ...] = ()
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class WantMove:
    """Now is a good moment for another chain, if there is one: the session runs on over its own until then."""

    session_id: SessionId
    avoid: frozenset[DeviceKey]


@dataclass(frozen=True, slots=True)
class HedgeEnded:
    """Of its two chains the session has one now: that of the hedge if it has won. The other is closed."""

    session_id: SessionId
    has_won: bool


Action = SendMessage | SendFrame | Deliver | Rerouted | Failed | NeedChain | WantMove | HedgeEnded


@dataclass(slots=True)
class Session:
    """One generation. Methods return what is to be done; the caller does it in that order."""

    order: Order
    state: SessionState = SessionState.QUEUED
    tokens: list[int] = field(default_factory=list)
    epoch: int = 0
    chain: tuple[ChainStage, ...] = ()
    opened: dict[int, int] = field(default_factory=dict)
    """By stage: rows that it has from its cache."""
    names: tuple[str, ...] = ()
    """Of the blocks of what this epoch began with."""
    num_breaks: int = 0
    num_full: int = 0
    avoid: frozenset[DeviceKey] = frozenset()
    survivors: Survivors = field(default_factory=Survivors)
    num_kept: tuple[int, ...] = ()
    """Per stage of the chain: rows that are not computed again."""
    has_committed: bool = False
    """In this epoch."""
    wants_move: bool = False
    hedge: Hedge | None = None
    """A second chain beside its own."""
    num_hedges: int = 0
    last_epoch: int = 0
    """Of the hedges that there were; its own may be newer."""

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
        closes = [*self._drop_hedge(), *self._closes(left)]
        self.epoch = self._next_epoch()
        self.chain, self.num_kept = chain, self.survivors.start(chain, keepers)
        self.names = names_for(chain, self.log, self.order.tenant)
        self.has_committed = self.wants_move = False
        self.opened.clear()
        opens = [self._open(stage, contacts) for stage in reversed(range(len(chain)))]
        return [Rerouted(self.order.session_id, chain, self.epoch), *opens, *self._rows(), *closes]

    def stage_opened(self, node_id: NodeId, epoch: int, stage: int, num_cached: int = 0) -> list[Action]:
        """Once it may begin the head gets the log, or what it has not kept of it, or what not all stages have in their
        caches."""
        if self.hedge is not None and epoch == self.hedge.epoch and self._is_stage(node_id, stage, epoch):
            return _to_head(self.hedge.chain, self.hedge.stage_opened(self.order, self.log, stage, num_cached))
        if epoch != self.epoch or self.state is not SessionState.OPENING or not self._is_stage(node_id, stage):
            return []
        had_rows = self._may_begin
        self.opened[stage] = num_cached
        if len(self.opened) == len(self.chain):
            self._move(SessionSignal.OPENED)
        return [] if had_rows else self._rows()

    def sampled(self, node_id: NodeId, message: TokensSampled) -> list[Action]:
        """Tokens from the tail. Anything but the next position of this epoch from this tail is dropped."""
        if self.hedge is not None and message.epoch == self.hedge.epoch:
            return self._hedge_sampled(self.hedge, node_id, message)
        if message.epoch != self.epoch or not self._has_chain() or not self._may_begin:
            return []
        if not self._is_stage(node_id, len(self.chain) - 1) or message.position != len(self.log):
            return []
        if self.state is SessionState.OPENING:  # the head's word that it has opened comes on another line
            self.opened[0] = 0
            self._move(SessionSignal.OPENED)
        if len(self.tokens) + len(message.tokens) > self.order.max_new_tokens:
            return self.broken(node_id, self.epoch, len(self.chain) - 1, "too_many_tokens", "the tail did not stop")
        num_cached = 0 if self.tokens else self._first_row
        self.tokens += message.tokens
        self.num_breaks = 0
        self.has_committed = True
        self.survivors.committed(message.position)
        finish = message.finish_reason
        if finish is None and len(self.tokens) == self.order.max_new_tokens:
            finish = FinishReason.LENGTH  # a tail that forgot to say so must not leave the user waiting
        news = (message.position, message.tokens, finish, message.timing, num_cached, message.logprobs)
        deliver = Deliver(self.order.session_id, *news)
        return [deliver, *self.end()] if finish else [deliver, *self._move_now()]

    def move_soon(self) -> list[Action]:
        """A node of the chain wants to go. Between two tokens nothing is lost; before the first one, nothing yet."""
        self.wants_move = self._has_chain()
        return [] if self.has_committed else self._move_now()

    def broken(self, node_id: NodeId, epoch: int, stage: int, code: str, message: str) -> list[Action]:
        """A stage cannot go on. Another chain is tried, up to a limit. That a stage has not kept what it should is
        nobody's fault: it computes everything anew, and so do those before it, which have not kept more."""
        if self.hedge is not None and epoch == self.hedge.epoch and self._is_stage(node_id, stage, epoch):
            self.avoid |= {self._culprit(self.hedge.chain, stage, code)} if code != NOTHING_KEPT else set()
            return self.end_hedge()
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
        return self._lose({self._culprit(self.chain, stage, code)})

    def devices_lost(self, lost: set[DeviceKey], *, to_blame: bool = True) -> list[Action]:
        """Devices are gone; if the session ran over one of them it moves, and avoids those that are `to_blame`."""
        self.survivors.lost(lost)
        hit = lost & {stage.device for stage in self.chain}
        ended = self.end_hedge() if self.hedge and lost & {stage.device for stage in self.hedge.chain} else []
        return [*ended, *(self._lose(hit if to_blame else set(), hit) if hit and self._has_chain() else [])]

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
        """Finished or cancelled: the chain is closed. What it has computed of the log may begin others."""
        stages = (*self.chain, *self.survivors.open)
        names = names_for(self.chain, self.log, self.order.tenant)
        closes = self._closes(stages, names=names) if self.state is not SessionState.ENDED else []
        self._move(SessionSignal.END)
        return [*self._drop_hedge(), *closes]

    def is_current(self, epoch: int) -> bool:
        """Whether rows of this epoch still have a chain to go to; others are late."""
        return bool(self._chain_of(epoch))

    def device_at(self, node_id: NodeId, epoch: int, stage: int) -> DeviceKey | None:
        """The device that this news of a node is about; None if it is not about the session's chains of now."""
        return self._chain_of(epoch)[stage].device if self._is_stage(node_id, stage, epoch) else None

    def relay_target(self, sender: NodeId, segment: Segment) -> NodeId | None:
        """Where the rows of a current segment go, or None if this sender must not send them in this session."""
        chain = self._chain_of(segment.epoch)
        if not segment.stage < len(chain):
            return None
        allowed = self._is_stage(sender, (segment.stage or len(chain)) - 1, segment.epoch)
        return chain[segment.stage].device.node_id if allowed else None

    # ------------------------------------------------------------ a second chain

    @property
    def may_hedge(self) -> bool:
        """Whether a second chain may open now: what it begins with is in the log, and nothing else is under way."""
        return self.has_committed and not self.wants_move and self.hedge is None and self.num_hedges < MAX_HEDGES

    def open_hedge(self, hedge: Hedge) -> list[Action]:
        """It computes the log while the session's own chain goes on. The two share no node."""
        assert self.may_hedge, "who opens a second chain has asked"
        assert not _nodes(hedge.chain) & _nodes(self.chain), "a node knows one epoch of a session"
        self.hedge = hedge
        self.num_hedges += 1
        return self._begin_hedge(hedge)

    def hurry(self) -> list[Action]:
        """Its own chain is about to go: the second one takes over as soon as it has computed the log."""
        assert self.hedge is not None, "who is in a hurry has asked"
        self.hedge.is_hurried = True
        return self._take_over(self.hedge) if self.hedge.state is HedgeState.WARM else []

    def end_hedge(self) -> list[Action]:
        """The second chain is not needed, or does not work: the session has its own."""
        closes = self._drop_hedge()
        return [*closes, HedgeEnded(self.order.session_id, has_won=False)] if closes else []

    def _begin_hedge(self, hedge: Hedge) -> list[Action]:
        self.last_epoch = self._next_epoch()
        opens = hedge.begin(self.order, self.log, self.last_epoch)
        rows = _to_head(hedge.chain, hedge.rows(self.order, self.log))
        return [*(SendMessage(node_id, message) for node_id, message in opens), *rows]

    def _hedge_sampled(self, hedge: Hedge, node_id: NodeId, message: TokensSampled) -> list[Action]:
        """The first chain to give the next token wins. A token is committed once, by its position."""
        if not self._is_stage(node_id, len(hedge.chain) - 1, message.epoch):
            return []
        match hedge.sampled(message, self.log):
            case Step.STRANGE:
                return []
            case Step.DIFFERS:
                return self._take_over(hedge)
            case Step.NEXT:
                num_known = len(self.log) - message.position
                return [*self._switch(hedge), *self.sampled(node_id, message.behind(num_known))]
            case Step.BEHIND:
                return self._caught_up(hedge)

    def _caught_up(self, hedge: Hedge) -> list[Action]:
        """As far as the log was a while ago."""
        is_far = len(self.log) - hedge.position >= hedge.catch_up_tokens
        if is_far and hedge.keeps and not hedge.num_catch_ups:
            return self._begin_hedge(hedge)
        return self._take_over(hedge) if hedge.is_hurried else []

    def _switch(self, hedge: Hedge) -> list[Action]:
        """The second chain is the session's own from now on, as it is."""
        self._move(SessionSignal.SWITCH)
        closes = self._closes(self.chain)
        self.chain, self.epoch, self.opened, self.hedge = hedge.chain, hedge.epoch, hedge.opened, None
        self.survivors = Survivors()
        self.num_kept = self.survivors.start(hedge.chain, hedge.keepers)
        self.has_committed = self.wants_move = False
        session_id = self.order.session_id
        return [*closes, HedgeEnded(session_id, has_won=True), Rerouted(session_id, self.chain, self.epoch)]

    def _take_over(self, hedge: Hedge) -> list[Action]:
        """The second chain goes on in a new epoch, behind what it has computed for certain, with the log of now."""
        self.survivors, self.hedge = hedge.survivors(is_open=False), None
        kept = tuple(stage.device for stage in hedge.chain)
        return [NeedChain(self.order.session_id, self.avoid, kept, takes_over=True)]

    def _drop_hedge(self) -> list[Action]:
        hedge, self.hedge = self.hedge, None
        return self._closes(hedge.chain, hedge.epoch) if hedge is not None else []

    def _next_epoch(self) -> int:
        return max(self.epoch, self.last_epoch) + 1

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
        takes_over = self.hedge is not None and self.hedge.is_warm
        closes = self._leave_to(self.hedge) if self.hedge is not None and self.hedge.is_warm else self._leave(gone)
        self.avoid |= culprits
        self.chain = self.num_kept = ()
        self.has_committed = self.wants_move = False
        self.opened.clear()
        kept = tuple(stage.device for stage in self.survivors.open)
        return [*closes, NeedChain(self.order.session_id, self.avoid, kept, takes_over)]

    def _leave(self, gone: Collection[DeviceKey]) -> list[Action]:
        """What its stages have is kept for the next chain; a second one that has nothing yet is of no use."""
        return [*self._drop_hedge(), *self._closes(self.survivors.leave(self.chain, gone))]

    def _leave_to(self, hedge: Hedge) -> list[Action]:
        """The second chain has all but the last tokens."""
        self.survivors, self.hedge = hedge.survivors(is_open=True), None
        return self._closes(self.chain)

    def _move_now(self) -> list[Action]:
        wanted, self.wants_move = self.wants_move, False
        return [WantMove(self.order.session_id, self.avoid)] if wanted else []

    @staticmethod
    def _culprit(chain: tuple[ChainStage, ...], stage: int, code: str) -> DeviceKey:
        """Of a lost link the far end: the near one is there to tell of it."""
        return chain[(stage + (code == LINK_LOST)) % len(chain)].device

    def _open(self, stage: int, contacts: dict[NodeId, Contact]) -> SendMessage:
        run = Run(self.order, self.epoch, self.chain, self.log, self.num_kept, self.names)
        return SendMessage(self.chain[stage].device.node_id, run.open_message(stage, contacts))

    @property
    def _may_begin(self) -> bool:
        return may_begin(self.chain, self.names, self.num_kept, self.opened)

    def _rows(self) -> list[Action]:
        if not self._may_begin:
            return []
        return _to_head(self.chain, prompt_frames(self.order.session_id, self.epoch, self.log, self._first_row))

    @property
    def _first_row(self) -> int:
        """Of the log, as it was when this epoch began."""
        return first_row(len(self.log), self.num_kept, self.opened)

    def _closes(
        self, stages: Iterable[ChainStage], epoch: int | None = None, names: tuple[str, ...] = ()
    ) -> list[Action]:
        """One message per node, with `names` for those that can use them."""
        message = CloseSession(self.order.session_id, self.epoch if epoch is None else epoch)
        can_use: dict[NodeId, bool] = {}
        for stage in stages:
            can_use[stage.device.node_id] = can_use.get(stage.device.node_id, False) or stage.has_prefix_cache
        named = structs.replace(message, prefix_hashes=names)
        return [SendMessage(node_id, named if can else message) for node_id, can in can_use.items()]

    def _has_chain(self) -> bool:
        return self.state in (SessionState.OPENING, SessionState.RUNNING)

    def _chain_of(self, epoch: int) -> tuple[ChainStage, ...]:
        """The session's own chain, or its second one; nothing for an epoch that is over."""
        if self.hedge is not None and epoch == self.hedge.epoch:
            return self.hedge.chain
        return self.chain if epoch == self.epoch and self._has_chain() else ()

    def _is_stage(self, node_id: NodeId, stage: int, epoch: int | None = None) -> bool:
        chain = self.chain if epoch is None else self._chain_of(epoch)
        return stage < len(chain) and chain[stage].device.node_id == node_id

    def _move(self, signal: SessionSignal) -> None:
        self.state = TRANSITIONS[self.state, signal]

    def validate(self) -> None:
        """Re-derive the invariants; raises AssertionError."""
        assert bool(self.chain) == self._has_chain() or self.state is SessionState.ENDED, self
        assert len(self.tokens) <= self.order.max_new_tokens, self
        assert self.opened.keys() <= set(range(len(self.chain))), self
        if self.state is not SessionState.ENDED:
            assert len(self.num_kept) == len(self.chain), self
            assert all(num < len(self.log) for num in self.num_kept), self
            assert not (self.survivors.open and self._has_chain()), self
        if self.hedge is not None:
            assert self.state is SessionState.RUNNING, self
            assert self.hedge.epoch == self.last_epoch > self.epoch, self
            assert not _nodes(self.hedge.chain) & _nodes(self.chain), self
            self.hedge.validate(len(self.log))
        self.survivors.validate()


def _to_head(chain: tuple[ChainStage, ...], frames: Iterable[bytes]) -> list[Action]:
    return [SendFrame(chain[0].device.node_id, frame) for frame in frames]


def _nodes(chain: tuple[ChainStage, ...]) -> set[NodeId]:
    return {stage.device.node_id for stage in chain}
