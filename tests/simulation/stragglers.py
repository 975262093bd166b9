"""What a user sees of a node that becomes slow, or leaves softly, with second chains and without: on simulated time.

python -m tests.simulation --stragglers 40

Two chains of two nodes, one answer, the same seeds both times. Times are the toy workers': what carries over to real
ones is what is waited for, not for how long.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from statistics import median
from unittest import mock

from coordinator.hedges import CATCH_UP_TOKENS
from coordinator.hedging import LEAST_PAUSE_S
from coordinator.scheduler.hedged import HedgedRoom
from coordinator.sessions import Deliver, Order
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_loop import run_virtual
from tests.simulation.hosts import POOL_URL, NodePlan, SimNode
from tests.simulation.model import VOCABULARY, published
from tests.simulation.simulation import READY_LIMIT_S, Plan, Simulation
from tests.simulation.users import End, User, UserPlan

NUM_PROMPT, NUM_ANSWER, NUM_KV = 160, 160, 640
LAYER_S, MAX_BATCH = 0.008, 5
SETTLE_S, END_LIMIT_S = 20.0, 300.0


class Trouble(StrEnum):
    NONE = "none"
    SLOW = "slow"
    """A node of the chain becomes ten times slower, for good."""
    LEAVE = "leave"
    """A node of the chain says that it leaves, and goes when nothing is left on it, or 8 s later."""


@dataclass(frozen=True)
class Outcome:
    """`longest_gap_s`: between two tokens that a user saw. `num_hedges`: second chains that were opened."""

    longest_gap_s: float
    took_s: float
    num_hedges: int
    num_epochs: int
    wrong: tuple[str, ...]


@dataclass
class TimedUser(User):
    """Remembers when tokens came."""

    times_s: list[float] = field(default_factory=list)

    def _take(self, item: Deliver) -> None:
        self.times_s.append(asyncio.get_running_loop().time())
        super()._take(item)


class Straggling(Simulation):
    """One user, and one node of the chain that is in trouble after a while."""

    def __init__(self, plan: Plan, trouble: Trouble) -> None:
        super().__init__(plan)
        self.trouble = trouble
        self.user = TimedUser(plan.users[0], self.pool)

    async def _script(self) -> None:
        await self.pool.start()
        hedging = self.pool.core.hedging
        hedging.least_pause_s, hedging.catch_up_tokens = LEAST_PAUSE_S, CATCH_UP_TOKENS
        for node in self.nodes:
            node.start()
        if not await self._until(lambda: self.pool.is_ready, READY_LIMIT_S):
            self.history.blame("the pool does not become ready")
        await asyncio.sleep(SETTLE_S)
        rng = random.Random(f"{self.plan.seed} straggler")
        self.user.start()
        wanted = rng.randint(40, 60)
        await self._until(lambda: len(self.user.tokens) >= wanted, END_LIMIT_S)
        chain = self.pool.core.sessions[self.user.plan.order.session_id].chain
        node_id = rng.choice(chain).device.node_id
        await self._begin(next(node for node in self.nodes if node.node_id == node_id))
        await self._until(lambda: self.user.is_done, END_LIMIT_S)
        self.history.expect(self.user.end is End.ANSWERED, f"the answer ends with {self.user.end.name}")

    async def _begin(self, node: SimNode) -> None:
        if self.trouble is Trouble.SLOW:
            node.traits.set(slowness=10.0)
        if self.trouble is Trouble.LEAVE:
            await node.hand_over("game", 8.0)
            await node.stop("game")

    def outcome(self) -> Outcome:
        times_s, counts = self.user.times_s, self.pool.core.counts()
        longest_s = max(later - earlier for earlier, later in pairwise(times_s))
        took_s = times_s[-1] - times_s[0]
        return Outcome(longest_s, took_s, counts["hedges"], self._num_epochs(), tuple(self.history.wrong))

    def _num_epochs(self) -> int:
        return self.pool.books[self.user.plan.order.session_id].epoch


def play(seed: int, trouble: Trouble, *, with_hedges: bool) -> Outcome:
    """One answer. Without second chains the session is moved, as it is where there is no room for one."""
    simulation = run_virtual(_run(_plan(seed), trouble, with_hedges))
    return simulation.outcome()


async def _run(plan: Plan, trouble: Trouble, with_hedges: bool) -> Straggling:
    simulation = Straggling(plan, trouble)
    if with_hedges:
        await simulation.play()
    else:
        with mock.patch.object(HedgedRoom, "is_spent", True):
            await simulation.play()
    return simulation


def _plan(seed: int) -> Plan:
    rng = random.Random(f"{seed} stragglers")
    nodes = [
        NodePlan(number, (facts.spec(3),), layer_s=LAYER_S, num_kv_tokens=NUM_KV, max_batch=MAX_BATCH)
        for number in range(1, 5)
    ]
    prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(NUM_PROMPT))
    digest = published(POOL_URL).digest
    order = Order(facts.session_id(1), digest, prompt, NUM_ANSWER, Sampling(), (), "tenant")
    user = UserPlan(replace(order), 0.0)
    return Plan(seed, tuple(nodes), (user,), (), (0.001, 0.01), has_probe=False, is_hasty=False)


def table(num_seeds: int) -> Iterator[tuple[str, int]]:
    """Line by line, each with the number of wrong answers in it."""
    for trouble in Trouble:
        for with_hedges in (False, True):
            outcomes = [play(seed, trouble, with_hedges=with_hedges) for seed in range(num_seeds)]
            yield _line(trouble, with_hedges, outcomes), sum(bool(outcome.wrong) for outcome in outcomes)


def _line(trouble: Trouble, with_hedges: bool, outcomes: Sequence[Outcome]) -> str:
    gaps_s = sorted(outcome.longest_gap_s for outcome in outcomes)
    took_s = median(outcome.took_s for outcome in outcomes)
    num_hedges = sum(outcome.num_hedges for outcome in outcomes)
    num_wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    how = "second chains" if with_hedges else "moves only"
    return (
        f"{trouble:6} {how:14} longest gap: median {median(gaps_s):.2f} s, worst {gaps_s[-1]:.2f} s;"
        f" answer: median {took_s:.1f} s; {num_hedges} second chains in {len(outcomes)} answers; {num_wrong} wrong"
    )
