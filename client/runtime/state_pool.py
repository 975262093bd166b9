"""Recurrent states of a slice's sessions, beside the KV pool: fixed in size, and never cut back.

A session has two places for its states. A step reads one and writes the other, and only advancing the session's table
makes the new one count: until then a forward can fail and be repeated, as with a KV cache. What was read stays until
the next step begins, so that the latest step can be taken back; anything older is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from client.runtime.attention import Span
from client.runtime.device import Device
from client.runtime.errors import DeviceMemoryError
from client.runtime.kv_cache import KvCache, KvTable, LayerShape
from client.runtime.mixers import Mixer, States, StateShape, mixing
from protocol.values import MIN_STATEFUL_TOKENS, STATE_COPIES


class StatefulTable(KvTable):
    """A session's place in the KV pool and among the states. `state` is the number of its pair of places."""

    def __init__(self, blocks: list[int], state: int, row: int | None = None) -> None:
        super().__init__(blocks, row)
        self.state = state
        self._side = 0
        self._length_before: int | None = None

    @property
    def current_place(self) -> int:
        """Where the states after `length` rows are, if there are rows."""
        return STATE_COPIES * self.state + self._side

    def begin_step(self) -> int:
        """Where a step writes. What was there, the states before the latest step, is lost."""
        self._length_before = None
        return STATE_COPIES * self.state + 1 - self._side

    def advance(self, num_tokens: int) -> None:
        """What the step wrote counts from now on."""
        before = self.length
        super().advance(num_tokens)
        self._length_before, self._side = before, 1 - self._side

    def keeps(self, length: int) -> bool:
        """Only what it has, or had before the latest step."""
        return length in (self.length, self._length_before)

    def truncate(self, length: int) -> None:
        """Forget the latest step, or nothing."""
        assert self.keeps(length), "a recurrent state cannot be cut back"
        if length != self.length:
            self._side = 1 - self._side
        self._length_before = None
        super().truncate(length)


class StatePool:
    """The memory of all states: per layer [places, ...], zero until written. One place more is there for padded rows of
    captured steps."""

    def __init__(self, shapes: Sequence[StateShape], num_places: int, device: torch.device) -> None:
        self.trash_place = num_places
        self._conv = {shape.layer: _places(shape.conv, num_places + 1, device) for shape in shapes}
        self._recurrent = {shape.layer: _places(shape.recurrent, num_places + 1, device) for shape in shapes}

    def read(self, layer: int, places: Tensor) -> States:
        """A copy of what is there, [places, ...]."""
        conv, recurrent = self._conv[layer], self._recurrent[layer]
        return States(
            None if conv is None else conv.index_select(0, places),
            None if recurrent is None else recurrent.index_select(0, places),
        )

    def write(self, layer: int, places: Tensor, states: States) -> None:
        """`states` [places, ...]"""
        for pool, new in ((self._conv[layer], states.conv), (self._recurrent[layer], states.recurrent)):
            if pool is not None and new is not None:
                pool.index_copy_(0, places, new.to(pool.dtype))


def _places(shape: Tensor | None, num_places: int, device: torch.device) -> Tensor | None:
    if shape is None:
        return None
    return torch.zeros(num_places, *shape.shape[1:], dtype=shape.dtype, device=device)


class StatefulCache(KvCache):
    """A KV pool with a state pool. Every session has room for MIN_STATEFUL_TOKENS tokens at least, and a token's bytes
    count that share of a session's states: so there are states for as many sessions as there can be."""

    def __init__(
        self, shapes: Sequence[LayerShape], state_shapes: Sequence[StateShape], max_bytes: int, dtype: torch.dtype,
        device: Device, keeps_tables: bool = False,
    ) -> None:  # fmt: skip
        """Raises DeviceMemoryError if `max_bytes` does not hold one session, or what torch raises."""
        super().__init__(shapes, max_bytes, dtype, device, keeps_tables, state_token_bytes(state_shapes))
        num_sessions = self.num_tokens // MIN_STATEFUL_TOKENS
        if num_sessions < 1:
            raise DeviceMemoryError
        self.states = StatePool(state_shapes, STATE_COPIES * num_sessions, device.torch_device)
        self._free_states = list(range(num_sessions))[::-1]

    def open(self, num_tokens: int, names: Sequence[str] = ()) -> KvTable:
        """Reserve room for `num_tokens`, or the least for a session, and its states. Raises KvFullError.

        Nothing is shared, whatever it is called: a state is of all rows before it and cannot be divided."""
        return super().open(max(num_tokens, MIN_STATEFUL_TOKENS))

    def close(self, table: KvTable, names: Sequence[str] = (), num_tokens: int = 0) -> None:
        """Free the session's room and its states. A table is closed once, and nothing of it stays."""
        super().close(table)
        self._free_states.append(_stateful(table).state)

    def validate(self) -> None:
        """As of a KV pool; and every pair of places is free or of exactly one open table."""
        super().validate()
        held = [_stateful(table).state for table in self._tables]
        numbers = sorted([*held, *self._free_states])
        assert numbers == list(range(len(numbers))), "a state is held twice, or has leaked"

    def _make_table(self, blocks: list[int], num_shared: int) -> KvTable:
        assert not num_shared, "nothing is shared here"
        row = None if self.tables is None else self.tables.add(blocks)
        return StatefulTable(blocks, self._free_states.pop(), row)


