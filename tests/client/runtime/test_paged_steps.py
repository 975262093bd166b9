"""Attention over block tables equals that of the CPU's own path, whether keys are gathered or Triton reads them."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from client.runtime.attention import AttentionCall, RaggedBatch
from client.runtime.batch import lay_out
from client.runtime.device import Device
from client.runtime.kv_cache import KvCache, KvTable, LayerShape
from client.runtime.paged_steps import DecodeAttention, DecodeStep, MixedStep, gather_decode
from client.runtime.pool_call import DecodeRows, PoolCall

HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 4, 2, 8, 6
SINGLE = ((5, 1), (40, 1), (0, 1), (17, 1))
CHUNKS = ((0, 9), (23, 14))
"""(tokens before, rows now) of sessions."""
HAS_INTERPRETER = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"


def triton_decode(call: PoolCall, rows: DecodeRows) -> Tensor:
    from client.runtime.paged_decode import triton_decode

    return triton_decode(call, rows, splits=4)


pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
needs_interpreter = pytest.mark.skipif(not HAS_INTERPRETER, reason="needs triton and TRITON_INTERPRET=1")
DECODES = [gather_decode, pytest.param(triton_decode, marks=needs_interpreter)]
REACHES = [(None, None), (8, None), (None, 16)]
SCORINGS = [(None, False, 0.35), (5.0, False, 0.3), (None, True, 0.35)]


class Pool:
    """Sessions over a pool with NaN wherever nothing was written, and one step's queries, keys and values."""

    def __init__(self, sessions: tuple[tuple[int, int], ...], reach: tuple[int | None, int | None]) -> None:
        torch.manual_seed(1)
        self.shape = LayerShape(3, KV_HEADS, KEY_DIM, VALUE_DIM, *reach)
        self.cache = KvCache([self.shape], 2**17, torch.float32, Device.open("cpu"), keeps_tables=True)
        self.layer = self.cache.layers[3]
        self.layer.keys.fill_(torch.nan)
        self.layer.values.fill_(torch.nan)
        fillers = [self.cache.open(16) for _ in range(self.cache.num_tokens // 16)]
        for filler in fillers[:40:2]:
            self.cache.close(filler)  # so that blocks are scattered
        self.tables = [self._table(before) for before, _ in sessions]
        self.layout = lay_out([(table, rows) for table, (_, rows) in zip(self.tables, sessions, strict=True)])
        num_rows = self.layout.num_rows
        self.query = torch.randn(1, num_rows, HEADS, KEY_DIM).transpose(1, 2)
        self.key = torch.randn(1, KV_HEADS, num_rows, KEY_DIM)
        self.value = torch.randn(1, num_rows, KV_HEADS, VALUE_DIM).transpose(1, 2)

    def _table(self, before: int) -> KvTable:
        table = self.cache.open(48)
        slots = table.slots[:before]
        self.layer.write(slots, torch.randn(1, KV_HEADS, before, KEY_DIM), torch.randn(1, KV_HEADS, before, VALUE_DIM))
        table.advance(before)
        return table

    def rows(self, num_single: int) -> DecodeRows:
        assert self.cache.tables is not None
        rows = [table.row for table in self.tables[:num_single] if table.row is not None]
        positions = torch.tensor([table.length for table in self.tables[:num_single]])
        return DecodeRows(self.cache.tables.blocks, torch.tensor(rows), positions, 64)

    def call(self, softcap: float | None, sinks: Tensor | None, scaling: float) -> PoolCall:
        return PoolCall(
            self.query, self.key, self.value, self.layer.keys.clone(), self.layer.values.clone(), sinks, scaling,
            softcap, self.shape.window, self.shape.chunk,
        )  # fmt: skip

    def wanted(self, call: PoolCall) -> Tensor:
        plain = AttentionCall(3, call.query, call.key, call.value, call.scaling, call.softcap, call.sinks)
        return RaggedBatch(self.cache, self.layout.spans, self.layout.slots).attend(plain)

    def check_written(self, call: PoolCall) -> None:
        slots = self.layout.slots
        assert torch.equal(call.keys[slots], self.layer.keys[slots])
        assert torch.equal(call.values[slots], self.layer.values[slots])
        others = torch.ones(len(call.keys), dtype=torch.bool)
        others[slots] = False
        assert torch.equal(call.keys[others].nan_to_num(7.0), self.layer.keys[others].nan_to_num(7.0))


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize(("softcap", "with_sinks", "scaling"), SCORINGS)
def test_decode_rows_see_what_they_see_on_a_cpu(
    softcap: float | None, with_sinks: bool, scaling: float, reach: tuple[int | None, int | None],
    decode: DecodeAttention,
) -> None:  # fmt: skip
    pool = Pool(SINGLE, reach)
    call = pool.call(softcap, torch.randn(HEADS) if with_sinks else None, scaling)
    found = DecodeStep(pool.rows(len(SINGLE)), decode).attend(call)
    torch.testing.assert_close(found, pool.wanted(call), rtol=1e-4, atol=1e-5)
    pool.check_written(call)


@pytest.mark.parametrize("sessions", [(*SINGLE, *CHUNKS), CHUNKS, CHUNKS[1:]])
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize(("softcap", "with_sinks", "scaling"), SCORINGS)
def test_chunks_of_prompts_see_what_they_see_on_a_cpu(
    softcap: float | None, with_sinks: bool, scaling: float, reach: tuple[int | None, int | None],
    sessions: tuple[tuple[int, int], ...],
) -> None:  # fmt: skip
    pool = Pool(sessions, reach)
    call = pool.call(softcap, torch.randn(HEADS) if with_sinks else None, scaling)
    num_single = sum(rows == 1 for _, rows in sessions)
    rows = pool.rows(num_single) if num_single else None
    found = MixedStep(rows, pool.layout.spans[num_single:], pool.layout.slots, gather_decode).attend(call)
    torch.testing.assert_close(found, pool.wanted(call), rtol=1e-4, atol=1e-5)
    pool.check_written(call)


@needs_interpreter
@pytest.mark.parametrize("splits", [1, 2, 16])
def test_any_number_of_splits_gives_the_same(splits: int) -> None:
    from client.runtime.paged_decode import triton_decode

    pool = Pool(((47, 1), (0, 1)), (None, None))
    call = pool.call(None, torch.randn(HEADS), 0.35)
    found = triton_decode(call, pool.rows(2), splits)[None]
    torch.testing.assert_close(found, pool.wanted(call), rtol=1e-4, atol=1e-5)
