"""Which blocks of the pool hold which beginnings of prompts, and who uses them: numbers only, no memory.

Whole blocks only, which nobody writes to any more. A beginning is named by hashes, one per block, each over everything
up to the block's end and over who asked (coordinator/affinity.py): who can give the name may have the content.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class PrefixCache:
    """Named blocks. What no session uses rests here until its block is needed, and goes by when it was used last."""

    def __init__(self) -> None:
        self._block_of: dict[str, int] = {}
        self._name_of: dict[int, str] = {}
        self._num_users: dict[int, int] = {}
        self._resting: OrderedDict[int, None] = OrderedDict()
        """Blocks without a user, those used longest ago first."""

    @property
    def num_resting(self) -> int:
        return len(self._resting)

    @property
    def blocks(self) -> list[int]:
        """All that have a name."""
        return list(self._name_of)

    def use(self, names: Sequence[str]) -> list[int]:
        """The blocks of as many of these as there are in one row from the first on. One session more uses them now."""
        blocks: list[int] = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            self._num_users[block] += 1
            self._resting.pop(block, None)
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int], names: Sequence[str] = ()) -> list[int]:
        """A session needs these blocks no longer; the first ones of them hold what is called so. Returns those that are
        free now: they have no name, or another block has it already.

        From the last to the first, so that a beginning outlives what comes behind it: without it that is of no use."""
        free: list[int] = []
        for place in reversed(range(len(blocks))):
            block = blocks[place]
            name = names[place] if place < len(names) else None
            if block in self._num_users:
                self._num_users[block] -= 1
                self._rest(block)
            elif name is None:
                free.append(block)
            elif name in self._block_of:
                free.append(block)
                self._rest(self._block_of[name])
            else:
                self._block_of[name], self._name_of[block], self._num_users[block] = block, name, 0
                self._rest(block)
        return free

    def evict(self, num_blocks: int) -> list[int]:
        """Forget so many of those that rest, and give their blocks away."""
        evicted = [self._resting.popitem(last=False)[0] for _ in range(num_blocks)]
        for block in evicted:
            del self._block_of[self._name_of.pop(block)], self._num_users[block]
        return evicted

    def _rest(self, block: int) -> None:
        if not self._num_users[block]:
            self._resting[block] = None
            self._resting.move_to_end(block)

    def validate(self, used: Iterable[int]) -> None:
        """`used`: blocks of open sessions, each as often as there are sessions that have it (AssertionError)."""
        users = Counter(block for block in used if block in self._name_of)
        assert self._block_of == {name: block for block, name in self._name_of.items()}, "names and blocks are 1:1"
        assert self._num_users == {block: users[block] for block in self._name_of}, "users are miscounted"
        assert set(self._resting) == {block for block in self._name_of if not users[block]}, "who rests has no user"
