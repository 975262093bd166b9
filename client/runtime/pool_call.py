"""A layer's attention over the pool, as an operator that compilers and captured graphs take as it is.

The operator is one node without Python behind it: key and value are written and the rows attended to in one go. What
the rows are (`PagedStep`) is passed aside, as for the CPU's attention: a graph captures the addresses it had.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from client.runtime.kv_cache import BLOCK_TOKENS, LayerCache


@dataclass(frozen=True, slots=True)
class PoolCall:
    """query [1, heads, rows, dim], key and value [1, kv heads, rows, dim] of a step, in any layout with dense dims.

    `keys` and `values` [slots, kv heads, dim] are the layer's pool. `window` and `chunk` as in LayerShape."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    sinks: Tensor | None
    scaling: float
    softcap: float | None
    window: int | None
    chunk: int | None


class DecodeRows:
    """Single rows of many sessions. `table_rows` and `positions` are int64 [rows], `tables` int32, on the device.

    `max_keys` is how many positions the fallback looks at; with Triton, the live ones are all that is read."""

    def __init__(self, tables: Tensor, table_rows: Tensor, positions: Tensor, max_keys: int) -> None:
        self.tables = tables
        self.table_rows = table_rows
        self.positions = positions
        self.max_keys = max_keys
        self._gathered: tuple[Tensor, Tensor] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    def slots(self) -> tuple[Tensor, Tensor]:
        """Slots of the rows' keys, [rows, max_keys], and of their own, [rows]. Made once a step.

        Behind a row's position its own slot is repeated: other slots may hold NaN, which a mask does not stop."""
        if self._gathered is None:
            own = self.positions[:, None]
            at = torch.minimum(torch.arange(self.max_keys, device=own.device), own)
            self._gathered = self._slot_of(at), self._slot_of(own)[:, 0]
        return self._gathered

    def _slot_of(self, positions: Tensor) -> Tensor:
        blocks = self.tables[self.table_rows[:, None], positions // BLOCK_TOKENS]
        return blocks.long() * BLOCK_TOKENS + positions % BLOCK_TOKENS


class PagedStep(Protocol):
    """What stands behind the operator during a forward."""

    def attend(self, call: PoolCall) -> Tensor:
        """[1, rows, heads, value dim]. Writes the rows' keys and values into the pool."""


_current = threading.local()


@contextmanager
def stepping(step: PagedStep) -> Iterator[None]:
    """During this block, the operator in this thread attends through `step`."""
    _current.step = step
    try:
        yield
    finally:
        del _current.step


# Not torch.library.custom_op: its checks cost 0.3 ms a call on the host, and every layer of a prompt's chunk calls.
torch.library.define(
    "decentllm::attend_pool",
    "(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor? sinks,"
    " float scaling, float softcap, int window, int chunk) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("decentllm::attend_pool", ("cpu", "cuda"))
def _attend_pool(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None,
    scaling: float, softcap: float, window: int, chunk: int,
) -> Tensor:  # fmt: skip
    """[1, rows, heads, value dim]. For `softcap`, `window` and `chunk` 0 is none: operators have no optional ones."""
    step: PagedStep = _current.step
    call = PoolCall(
        query, key, value, keys, values, sinks, scaling, softcap or None, window or None, chunk or None,
    )  # fmt: skip
    return step.attend(call)


@torch.library.register_fake("decentllm::attend_pool")  # type: ignore[untyped-decorator]
def _(query: Tensor, key: Tensor, value: Tensor, *others: object) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])


class PooledLayer(nn.Module):
    """A layer's place in the pool, hung onto its attention module.

    The pool is a buffer, so that a compiled layer takes it as an input: one compilation serves all layers of a kind."""

    def __init__(self, layer: LayerCache) -> None:
        super().__init__()
        self.register_buffer("keys", layer.keys, persistent=False)
        self.register_buffer("values", layer.values, persistent=False)
        self.window = layer.shape.window or 0
        self.chunk = layer.shape.chunk or 0

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended: Tensor = torch.ops.decentllm.attend_pool(
            query, key, value, self.keys, self.values, sinks, scale, softcap or 0.0, self.window, self.chunk
        )
        return attended
