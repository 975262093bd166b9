"""How a bug is planted: the running code is changed until the end of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

Patch = tuple[object, str, Any]
MUTANTS: dict[str, Callable[[], Sequence[Patch]]] = {}


def mutant(make: Callable[[], Sequence[Patch]]) -> Callable[[], Sequence[Patch]]:
    MUTANTS[make.__name__] = make
    return make


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug of this name is in the code until the end of the block."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name]():
            stack.enter_context(mock.patch.object(owner, attribute, value))
        yield