def state_token_bytes(shapes: Sequence[StateShape]) -> int:
    """A token's share of its session's states, rounded up."""
    return -(-STATE_COPIES * sum(shape.num_bytes for shape in shapes) // MIN_STATEFUL_TOKENS)


def _stateful(table: KvTable) -> StatefulTable:
    assert isinstance(table, StatefulTable), "every table of this pool has states"
    return table


@dataclass(frozen=True, slots=True)
class _Call:
    """Consecutive rows for one call of a mixer: as many of each session. `read` [sessions] is None for new sessions."""

    first_row: int
    num_rows: int
    read: Tensor | None
    write: Tensor

    @property
    def stop_row(self) -> int:
        return self.first_row + self.num_rows * len(self.write)


class StateStep:
    """One step's rows over the state pool: sessions with one row together, chunks of prompts one by one."""

    def __init__(self, states: StatePool, calls: Sequence[_Call]) -> None:
        self._states = states
        self._calls = calls

    @classmethod
    def of(cls, cache: StatefulCache, spans: Sequence[Span]) -> StateStep:
        """A step over these rows, which begins now."""
        device = cache.device.torch_device
        return cls(cache.states, [_call(group, device) for group in _groups(spans)])

    @classmethod
    def at(cls, states: StatePool, read: Tensor, write: Tensor) -> StateStep:
        """One row of each session, whose places [rows] are known when the step runs."""
        return cls(states, [_Call(0, 1, read, write)])

    def mix(self, mixer: Mixer, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        """[1, rows, hidden size]. Probing has shown that `options` say nothing more."""
        return torch.cat([self._mix(mixer, hidden, call) for call in self._calls], dim=1)

    def _mix(self, mixer: Mixer, hidden: Tensor, call: _Call) -> Tensor:
        states = States() if call.read is None else self._states.read(mixer.layer, call.read)
        rows = hidden[0, call.first_row : call.stop_row].view(len(call.write), call.num_rows, -1)
        output = mixer.compute(rows, states)
        self._states.write(mixer.layer, call.write, states)
        return output.reshape(1, -1, output.shape[-1])


def mixing_over(cache: KvCache, spans: Sequence[Span]) -> AbstractContextManager[None]:
    """A step over these rows is in force, if the cache keeps states."""
    return mixing(StateStep.of(cache, spans)) if isinstance(cache, StatefulCache) else nullcontext()


def begin_steps(spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Where a step over these rows reads and where it writes. It begins now."""
    tables = [_stateful(span.table) for span in spans]
    return [table.current_place for table in tables], [table.begin_step() for table in tables]


def all_go_on(spans: Sequence[Span]) -> bool:
    """Whether every row is the next one of a session that has states."""
    return all(_is_decode(span) for span in spans)


def _call(spans: Sequence[Span], device: torch.device) -> _Call:
    read, write = (torch.tensor(places, dtype=torch.int64, device=device) for places in begin_steps(spans))
    return _Call(spans[0].first_row, spans[0].num_rows, None if _is_new(spans[0]) else read, write)


def _is_new(span: Span) -> bool:
    return span.position == 0


def _groups(spans: Sequence[Span]) -> list[list[Span]]:
    """Neighbours that one call can serve: sessions that go on by one row each."""
    groups: list[list[Span]] = []
    for span in spans:
        joins = bool(groups) and _is_decode(span) and _is_decode(groups[-1][-1])
        if joins:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _is_decode(span: Span) -> bool:
    return span.num_rows == 1 and not _is_new(span)
