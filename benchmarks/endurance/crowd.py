"""A crowd of askers: whenever one has its answer, the next one asks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.endurance.asking import Asker, End, Manner, draw_question
from benchmarks.endurance.pool import ToyPool

MAX_TOLD = 20


@dataclass
class Tally:
    """What became of all who asked."""

    num_answers: int = 0
    num_tokens: int = 0
    num_come_back: int = 0
    num_refused: int = 0
    num_queued: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    manners: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """By code, of answers that were lost."""
    troubles: list[str] = field(default_factory=list)

    def add(self, asker: Asker) -> None:
        self.num_answers += 1
        self.num_tokens += len(asker.tokens)
        self.num_come_back += max(0, asker.num_connections - 1)
        self.num_refused += asker.num_refused
        self.num_queued += asker.is_queued
        self.ends[asker.end] += 1
        self.manners[asker.question.manner] += 1
        if asker.end is End.LOST:
            self.errors[asker.why.partition(":")[0]] += 1
        if asker.end in (End.WRONG, End.LOST) and len(self.troubles) < MAX_TOLD:
            self.troubles.append(f"{asker.end}: {asker.why or asker.tokens} ({asker.question})")
            print(self.troubles[-1], flush=True)

    def count(self, *ends: End) -> int:
        return sum(self.ends[end] for end in ends)


@dataclass
class Crowd:
    """So many at a time, until `close`."""

    pool: ToyPool
    num_askers: int
    manners: dict[Manner, int]
    seed: int
    tally: Tally = field(default_factory=Tally)
    running: set[Asker] = field(default_factory=set)
    _is_closed: bool = False
    _number: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def open(self) -> None:
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(self.num_askers)]

    async def close(self) -> None:
        """Nobody asks any more; those who have asked get their answers."""
        self._is_closed = True
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def num_tokens(self) -> int:
        """Seen by anybody until now."""
        return self.tally.num_tokens + sum(len(asker.tokens) for asker in self.running)

    async def until(self, condition: Callable[[Iterable[Asker]], bool], limit_s: float) -> bool:
        """Whether it came true in time."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition(self.running):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    async def _ask_on(self, number: int) -> None:
        draw = random.Random(f"{self.seed} {number}")
        while not self._is_closed:
            self._number += 1
            question = draw_question(draw, self._number, self.manners)
            asker = Asker(question, lambda: self.pool.port, self.pool.oracle)
            self.running.add(asker)
            await asker.run()
            self.running.discard(asker)
            self.tally.add(asker)
