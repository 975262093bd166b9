"""One history: a pool, its users, and what goes wrong, all from one seed. The same seed gives the same events."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from coordinator.core import LEASE_S
from protocol.values import DeviceId, NodeId
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_loop import run_virtual
from tests.simulation.books import Book
from tests.simulation.faults import MENU, order_of
from tests.simulation.history import History
from tests.simulation.hosts import POOL_URL, NodePlan, SimNode
from tests.simulation.model import VOCABULARY, published
from tests.simulation.network import SimNetwork
from tests.simulation.pool import SimPool
from tests.simulation.users import End, User, UserPlan, some_order, some_users, talking

READY_LIMIT_S = 60.0
TROUBLE_S = 10.0
"""Faults begin, and users come, within this after the pool is ready; what lasts longer is ended then."""
END_LIMIT_S = 100.0
"""From healing until the last request has ended: a node's longest wait before it connects again is 30 s, a device's
that has failed 20 s, a worker's a few, one after the other; then the requests run one after the other. Rows that were
swallowed, and workers that hang on, are found within this, too."""
SETTLE_S = 2.0
POLL_S = 0.1
HASTE_S, SLOW_S = 0.2, 4.0
SILENCE_S = LEASE_S + 2.0
"""After a node can be heard again it may still be dropped for what was not heard before."""
UNREAD_LIMIT_S = 30.0
"""A restarted coordinator gives readers so long to come back (TIMES in pool.py), and more."""
ALLOWED_REFUSALS = frozenset({"model_not_ready", "queue_full"})
FOR_CRASHES = "failed_poison"
GIVEN_UP_FOR = frozenset({"non_finite", "rows_lost", "link_lost"})
"""A request may be given up when so many chains in turn have said this without one token in between."""
PROBE = 99
"""The number of the request after everything."""


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn before the history begins."""

    seed: int
    nodes: tuple[NodePlan, ...]
    users: tuple[UserPlan, ...]
    faults: tuple[tuple[float, str], ...]
    latency_s: tuple[float, float]
    has_probe: bool
    is_hasty: bool
    """Sessions are called slow, again and again, whatever they are."""
    beginning: tuple[int, ...] = ()
    """What prompts begin with in some histories, so that stages may have it."""


def draw(seed: int) -> Plan:
    rng = random.Random(f"{seed} plan")
    slice_layers = rng.choice((2, 3, 3))
    num_nodes = 6 // slice_layers * 2 - (rng.random() < 0.3)
    has_direct = rng.random() < 0.75
    nodes = [_node(number, slice_layers, has_direct, rng) for number in range(1, num_nodes + 1)]
    is_hasty = rng.random() < 0.35
    share_long = 0.9 if is_hasty else 0.1
    users = some_users(rng.randint(2, 4), published(POOL_URL).digest, rng, TROUBLE_S / 2, share_long)
    faults = sorted(zip(_moments(rng, num := rng.randint(4, 8)), order_of(rng, num), strict=True))
    latency_s = rng.choice(((0.0, 0.0), (0.001, 0.01), (0.01, 0.06)))
    plan = Plan(seed, tuple(nodes), tuple(users), tuple(faults), latency_s, rng.random() < 0.25, is_hasty)
    return _with_caches(plan, random.Random(f"{seed} caches"))


def _with_caches(plan: Plan, rng: random.Random) -> Plan:
    """Most nodes cache prefixes; in two of three histories prompts begin alike, also those of different tenants."""
    nodes = tuple(replace(node, has_prefix_cache=rng.random() < 0.9) for node in plan.nodes)
    if rng.random() < 0.34:
        return replace(plan, nodes=nodes)
    beginning = tuple(rng.randrange(3, VOCABULARY) for _ in range(36))
    return replace(plan, nodes=nodes, users=talking(plan.users, beginning, rng), beginning=beginning)


def _moments(rng: random.Random, num: int) -> list[float]:
    """When faults begin: all over the time, or all together, where one meets what another has left half done."""
    middle_s = rng.uniform(1.0, TROUBLE_S / 2)
    first_s, last_s = rng.choice(((0.0, TROUBLE_S * 0.8), (middle_s - 1.0, middle_s + 1.0)))
    return [rng.uniform(first_s, last_s) for _ in range(num)]


def _node(number: int, slice_layers: int, has_direct: bool, rng: random.Random) -> NodePlan:
    names = [DeviceId("cpu")] if rng.random() < 0.85 else [DeviceId("cuda:0"), DeviceId("cuda:1")]
    return NodePlan(
        number,
        tuple(facts.spec(slice_layers, device_id=name) for name in names),
        layer_s=rng.uniform(0.01, 0.04),
        num_kv_tokens=rng.choice((64, 160, 320)),
        max_batch=rng.choice((2, 5, 64)),
        direct=has_direct and rng.random() < 0.9,
        can_truncate=rng.random() < 0.85,
        clock_offset_s=rng.choice((0.0, 1000.0, 3e8)),
        clock_rate=rng.choice((1.0, 0.95, 1.05)),
    )


