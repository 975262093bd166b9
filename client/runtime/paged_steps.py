"""Steps over the paged pool: decode rows alone, or decode rows followed by chunks of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from client.runtime.attention import Span, attend, visible
from client.runtime.pool_call import DecodeRows, PoolCall

DecodeAttention = Callable[[PoolCall, DecodeRows], Tensor]
"""Attends from the first rows of a call and writes their keys and values: [rows, heads, value dim]."""
MAX_FLASH_DIM = 256
HALF_DTYPES = (torch.float16, torch.bfloat16)


def gather_decode(call: PoolCall, rows: DecodeRows) -> Tensor:
    """Decode attention without Triton: keys are gathered, padded to `max_keys`. Shapes depend on nothing else."""
    slots, own = rows.slots()
    num_rows = rows.num_rows
    _write(call, own, slice(0, num_rows))
    keys, values = (
        pool.index_select(0, slots.flatten()).view(*slots.shape, *pool.shape[1:]).transpose(1, 2)
        for pool in (call.keys, call.values)
    )
    at = torch.arange(rows.max_keys, device=slots.device)
    mask = visible(rows.positions[:, None], at, call.window, call.chunk)[:, None, None]
    query = call.query[0, :, :num_rows].transpose(0, 1).unsqueeze(2)
    return attend(query, keys, values, mask, call).squeeze(2)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Every row is another session's next one."""

    rows: DecodeRows
    decode: DecodeAttention

    def attend(self, call: PoolCall) -> Tensor:
        """[1, rows, heads, value dim]"""
        return self.decode(call, self.rows).unsqueeze(0)


class MixedStep:
    """`rows` first, then a chunk of a prompt per span; `slots` [rows] has the places of all of them."""

    def __init__(self, rows: DecodeRows | None, spans: Sequence[Span], slots: Tensor, decode: DecodeAttention) -> None:
        self._rows = rows
        self._decode = decode
        self._slots = slots
        self._chunks = [_Chunk(span, slots.device) for span in spans]

    def attend(self, call: PoolCall) -> Tensor:
        """[1, rows, heads, value dim]"""
        num_single = self._rows.num_rows if self._rows else 0
        _write(call, self._slots[num_single:], slice(num_single, None))
        parts = [self._decode(call, self._rows)] if self._rows else []
        parts += [chunk.attend(call)[0].transpose(0, 1) for chunk in self._chunks]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


class _Chunk:
    """Consecutive rows of one prompt, which see what is cached of it and each other."""

    def __init__(self, span: Span, device: torch.device) -> None:
        self._span = span
        self._device = device
        self._slots: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, int | None, int | None], Tensor] = {}

    def attend(self, call: PoolCall) -> Tensor:
        """[1, heads, rows, value dim]. Keys and values must have been written."""
        span = self._span
        rows = slice(span.first_row, span.first_row + span.num_rows)
        start = _first_visible(span.position, call)
        if span.position == start:  # all keys are in this very step
            keys, values = call.key[:, :, rows], call.value[:, :, rows]
        else:
            keys, values = self._read(call.keys, start), self._read(call.values, start)
        query = call.query[:, :, rows]
        if self._is_causal(call) and _has_flash(query, values, call):
            bias = causal_lower_right(span.num_rows, keys.shape[2])
            grouped = query.shape[1] != keys.shape[1]
            return F.scaled_dot_product_attention(query, keys, values, bias, scale=call.scaling, enable_gqa=grouped)
        return attend(query, keys, values, self._mask(start, call), call)

    def _is_causal(self, call: PoolCall) -> bool:
        """Whether windows hide nothing from any row."""
        return _first_visible(self._span.stop - 1, call) == 0

    def _read(self, pool: Tensor, start: int) -> Tensor:
        """[1, kv heads, positions from `start` on, dim]; a view where the session's blocks are a run."""
        table = self._span.table
        if table.first_slot is not None:
            rows = pool[table.first_slot + start : table.first_slot + self._span.stop]
        else:
            if start not in self._slots:
                self._slots[start] = table.slots[start : self._span.stop].to(self._device)
            rows = pool.index_select(0, self._slots[start])
        return rows.transpose(0, 1).unsqueeze(0)

    def _mask(self, start: int, call: PoolCall) -> Tensor:
        key = (start, call.window, call.chunk)
        if key not in self._masks:
            rows = torch.arange(self._span.position, self._span.stop, device=self._device)[:, None]
            keys = torch.arange(start, self._span.stop, device=self._device)
            self._masks[key] = visible(rows, keys, call.window, call.chunk)
        return self._masks[key]


def _first_visible(position: int, call: PoolCall) -> int:
    by_window = 0 if call.window is None else position - call.window + 1
    by_chunk = 0 if call.chunk is None else position // call.chunk * call.chunk
    return max(0, by_window, by_chunk)


def _has_flash(query: Tensor, values: Tensor, call: PoolCall) -> bool:
    """Whether torch's flash kernel may take it; where it cannot after all, torch chooses another one."""
    dims = {query.shape[-1], values.shape[-1]}
    plain = call.softcap is None and call.sinks is None
    return plain and query.is_cuda and query.dtype in HALF_DTYPES and len(dims) == 1 and max(dims) <= MAX_FLASH_DIM


def _write(call: PoolCall, slots: Tensor, rows: slice) -> None:
    call.keys.index_copy_(0, slots, call.key[0, :, rows].transpose(0, 1))
    call.values.index_copy_(0, slots, call.value[0, :, rows].transpose(0, 1))
