"""Decode attention in Triton: one query row per session over its live keys in the paged pool, and nothing else.

The keys of a session are divided into splits that run side by side (flash-decoding, Dao et al. 2023), merged by a
second kernel. The row's own key and value are at hand: the first split adds them to the result and to the pool, so
there is no kernel that only writes. Grids depend on the number of rows alone: captured graphs stay right as contexts
grow. Import this module only where Triton is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from client.runtime.kv_cache import BLOCK_TOKENS
from client.runtime.pool_call import DecodeRows, PoolCall

MIN_SPLITS, MAX_SPLITS = 2, 32
PROGRAMS_PER_SM = 2
"""Measured on an H100 at context 2,048: 32, 4, 2 and 2 splits are the fastest for 1, 8, 16 and 64 sessions."""
NOTHING = tl.constexpr(-1e30)
"""A score below all others: infinities would make NaN of a split without keys."""


@triton.jit  # type: ignore[untyped-decorator]
def _softcapped(scores, softcap, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    if HAS_SOFTCAP:
        scores = softcap * (1 - 2 / (tl.exp(2 * scores / softcap) + 1))
    return scores


@triton.jit
def _first_visible(position, window, chunk):  # type: ignore[no-untyped-def]
    first = tl.zeros_like(position)
    if window > 0:
        first = tl.maximum(first, position - window + 1)
    if chunk > 0:
        first = tl.maximum(first, position // chunk * chunk)
    return first


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]
    sums, total, top, sinks, out, partial, stats, line, head, split, is_head,
    VALUE: tl.constexpr, VALUE_PAD: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    value_dim = tl.arange(0, VALUE_PAD)
    if SPLITS == 1:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=is_head, other=0.0).to(tl.float32)
            higher = tl.maximum(top, sink)
            fade = tl.exp(top - higher)
            total = total * fade + tl.exp(sink - higher)
            sums = sums * fade[:, None]
        mask = is_head[:, None] & (value_dim < VALUE)[None, :]
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + line[:, None] * VALUE + value_dim[None, :], result, mask=mask)
    else:
        part = line * SPLITS + split
        tl.store(partial + part[:, None] * VALUE_PAD + value_dim[None, :], sums, mask=is_head[:, None])
        tl.store(stats + part * 2, top, mask=is_head)
        tl.store(stats + part * 2 + 1, total, mask=is_head)


@triton.jit  # type: ignore[untyped-decorator]
def _split_kernel(  # type: ignore[no-untyped-def]
    query, key, value, keys, values, tables, table_rows, positions, sinks, out, partial, stats,
    scaling, softcap, window, chunk, table_width, num_kv_heads,
    query_row, query_head, key_row, key_head, value_row, value_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, KEY_PAD: tl.constexpr,  # noqa: N803
    VALUE: tl.constexpr, VALUE_PAD: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row)
    table = tables + tl.load(table_rows + row) * table_width
    heads, key_dim, value_dim = tl.arange(0, HEADS), tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    head = kv_head * GROUP + heads
    is_key, is_value, is_head = key_dim < KEY, value_dim < VALUE, heads < GROUP
    lines = query + row * query_row + head[:, None] * query_head
    q = tl.load(lines + key_dim[None, :], mask=is_head[:, None] & is_key[None, :], other=0.0)

    first = _first_visible(position, window, chunk)
    span = tl.cdiv(tl.cdiv(position - first, SPLITS), TILE) * TILE
    end = tl.minimum(first + split * span + span, position)
    top = tl.full([HEADS], NOTHING, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    sums = tl.zeros([HEADS, VALUE_PAD], tl.float32)
    for start in range(first + split * span, end, TILE):
        at = start + tl.arange(0, TILE)
        is_there = at < end
        block = tl.load(table + at // BLOCK, mask=is_there, other=0).to(tl.int64)
        place = (block * BLOCK + at % BLOCK) * num_kv_heads + kv_head
        k = tl.load(keys + place[:, None] * KEY + key_dim[None, :], mask=is_there[:, None] & is_key[None, :], other=0.0)
        at_values = values + place[:, None] * VALUE + value_dim[None, :]
        v = tl.load(at_values, mask=is_there[:, None] & is_value[None, :], other=0.0)
        scores = _softcapped(tl.dot(q, tl.trans(k), input_precision="ieee") * scaling, softcap, HAS_SOFTCAP)
        scores = tl.where(is_there[None, :], scores, NOTHING)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher

    if split == 0:
        k_new = tl.load(key + row * key_row + kv_head * key_head + key_dim, mask=is_key, other=0.0)
        v_new = tl.load(value + row * value_row + kv_head * value_head + value_dim, mask=is_value, other=0.0)
        block_new = tl.load(table + position // BLOCK).to(tl.int64)
        place_new = (block_new * BLOCK + position % BLOCK) * num_kv_heads + kv_head
        tl.store(keys + place_new * KEY + key_dim, k_new, mask=is_key)
        tl.store(values + place_new * VALUE + value_dim, v_new, mask=is_value)
        product = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], 1) * scaling
        score = _softcapped(product, softcap, HAS_SOFTCAP)
        higher_new = tl.maximum(top, score)
        weight = tl.exp(score - higher_new)
        fade_new = tl.exp(top - higher_new)
        total = total * fade_new + weight
        sums = sums * fade_new[:, None] + weight[:, None] * v_new.to(tl.float32)[None, :]
        top = higher_new

    _store(
        sums, total, top, sinks, out, partial, stats, row * num_kv_heads * GROUP + head, head, split, is_head,
        VALUE, VALUE_PAD, SPLITS, HAS_SINKS,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _merge_kernel(  # type: ignore[no-untyped-def]
    partial, stats, sinks, out, num_heads,
    VALUE: tl.constexpr, VALUE_PAD: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    value_dim = tl.arange(0, VALUE_PAD)
    part = (row * num_heads + head) * SPLITS + tl.arange(0, SPLITS)
    tops, totals = tl.load(stats + part * 2), tl.load(stats + part * 2 + 1)
    sums = tl.load(partial + part[:, None] * VALUE_PAD + value_dim[None, :])
    highest = tl.max(tops, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        highest = tl.maximum(highest, sink)
    weights = tl.exp(tops - highest)
    total = tl.sum(weights * totals, 0)
    if HAS_SINKS:
        total += tl.exp(sink - highest)
    result = tl.sum(sums * weights[:, None], 0) / total
    place = out + (row * num_heads + head) * VALUE + value_dim
    tl.store(place, result.to(out.dtype.element_ty), mask=value_dim < VALUE)


def triton_decode(call: PoolCall, rows: DecodeRows, splits: int | None = None) -> Tensor:
    """Attend from the first rows of `call`, as many as `rows` has, and write their keys and values.

    Returns [rows, heads, value dim]."""
    num_rows, num_heads, num_kv_heads = rows.num_rows, call.query.shape[1], call.key.shape[1]
    value_dim = call.value.shape[-1]
    value_pad = _padded(value_dim)
    splits = splits or num_splits(num_rows * num_kv_heads, call.query.device)
    out = call.query.new_empty(num_rows, num_heads, value_dim)
    partial, stats = out, out
    if splits > 1:
        partial = torch.empty(num_rows, num_heads, splits, value_pad, dtype=torch.float32, device=out.device)
        stats = torch.empty(num_rows, num_heads, splits, 2, dtype=torch.float32, device=out.device)
    sinks = out if call.sinks is None else call.sinks
    _split_kernel[num_rows, num_kv_heads, splits](
        *_pointers(call), rows.tables, rows.table_rows, rows.positions, sinks, out, partial, stats,
        call.scaling, call.softcap or 1.0, call.window or 0, call.chunk or 0, rows.tables.stride(0), num_kv_heads,
        **_strides(call), **_constants(call, splits),
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[num_rows, num_heads](
            partial, stats, sinks, out, num_heads,
            VALUE=value_dim, VALUE_PAD=value_pad, SPLITS=splits, HAS_SINKS=call.sinks is not None, num_warps=2,
        )  # fmt: skip
    return out


def num_splits(num_programs: int, device: torch.device) -> int:
    """Enough programs to fill the device, a power of two: fewer splits at larger batches."""
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    wanted = max(1, PROGRAMS_PER_SM * num_sms // num_programs)
    return min(MAX_SPLITS, max(MIN_SPLITS, 1 << (wanted.bit_length() - 1)))


def _pointers(call: PoolCall) -> tuple[Tensor, ...]:
    return call.query, call.key, call.value, call.keys, call.values


def _strides(call: PoolCall) -> dict[str, int]:
    found = {}
    for name, tensor in (("query", call.query), ("key", call.key), ("value", call.value)):
        assert tensor.stride(3) == 1, "a row's dimensions lie side by side"
        found[f"{name}_row"], found[f"{name}_head"] = tensor.stride(2), tensor.stride(1)
    return found


def _padded(length: int) -> int:
    """Lengths that `tl.dot` takes."""
    return max(16, int(triton.next_power_of_2(length)))


def _constants(call: PoolCall, splits: int) -> dict[str, Any]:
    key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
    group = call.query.shape[1] // call.key.shape[1]
    wide = max(key_dim, value_dim) > 128 or call.query.dtype == torch.float32
    return {
        "GROUP": group, "HEADS": _padded(group),
        "KEY": key_dim, "KEY_PAD": _padded(key_dim),
        "VALUE": value_dim, "VALUE_PAD": _padded(value_dim),
        "BLOCK": BLOCK_TOKENS, "TILE": 32, "SPLITS": splits,
        "HAS_SOFTCAP": call.softcap is not None, "HAS_SINKS": call.sinks is not None,
        "num_warps": 4, "num_stages": 2 if wide else 5,
    }  # fmt: skip