class Simulation:
    """Implements faults.World."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.history = History()
        seed = str(plan.seed)
        self.network = SimNetwork(random.Random(f"{seed} network"), plan.latency_s)
        self.pool = SimPool(self.network, self.history, seed, self._may_be_silent)
        self.nodes = [SimNode(node, self.network, self.history, seed) for node in plan.nodes]
        self.users = [User(user, self.pool) for user in plan.users]
        self.hung: SimNode | None = None
        self._healed = asyncio.Event()
        self._silent: Counter[str] = Counter()
        self._silent_until_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def play(self) -> None:
        """Until everything has been checked, or the first thing that is wrong."""
        script = asyncio.get_running_loop().create_task(self._script())
        ended = asyncio.get_running_loop().create_task(self.history.ended.wait())
        await asyncio.wait({script, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if script.done() and script.exception() is not None:
            raise script.exception()  # type: ignore[misc]
        script.cancel()

    async def _script(self) -> None:
        await self.pool.start()
        for node in self.nodes:
            node.start()
        if not await self._until(lambda: self.pool.is_ready, READY_LIMIT_S):
            self.history.blame("the pool does not become ready")
        for user in self.users:
            user.start()
        for number, (at_s, kind) in enumerate(self.plan.faults):
            self.spawn(self._fault(number, at_s, kind))
        if self.plan.is_hasty:
            self.spawn(self._judge_in_haste(random.Random(f"{self.plan.seed} haste")))
        await self._until(self._all_done, TROUBLE_S)
        await self._heal()
        await self._end()

    async def _fault(self, number: int, at_s: float, kind: str) -> None:
        await self.lasts(at_s)
        if not self._healed.is_set():
            fault, _ = MENU[kind]
            await fault(self, random.Random(f"{self.plan.seed} {kind} {number}"))

    async def _judge_in_haste(self, rng: random.Random) -> None:
        while not self._healed.is_set():
            self.pool.judge_in_haste(is_hurried=rng.random() < 0.1)
            hedged = [session for session in self.pool.core.sessions.values() if session.hedge is not None]
            for session in hedged if rng.random() < 0.3 else ():
                slow = rng.choice(session.chain).device.node_id
                self.spawn(self._slow_down(next(node for node in self.nodes if node.node_id == slow)))
            await self.lasts(HASTE_S)

    async def _slow_down(self, node: SimNode) -> None:
        """The judge was right after all."""
        self.history.note("%s: is slow indeed", node.host)
        node.traits.set(slowness=10.0)
        await self.lasts(SLOW_S)
        node.traits.set(slowness=1.0)

    async def _heal(self) -> None:
        """Nothing is wrong any more: what was down comes up. What was swallowed does not come back by that."""
        self.history.note("the world heals")
        self._healed.set()
        await asyncio.gather(*self._tasks)
        self.network.mischief.clear()
        for node in self.nodes:
            if node.is_turned_away:
                await node.crash(silently=False)
                node.restart()
        if self.hung is not None and not self.pool.core.covers_without(self.hung.node_id):
            self._go_on()

    def _go_on(self) -> None:
        if self.hung is not None:
            self.history.note("%s: its worker goes on", self.hung.host)
            self.hung.traits.set(is_hung=False)

    async def _end(self) -> None:
        history = self.history
        if not await self._until(self._all_done, END_LIMIT_S):
            waiting = [user.name for user in self.users if not user.is_done]
            history.blame(f"{waiting} have no end, {END_LIMIT_S:.0f} s after the world healed")
        self._go_on()
        for user in self.users:
            self._judge(user)
        if self.plan.has_probe:
            await self._probe()
        await self._until(lambda: self.pool.is_idle, UNREAD_LIMIT_S)
        await asyncio.sleep(SETTLE_S)
        self._check_idle()
        history.ended.set()

    async def _probe(self) -> None:
        """The pool is as good as new."""
        if not await self._until(lambda: self.pool.is_ready, END_LIMIT_S):
            self.history.blame("the pool does not become ready again")
        rng, prompt = random.Random(f"{self.plan.seed} probe"), self.plan.beginning[:34]
        order = some_order(PROBE, self.pool.model.digest, rng, prompt=prompt, share_long=0.0)
        user = User(UserPlan(order, 0.0), self.pool)
        user.start()
        if not await self._until(lambda: user.is_done, END_LIMIT_S):
            self.history.blame("a request after everything has no end")
        self.history.expect(user.end is End.ANSWERED, f"a request after everything ends with {user.end} {user.code}")

    def _judge(self, user: User) -> None:
        """Only what finds no chain at its arrival may be refused, and only a request for which several chains in turn
        computed nothing, or under which workers died, may fail."""
        book = self.pool.books.get(user.plan.order.session_id)
        has_failed = book is not None and user.code in _reasons_to_fail(book)
        is_fine = {
            End.NONE: False, End.ANSWERED: not user.plan.is_poison, End.LEFT: True,
            End.REFUSED: user.code in self._allowed_refusals() or has_failed, End.FAILED: has_failed,
        }[user.end]  # fmt: skip
        self.history.expect(is_fine, f"{user.name} ends with {user.end.name} {user.code}")

    def _allowed_refusals(self) -> frozenset[str]:
        return ALLOWED_REFUSALS | ({"storage_unavailable"} if self.pool.token_log.was_full else frozenset())

    def _check_idle(self) -> None:
        """No request, so no session anywhere, and no KV taken."""
        expect, state = self.history.expect, self.pool.core.scheduler.state
        expect(self.pool.is_idle, f"sessions are left: {list(self.pool.core.sessions)}")
        expect(not state.waiting and not state.running, "the scheduler still has requests")
        expect(not any(d.num_reserved_tokens for d in state.devices.values()), "the scheduler still reserves KV")
        for node in self.nodes:
            core = node.contribution.core if node.contribution else None
            expect(core is None or not core.switch.num_sessions, f"{node.host}: its agent still has sessions")
            for worker in node.workers.values():
                expect(not worker.legs, f"{worker.name}: {len(worker.legs)} sessions still have KV")

    # ------------------------------------------------------------ as faults.World

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

    async def lasts(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._healed.wait()
        except TimeoutError:
            return

    def silence(self, host: str) -> None:
        self._silent[host] += 1

    def heard_again(self, host: str) -> None:
        self._silent[host] -= 1
        self._silent_until_s[host] = asyncio.get_running_loop().time() + SILENCE_S

    # ------------------------------------------------------------ parts

    def _may_be_silent(self, node_id: NodeId) -> bool:
        host = f"node {facts.number_of(node_id)}"
        now_s = asyncio.get_running_loop().time()
        return self._silent[host] > 0 or now_s < self._silent_until_s.get(host, 0.0)

    def _all_done(self) -> bool:
        return all(user.is_done for user in self.users)

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        for _ in range(round(limit_s / POLL_S)):
            if condition():
                return True
            await asyncio.sleep(POLL_S)
        return condition()


def _reasons_to_fail(book: Book) -> frozenset[str]:
    return (GIVEN_UP_FOR & {book.given_up_for}) | ({FOR_CRASHES} if book.is_suspect else frozenset())


@dataclass(frozen=True)
class Verdict:
    """`wrong` is empty for a history in which everything was as it must be."""

    seed: int
    wrong: tuple[str, ...]
    lines: tuple[str, ...]
    counts: Counter[str]


def simulate(seed: int, *, with_lines: bool = False) -> Verdict:
    """Play the history of this seed. `with_lines`: also tell it, one line per event."""
    return simulate_plan(draw(seed), with_lines=with_lines)


def simulate_plan(plan: Plan, *, with_lines: bool = False) -> Verdict:
    simulation = run_virtual(_run(plan))
    history = simulation.history
    lines = tuple(history.lines()) if with_lines or history.wrong else ()
    return Verdict(plan.seed, tuple(history.wrong), lines, _counts(simulation))


async def _run(plan: Plan) -> Simulation:
    simulation = Simulation(plan)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: simulation.history.blame(_told(context)))
    listener = _ErrorListener(simulation.history)
    for name in ("client", "coordinator"):
        logging.getLogger(name).addHandler(listener)
    try:
        await simulation.play()
    finally:
        for name in ("client", "coordinator"):
            logging.getLogger(name).removeHandler(listener)
        loop.set_exception_handler(lambda _, context: None)
    return simulation


class _ErrorListener(logging.Handler):
    """What our own programs call an error is one: they wait out everything that others do. A full disk is the
    operator's business, who has to be told."""

    def __init__(self, history: History) -> None:
        super().__init__(logging.ERROR)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "coordinator.delivery":
            return
        self._history.blame(
            f"logged as an error: {record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
        )


def _told(context: dict[str, Any]) -> str:
    return f"an exception nobody took: {context.get('message')} {context.get('exception')!r}"


def _counts(simulation: Simulation) -> Counter[str]:
    ends = Counter(user.end.name for user in simulation.users)
    faults = Counter({f"fault {kind}": 1 for _, kind in simulation.plan.faults})
    tokens = Counter(tokens=sum(len(user.tokens) for user in simulation.users))
    return ends + faults + tokens + simulation.pool.counts + simulation.pool.core.counts()
