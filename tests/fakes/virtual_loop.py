"""asyncio on virtual time: when nothing is ready the clock jumps to the next timer, so an hour passes in no time.

The order of events follows from the program alone: no threads, no sockets, no real clock. A run that waits for what
can never come ends with Deadlock instead of hanging.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

LIMIT_S = 7 * 24 * 3600.0
"""Virtual seconds after which a run is taken for one that never ends: timers alone can keep it going for ever."""


class Deadlock(Exception):  # noqa: N818 - the field's name for it
    """Every task waits and no timer is set."""


class _JumpingSelector(selectors.BaseSelector):
    """What the event loop waits with. It has no files to watch; waiting moves the clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """The loop registers its own self-pipe, which nobody ever writes to."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return self._keys[number]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock(f"nothing is ready and no timer is set at {self.now_s:.6f} s")
        self.now_s += max(0.0, timeout)
        if self.now_s > LIMIT_S:
            raise Deadlock(f"still running after {LIMIT_S:.0f} virtual seconds")
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time() only moves when there is nothing to do."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise RuntimeError("no threads on virtual time; blocking work goes through Env.run_blocking")


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh virtual loop; what it left running is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def on_virtual_time(test: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Decorator: an `async def` test that runs on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        async def main() -> T:
            return await test(*args, **kwargs)

        return run_virtual(main())

    return run
