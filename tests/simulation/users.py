"""People who ask, and what they get: it must be the undisturbed answer, whatever happened on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from coordinator.answers import Item
from coordinator.errors import GenerationFailed, RequestRefused
from coordinator.sessions import Deliver, Order
from protocol.values import FinishReason, Sampling
from tests.fakes import pool_facts as facts
from tests.simulation.model import DEADLY_TOKEN, POISON_TOKEN, STOP_TOKENS, VOCABULARY, Answer, undisturbed
from tests.simulation.pool import SimPool

MOST_TOKENS = 60
"""Of prompt and answer: four blocks, which is all the room that some nodes have."""


class Manner(Enum):
    """What a user does besides waiting for the answer."""

    PATIENT = auto()
    SLOW = auto()
    """Reads a token now and then."""
    CANCELS = auto()
    """Leaves the loop after some tokens."""
    DISCONNECTS = auto()
    """Is gone at some moment, whatever is going on."""


class End(Enum):
    NONE = auto()
    ANSWERED = auto()
    LEFT = auto()
    REFUSED = auto()
    FAILED = auto()


@dataclass(frozen=True)
class UserPlan:
    order: Order
    at_s: float
    manner: Manner = Manner.PATIENT
    after: float = 0.0
    """Tokens until CANCELS, seconds until DISCONNECTS, seconds per token when SLOW."""

    @property
    def is_poison(self) -> bool:
        return not {POISON_TOKEN, DEADLY_TOKEN}.isdisjoint(self.order.prompt)


@dataclass
class User:
    """One request."""

    plan: UserPlan
    pool: SimPool
    end: End = End.NONE
    code: str = ""
    tokens: list[int] = field(default_factory=list)
    wanted: Answer = field(init=False)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.wanted = undisturbed(self.plan.order)

    @property
    def name(self) -> str:
        return f"user {int(self.plan.order.session_id, 16)}"

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._live())

    @property
    def is_done(self) -> bool:
        return self._task is not None and self._task.done()

    async def _live(self) -> None:
        await asyncio.sleep(self.plan.at_s)
        self.pool.history.note("%s: asks, %d + %d tokens, %s", self.name, len(self.plan.order.prompt),
                               self.plan.order.max_new_tokens, self.plan.manner.name)  # fmt: skip
        try:
            limit_s = self.plan.after if self.plan.manner is Manner.DISCONNECTS else None
            async with asyncio.timeout(limit_s):
                await self._ask()
        except TimeoutError:
            self.end = End.LEFT
        except RequestRefused as error:
            self.end, self.code = End.REFUSED, error.code
        except GenerationFailed as error:
            self.end, self.code = End.FAILED, error.code
        self.pool.history.note("%s: %s %s", self.name, self.end.name, self.code)

    async def _ask(self) -> None:
        """Until there is an answer. Who is cut off because the coordinator dies comes back for it."""
        while self.end is End.NONE:
            await self.pool.started.wait()
            items = self._items()
            if items is None:
                return
            reading = asyncio.get_running_loop().create_task(self._read(items))
            death = asyncio.get_running_loop().create_task(self.pool.died.wait())
            try:
                await asyncio.wait({reading, death}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                for task in (reading, death):
                    task.cancel()
                await asyncio.gather(reading, death, return_exceptions=True)

    def _items(self) -> AsyncGenerator[Item, None] | None:
        """The answer from its beginning; None if the request failed and nobody told us."""
        order, log = self.plan.order, self.pool.token_log
        answer = self.pool.hub.answers.answers.get(order.session_id)
        if answer is not None:
            self.tokens.clear()
            return self.pool.hub.read(answer)
        if order.session_id not in log.accepted:
            self.pool.history.expect(
                not self.tokens, f"{self.name}: was shown tokens of a request that is not recorded"
            )
            return self.pool.hub.generate(order)
        is_known = order.session_id in log.forgotten and self.pool.books[order.session_id].is_over
        self.pool.history.expect(is_known, f"{self.name}: the answer was lost with the coordinator")
        self.end = End.LEFT
        return None

    async def _read(self, answer: AsyncGenerator[Item, None]) -> None:
        plan = self.plan
        async with contextlib.aclosing(answer) as items:
            async for item in items:
                if not isinstance(item, Deliver):
                    continue
                self._take(item)
                if item.finish_reason is not None:
                    self._finish(item.finish_reason)
                elif plan.manner is Manner.CANCELS and len(self.tokens) >= plan.after:
                    self.end = End.LEFT
                    return
                elif plan.manner is Manner.SLOW:
                    await asyncio.sleep(plan.after)

    def _take(self, item: Deliver) -> None:
        """The next tokens: those of the undisturbed answer, and in the log by now."""
        order, history = self.plan.order, self.pool.history
        position = len(order.prompt) + len(self.tokens)
        history.expect(item.position == position, f"{self.name}: got position {item.position}, expected {position}")
        self.tokens += item.tokens
        wanted = list(self.wanted.tokens[: len(self.tokens)])
        history.expect(self.tokens == wanted, f"{self.name}: wrong answer {self.tokens}, expected {wanted}")
        committed = self.pool.token_log.tokens.get(order.session_id, [])
        history.expect(committed[: len(self.tokens)] == self.tokens, f"{self.name}: got what is not committed")

    def _finish(self, reason: FinishReason) -> None:
        self.end = End.ANSWERED
        is_whole = (tuple(self.tokens), reason) == (self.wanted.tokens, self.wanted.finish_reason)
        self.pool.history.expect(is_whole, f"{self.name}: ended with {reason} after {len(self.tokens)} tokens,"
                                 f" expected {self.wanted.finish_reason} after {len(self.wanted.tokens)}")  # fmt: skip


def some_order(
    number: int, digest: str, rng: random.Random, *, prompt: Sequence[int] = (), share_long: float = 0.1
) -> Order:
    """A request of a few tokens, or of some more; a third of them samples."""
    tokens = tuple(prompt) or tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 20)))
    num_most = rng.randint(20, 40) if rng.random() < share_long else rng.randint(1, 12)
    sampling = Sampling(temperature=1.0, seed=rng.getrandbits(32)) if rng.random() < 0.33 else Sampling()
    return Order(facts.session_id(number), digest, tokens, num_most, sampling, STOP_TOKENS, f"tenant {number % 2}")


def some_users(num: int, digest: str, rng: random.Random, within_s: float, share_long: float) -> list[UserPlan]:
    """Who comes when, and how they behave."""
    users = []
    for number in range(1, num + 1):
        order = some_order(number, digest, rng, share_long=share_long)
        if rng.random() < 0.04:
            order = some_order(number, digest, rng, prompt=(*order.prompt, rng.choice((POISON_TOKEN, DEADLY_TOKEN))))
        manner = rng.choices(list(Manner), (8, 1, 1, 1))[0]
        after = {
            Manner.PATIENT: 0.0, Manner.SLOW: rng.uniform(0.05, 0.5), Manner.CANCELS: rng.randint(1, 4),
            Manner.DISCONNECTS: rng.uniform(0.0, 2.0),
        }[manner]  # fmt: skip
        users.append(UserPlan(order, rng.uniform(0.0, within_s), manner, after))
    return users


def talking(users: Sequence[UserPlan], beginning: tuple[int, ...], rng: random.Random) -> tuple[UserPlan, ...]:
    """The same people with prompts that begin alike, as far as the smallest node has room; or with what they have
    talked of before, and a while later. Two more come to go on with what was said."""
    digest, talks = users[0].order.manifest_hash, list[UserPlan]()
    more = [UserPlan(some_order(len(users) + n, digest, rng), rng.uniform(1.0, 5.0)) for n in (1, 2)]
    for number, user in enumerate([*users, *more]):
        before = talks[number - 2].order if number >= 2 and rng.random() < 0.8 else None
        said = (*before.prompt, *undisturbed(before).tokens) if before is not None else ()
        begun = said if before is not None and said[-1] not in before.stop_tokens else beginning[: rng.randint(16, 36)]
        room = MOST_TOKENS - user.order.max_new_tokens - 1
        own = user.order.prompt[: max(1, MOST_TOKENS - user.order.max_new_tokens - len(begun))]
        order = replace(user.order, prompt=(*begun[:room], *own[: max(1, room + 1 - len(begun[:room]))]))
        talks.append(replace(user, order=order, at_s=user.at_s + (3.0 if number >= 2 else 0.0)))
    return tuple(talks)
