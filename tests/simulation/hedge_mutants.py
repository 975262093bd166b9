"""Planted bugs of second chains: what fences them, what they catch up with, and that the loser ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from coordinator.hedges import Hedge
from coordinator.scheduler.hedged import HedgedRoom
from coordinator.sessions import Deliver, Session
from coordinator.survivors import Survivors
from tests.simulation.planting import Patch, mutant


@mutant
def the_loser_of_two_chains_is_not_closed() -> Sequence[Patch]:
    """The first one goes on computing when the second one has won."""
    switch = Session._switch

    def unclosed(self: Session, hedge: Any) -> Any:
        return switch(self, hedge)[-2:]

    return [(Session, "_switch", unclosed)]


@mutant
def a_second_chain_that_is_given_up_is_not_closed() -> Sequence[Patch]:
    drop = Session._drop_hedge

    def unclosed(self: Session) -> Any:
        drop(self)
        return []

    return [(Session, "_drop_hedge", unclosed)]


@mutant
def tokens_of_both_chains_are_committed() -> Sequence[Patch]:
    """What the second chain says once more is taken for the next token."""
    hedge_sampled = Session._hedge_sampled

    def once_more(self: Session, hedge: Hedge, node_id: Any, message: Any) -> Any:
        is_behind = hedge.position == message.position < len(self.log)
        twice = structs.replace(message, tokens=(*self.log[message.position :], *message.tokens))
        return hedge_sampled(self, hedge, node_id, twice if is_behind else message)

    return [(Session, "_hedge_sampled", once_more)]


@mutant
def the_loser_of_two_chains_is_not_fenced() -> Sequence[Patch]:
    """Its tokens are taken for those of the chain that has won."""
    sampled = Session.sampled

    def lax(self: Session, node_id: Any, message: Any) -> Any:
        is_old = self.num_hedges and self.hedge is None and message.epoch < self.epoch
        if not is_old or not self.chain or message.position != len(self.log):
            return sampled(self, node_id, message)
        self.tokens += message.tokens
        return [Deliver(self.order.session_id, message.position, message.tokens, None, message.timing)]

    return [(Session, "sampled", lax)]


@mutant
def a_catch_up_skips_a_token() -> Sequence[Patch]:
    """The second chain goes on one row behind what it has computed."""
    survivors, begin = Hedge.survivors, Hedge.begin

    def one_more(self: Hedge, *, is_open: bool) -> Survivors:
        found = survivors(self, is_open=is_open)
        found.num_rows += 1
        return found

    def skip(self: Hedge, order: Any, log: Any, epoch: int) -> Any:
        self.num_rows += bool(self.num_rows)
        return begin(self, order, log, epoch)

    return [(Hedge, "survivors", one_more), (Hedge, "begin", skip), (Session, "validate", lambda self: None)]


@mutant
def a_second_chain_begins_with_the_log_of_now() -> Sequence[Patch]:
    """Its head gets more rows than its stages were told of."""
    opened = Hedge.stage_opened

    def longer(self: Hedge, order: Any, log: Any, stage: int) -> Any:
        self.num_log = len(log)
        return opened(self, order, log, stage)

    return [(Hedge, "stage_opened", longer)]


@mutant
def both_chains_run_over_the_same_nodes() -> Sequence[Patch]:
    return [(HedgedRoom, "own_nodes", lambda self, running: frozenset())]


@mutant
def a_second_chain_takes_no_room() -> Sequence[Patch]:
    """Nobody counts what it reserves."""
    return [(HedgedRoom, "start", lambda self, session_id, hedge: None)]


@mutant
def everybody_has_a_second_chain() -> Sequence[Patch]:
    return [(HedgedRoom, "is_spent", False)]
