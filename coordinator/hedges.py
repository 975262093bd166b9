"""A second chain for a session whose own is slow or about to leave, while that one goes on: make before break. Pure.

A hedge begins with the log as it was, computes it beside the running chain, and then goes on by itself. Seeds are per
position, so it gives the tokens that are in the log by then once more: as long as they are the same, what its stages
have computed is right, and the hedge is only behind. Its first token that the log has not is the next one of the
session. Whoever cannot wait for that lets the hedge take over as it is: in a new epoch, its stages keep what is right
and get the rest of the log at once.

The two chains share no node. Stages know one epoch of a session, and what a newer one begins with is cut off the
older one's KV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from coordinator.openings import Contact, Order, Run, first_row, may_begin, names_for, prompt_frames
from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey
from coordinator.survivors import Survivors
from protocol.messages import OpenSession, TokensSampled
from protocol.values import NodeId

MAX_HEDGES = 3
"""Of one session. Whoever has found no better place by then moves as if there were none."""
CATCH_UP_TOKENS = 16
"""A hedge that is so far behind gets what it lacks as a prompt once, instead of computing it token by token."""


class HedgeState(Enum):
    OPENING = auto()
    FILLING = auto()
    """It has the log and has given no token yet."""
    WARM = auto()
    """It has given tokens, and all of them are in the log."""


class HedgeSignal(Enum):
    OPENED = auto()
    TOKEN = auto()
    CATCH_UP = auto()


TRANSITIONS: dict[tuple[HedgeState, HedgeSignal], HedgeState] = {
    (HedgeState.OPENING, HedgeSignal.OPENED): HedgeState.FILLING,
    (HedgeState.FILLING, HedgeSignal.TOKEN): HedgeState.WARM,
    (HedgeState.WARM, HedgeSignal.TOKEN): HedgeState.WARM,
    (HedgeState.WARM, HedgeSignal.CATCH_UP): HedgeState.OPENING,
}


class Step(Enum):
    """What a token of the hedge is."""

    STRANGE = auto()
    """Not its next one: it is dropped."""
    BEHIND = auto()
    """In the log already."""
    NEXT = auto()
    """The next one of the session."""
    DIFFERS = auto()
    """Another one than that in the log, as rounding may have it: its KV is right up to here only."""


@dataclass(slots=True)
class Hedge:
    """The second chain of one session. `keepers`: devices that can keep KV over epochs."""

    chain: tuple[ChainStage, ...]
    contacts: Mapping[NodeId, Contact]
    keepers: frozenset[DeviceKey]
    is_hurried: bool = False
    """The other chain is about to go: as soon as this one has computed the log it takes over."""
    epoch: int = 0
    state: HedgeState = HedgeState.OPENING
    opened: dict[int, int] = field(default_factory=dict)
    """By stage: rows that it has from its cache."""
    names: tuple[str, ...] = ()
    """Of the blocks of what this epoch began with."""
    num_log: int = 0
    """Tokens of the log that it began with."""
    position: int = 0
    """Of its next token."""
    num_rows: int = 0
    """Of the log, that every stage has computed for certain."""
    num_catch_ups: int = 0
    catch_up_tokens: int = CATCH_UP_TOKENS

    @property
    def is_warm(self) -> bool:
        return self.num_rows > 0

    @property
    def keeps(self) -> bool:
        """Whether all of its stages can go on behind a part of what they have."""
        return all(stage.device in self.keepers for stage in self.chain)

    def is_over(self, node_id: NodeId) -> bool:
        return any(stage.device.node_id == node_id for stage in self.chain)

    def begin(self, order: Order, log: tuple[int, ...], epoch: int) -> list[tuple[NodeId, OpenSession]]:
        """What its stages are told, tail first: from the beginning, or behind what they have. `rows` come next."""
        if self.is_warm:
            self._move(HedgeSignal.CATCH_UP)
            self.num_catch_ups += 1
        self.epoch, self.num_log, self.position = epoch, len(log), len(log)
        self.opened.clear()
        self.names = names_for(self.chain, log, order.tenant)
        run = Run(order, epoch, self.chain, log, self._num_kept, self.names)
        opens = [run.open_message(stage, self.contacts) for stage in reversed(range(len(self.chain)))]
        return [(self.chain[message.stage].device.node_id, message) for message in opens]

    @property
    def _num_kept(self) -> tuple[int, ...]:
        return tuple(self.num_rows for _ in self.chain)

    @property
    def _may_begin(self) -> bool:
        return may_begin(self.chain, self.names, self._num_kept, self.opened)

    def rows(self, order: Order, log: Sequence[int]) -> list[bytes]:
        """What the head gets, if it may have it yet: the log as it was when its stages were told to open."""
        if not self._may_begin:
            return []
        first = first_row(self.num_log, self._num_kept, self.opened)
        return prompt_frames(order.session_id, self.epoch, tuple(log[: self.num_log]), first)

    def stage_opened(self, order: Order, log: Sequence[int], stage: int, num_cached: int = 0) -> list[bytes]:
        """What the head gets now."""
        if self.state is not HedgeState.OPENING:
            return []
        had_rows = self._may_begin
        self.opened[stage] = num_cached
        if len(self.opened) == len(self.chain):
            self._move(HedgeSignal.OPENED)
        return [] if had_rows else self.rows(order, log)

    def sampled(self, message: TokensSampled, log: Sequence[int]) -> Step:
        """Its tail has given tokens. A token at a position means that all rows before it are computed; it may be here
        before the head's word that it has opened."""
        if not self._may_begin or message.position != self.position:
            return Step.STRANGE
        if self.state is HedgeState.OPENING:
            self.opened[0] = 0
            self._move(HedgeSignal.OPENED)
        self._move(HedgeSignal.TOKEN)
        self.num_rows = self.position
        known = tuple(log[self.position : self.position + len(message.tokens)])
        if known != message.tokens[: len(known)]:
            return Step.DIFFERS
        if len(known) < len(message.tokens):
            return Step.NEXT
        self.position += len(known)
        return Step.BEHIND

    def survivors(self, *, is_open: bool) -> Survivors:
        """What the next epoch may keep of it. `is_open`: the session has no chain meanwhile."""
        return Survivors(self.num_rows, frozenset(self.chain), self.chain if is_open else ())

    def _move(self, signal: HedgeSignal) -> None:
        self.state = TRANSITIONS[self.state, signal]

    def validate(self, num_log: int) -> None:
        """What must hold between events (AssertionError)."""
        assert 0 <= self.num_rows <= self.position <= num_log, self
        assert self.is_warm or self.state is not HedgeState.WARM, self
        assert self.opened.keys() <= set(range(len(self.chain))), self
