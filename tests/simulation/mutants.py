"""Planted bugs: each changes the running code so that a promise is broken. A history must notice every one of them.

A fault menu that does not find a missing fence is no test of fences; see MENU in faults.py. What is only found later
without it breaks no promise, and is not planted: that a gap in the rows or a broken link is told, that the relay is
used. The deadlines of late answers find what these miss.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from coordinator import core as core_module
from coordinator import hub as hub_module
from coordinator import lateness as lateness_module
from coordinator import openings as openings_module
from coordinator import sessions as sessions_module
from coordinator.core import PoolCore
from coordinator.delivery import Delivery, News, page_of
from coordinator.effects import ToNode
from coordinator.errors import StorageUnavailable
from coordinator.hub import Hub
from coordinator.lateness import Lateness
from coordinator.poison import CrashBook
from coordinator.scheduler.routing import ChainRouter
from coordinator.scheduler.scheduler import Scheduler
from coordinator.sessions import Deliver, SendMessage, Session, SessionState
from coordinator.survivors import NOTHING_KEPT, Survivors
from coordinator.verdict import Wait
from protocol.messages import CloseSession
from tests.simulation import agent_mutants, hedge_mutants, prefix_mutants
from tests.simulation.planting import MUTANTS, Patch, mutant, planted
from tests.simulation.simulation import Verdict, simulate

__all__ = ["LIMIT_CPU_S", "MUTANTS", "Hunt", "agent_mutants", "hedge_mutants", "hunt", "planted", "prefix_mutants"]

LIMIT_CPU_S = 60.0
"""Each must be found in so much time of one core."""


@dataclass(frozen=True)
class Hunt:
    """How a mutant was found: the seed, what was wrong, CPU seconds. `verdict` None: it was not."""

    name: str
    verdict: Verdict | None
    num_histories: int
    cpu_s: float


def hunt(name: str, limit_cpu_s: float = LIMIT_CPU_S) -> Hunt:
    """Histories one after the other until one of them notices."""
    begin_s = time.process_time()
    with planted(name):
        for seed in itertools.count():
            verdict = simulate(seed)
            cpu_s = time.process_time() - begin_s
            if verdict.wrong or cpu_s > limit_cpu_s:
                return Hunt(name, verdict if verdict.wrong else None, seed + 1, cpu_s)
    raise AssertionError("seeds never end")


# ---------------------------------------------------------------- fences and epochs


@mutant
def no_fence_for_tokens() -> Sequence[Patch]:
    """Tokens of an old epoch are taken."""
    sampled = Session.sampled

    def lax(self: Session, node_id: Any, message: Any) -> Any:
        return sampled(self, node_id, structs.replace(message, epoch=self.epoch))

    return [(Session, "sampled", lax)]


@mutant
def no_check_of_token_positions() -> Sequence[Patch]:
    sampled = Session.sampled

    def lax(self: Session, node_id: Any, message: Any) -> Any:
        return sampled(self, node_id, structs.replace(message, position=len(self.log)))

    return [(Session, "sampled", lax)]


@mutant
def no_new_epoch_on_a_new_chain() -> Sequence[Patch]:
    start = Session.start

    def same(self: Session, *args: Any) -> Any:
        self.epoch, self.last_epoch = min(self.epoch, 0), 0
        return start(self, *args)

    return [(Session, "start", same)]


@mutant
def an_old_stage_counts_as_open() -> Sequence[Patch]:
    opened = Session.stage_opened
    return [(Session, "stage_opened", lambda self, node, epoch, stage: opened(self, node, self.epoch, stage))]


@mutant
def breaks_of_old_epochs_count() -> Sequence[Patch]:
    """A chain that is fine is given up for what an older one says."""
    device_at, broken = Session.device_at, Session.broken
    return [
        (Session, "device_at", lambda self, node, epoch, stage: device_at(self, node, self.epoch, stage)),
        (Session, "broken", lambda self, node, epoch, *rest: broken(self, node, self.epoch, *rest)),
    ]


@mutant
def old_rows_are_relayed() -> Sequence[Patch]:
    is_current = Session.is_current
    return [(Session, "is_current", lambda self, epoch: is_current(self, self.epoch))]


# ---------------------------------------------------------------- the log


@mutant
def sent_before_it_is_committed() -> Sequence[Patch]:
    put, hand_out = Delivery.put, Hub._hand_out

    def is_token(piece: Any) -> bool:
        return isinstance(piece, News) and isinstance(piece.item, Deliver)

    def early(self: Delivery, piece: Any) -> None:
        if is_token(piece):
            hand_out(self._hand_out.__self__, piece)  # type: ignore[attr-defined]
        put(self, piece)

    return [
        (Delivery, "put", early),
        (Hub, "_hand_out", lambda self, news: None if is_token(news) else hand_out(self, news)),
    ]


@mutant
def delivered_twice_after_a_move() -> Sequence[Patch]:
    """The last token is sent once more when the chain changes."""
    act = PoolCore._act

    def twice(self: PoolCore, session: Session, actions: Any, now_s: float) -> Any:
        last = [a for a in actions if isinstance(a, Deliver)]
        again = last if session.epoch > 1 and last and not last[-1].finish_reason else []
        return act(self, session, [*actions, *again], now_s)

    return [(PoolCore, "_act", twice)]


@mutant
def replayed_without_committed_tokens() -> Sequence[Patch]:
    frames = Session._prompt_frames

    def short(self: Session) -> list[bytes]:
        tokens, self.tokens = self.tokens, []
        try:
            return frames(self)
        finally:
            self.tokens = tokens

    return [(Session, "_prompt_frames", short)]


@mutant
def replayed_token_by_token() -> Sequence[Patch]:
    return [(openings_module, "MAX_ROWS_PER_FRAME", 1)]


@mutant
def last_token_is_lost_in_the_replay() -> Sequence[Patch]:
    """The log that is replayed ends one token early, and everybody is told so."""

    def short(self: Session) -> tuple[int, ...]:
        return (*self.order.prompt, *(self.tokens[:-1] if self.state is SessionState.OPENING else self.tokens))

    return [(Session, "log", property(short))]


@mutant
def finish_reason_is_lost() -> Sequence[Patch]:
    """A stop token ends nothing."""
    sampled = Session.sampled

    def endless(self: Session, node_id: Any, message: Any) -> Any:
        return sampled(self, node_id, structs.replace(message, finish_reason=None))

    return [(Session, "sampled", endless)]


@mutant
def finish_reason_is_wrong_after_a_move() -> Sequence[Patch]:
    """A replayed tail counts only what it has sampled itself."""
    opened = Session._open

    def far(self: Session, stage: int, contacts: Any) -> SendMessage:
        action = opened(self, stage, contacts)
        stop = action.message.stop if self.epoch > 1 else None  # type: ignore[union-attr]
        if stop is None:
            return action
        further = structs.replace(stop, max_position=stop.max_position - len(self.tokens))
        return replace(action, message=structs.replace(action.message, stop=further))

    return [(Session, "_open", far)]


@mutant
def seed_is_lost_on_a_move() -> Sequence[Patch]:
    opened = Session._open

    def unseeded(self: Session, stage: int, contacts: Any) -> SendMessage:
        action = opened(self, stage, contacts)
        sampling = action.message.sampling  # type: ignore[union-attr]
        if self.epoch == 1 or sampling is None:
            return action
        return replace(action, message=structs.replace(action.message, sampling=structs.replace(sampling, seed=0)))

    return [(Session, "_open", unseeded)]


# ---------------------------------------------------------------- chains


@mutant
def close_overtakes_open() -> Sequence[Patch]:
    apply = Hub._apply

    def closes_first(self: Hub, effects: Any) -> None:
        def is_close(effect: Any) -> bool:
            return isinstance(effect, ToNode) and isinstance(effect.data, CloseSession)

        moved = [structs.replace(e.data, epoch=e.data.epoch + 1) if is_close(e) else None for e in effects]
        late = [ToNode(e.node_id, m) for e, m in zip(effects, moved, strict=True) if m is not None]
        apply(self, [*late, *(e for e in effects if not is_close(e))])

    return [(Hub, "_apply", closes_first)]


@mutant
def lost_device_stays_in_the_chain() -> Sequence[Patch]:
    return [(Session, "devices_lost", lambda self, lost, to_blame=True: [])]


@mutant
def only_the_head_hears_of_the_end() -> Sequence[Patch]:
    closes = Session._closes
    return [(Session, "_closes", lambda self, *stages, **names: closes(self, *stages, **names)[:1])]


@mutant
def a_cancel_reaches_nobody() -> Sequence[Patch]:
    end = Session.end

    def quiet(self: PoolCore, session_id: Any, now_s: float) -> Any:
        session = self.sessions.get(session_id)
        return self._act(session, end(session)[:0], now_s) if session else []

    return [(PoolCore, "cancel", quiet)]


@mutant
def where_it_broke_is_forgotten() -> Sequence[Patch]:
    lose = Session._lose

    def forget(self: Session, culprits: Any, *gone: Any) -> Any:
        return lose(self, set(), *gone)

    return [(Session, "_lose", forget), (Scheduler, "_device_broke", lambda self, event, now_s: [])]


@mutant
def a_broken_session_is_tried_for_ever() -> Sequence[Patch]:
    return [(sessions_module, "MAX_BREAKS", 10**9)]


@mutant
def a_draining_node_gets_new_work() -> Sequence[Patch]:
    ask = ChainRouter._ask

    def undrained(self: ChainRouter, request: Any) -> Any:
        draining, self._state.draining = self._state.draining, set()
        try:
            return ask(self, request)
        finally:
            self._state.draining = draining

    return [(ChainRouter, "_ask", undrained)]


# ---------------------------------------------------------------- time


@mutant
def leases_never_expire() -> Sequence[Patch]:
    return [(core_module, "LEASE_S", 1e9)]


@mutant
def a_stalled_coordinator_judges() -> Sequence[Patch]:
    return [(PoolCore, "_forgive_stall", lambda self, now_s: None)]


@mutant
def a_lost_node_keeps_its_sessions() -> Sequence[Patch]:
    """The connection ends, and nobody draws a conclusion."""

    def gone(self: Hub, node_id: Any, link: Any) -> None:
        if self._links.get(node_id) is link:
            self._unlink(node_id)

    return [(Hub, "_gone", gone)]


@mutant
def what_a_new_chain_leaves_is_not_closed() -> Sequence[Patch]:
    start = Session.start

    def unclosed(self: Session, *args: Any) -> Any:
        return [action for action in start(self, *args) if not _is_close(action)]

    return [(Session, "start", unclosed)]


# ---------------------------------------------------------------- what is kept over epochs


@mutant
def what_is_kept_is_not_closed_at_the_end() -> Sequence[Patch]:
    """Who waits for a chain when its user leaves has KV that nobody gives back."""
    end = Session.end

    def forgetful(self: Session) -> Any:
        self.survivors = Survivors()
        return end(self)

    return [(Session, "end", forgetful)]


@mutant
def more_is_kept_than_was_committed() -> Sequence[Patch]:
    """Stages go on behind the row that was under way when the chain was lost."""
    start = Survivors.start

    def more(self: Survivors, chain: Any, keepers: Any) -> Any:
        return tuple(num_kept and num_kept + 1 for num_kept in start(self, chain, keepers))

    return [(Survivors, "start", more), (Session, "validate", lambda self: None)]


@mutant
def everybody_is_thought_to_have_kept_it() -> Sequence[Patch]:
    """New stages as well as those that were there before."""
    start = Survivors.start

    def all_of_it(self: Survivors, chain: Any, keepers: Any) -> Any:
        return tuple(self.num_rows for _ in start(self, chain, keepers))

    return [(Survivors, "start", all_of_it), (Session, "broken", _never_nothing_kept(Session.broken))]


@mutant
def the_next_stage_is_sent_everything_again() -> Sequence[Patch]:
    opened = Session._open

    def from_the_first(self: Session, stage: int, contacts: Any) -> SendMessage:
        action = opened(self, stage, contacts)
        return replace(action, message=structs.replace(action.message, next_from=0))

    return [(Session, "_open", from_the_first)]


@mutant
def a_survivor_gets_the_whole_log() -> Sequence[Patch]:
    frames = Session._prompt_frames

    def whole(self: Session) -> list[bytes]:
        kept, self.num_kept = self.num_kept, tuple(0 for _ in self.num_kept)
        try:
            return frames(self)
        finally:
            self.num_kept = kept

    return [(Session, "_prompt_frames", whole)]


# ---------------------------------------------------------------- late answers


@mutant
def nobody_looks_after_late_answers() -> Sequence[Patch]:
    return [(Lateness, "look", lambda self, now_s: [])]


@mutant
def late_answers_are_waited_for() -> Sequence[Patch]:
    return [(lateness_module, "judge", lambda stages, hops: Wait(1.0))]


# ---------------------------------------------------------------- the coordinator's end


@mutant
def restored_without_its_tokens() -> Sequence[Patch]:
    restore = PoolCore.restore
    return [(PoolCore, "restore", lambda self, order, tokens, epoch, now_s: restore(self, order, (), epoch, now_s))]


@mutant
def epochs_begin_again_with_the_coordinator() -> Sequence[Patch]:
    return [(hub_module, "LIFE_BITS", 0)]


@mutant
def answers_end_with_the_coordinator() -> Sequence[Patch]:
    return [(Hub, "restore", lambda self, kept: None)]


@mutant
def shown_though_it_cannot_be_recorded() -> Sequence[Patch]:
    """One try, whatever comes of it."""

    async def careless(self: Delivery) -> None:
        with suppress(StorageUnavailable):
            await self._log.write(page_of(self._pieces))

    return [(Delivery, "_record", careless)]


# ---------------------------------------------------------------- workers that die


@mutant
def everybody_on_the_workers_that_died_is_the_cause() -> Sequence[Patch]:
    """Nobody asks who else ran there."""
    return [(CrashBook, "_is_guilty", CrashBook._is_suspect)]


# ---------------------------------------------------------------- parts


def _is_close(action: Any) -> bool:
    return isinstance(action, SendMessage) and isinstance(action.message, CloseSession)


def _never_nothing_kept(broken: Callable[..., Any]) -> Callable[..., Any]:
    """That a stage has nothing is not believed."""

    def stubborn(self: Session, node_id: Any, epoch: int, stage: int, code: str, message: str) -> Any:
        return [] if code == NOTHING_KEPT else broken(self, node_id, epoch, stage, code, message)

    return stubborn
