"""Attention over the pool equals the textbook formula, for every reach, and by either way of decoding."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from client.runtime.attention import AttentionCall, RaggedBatch, ShapeProbe, attending, ragged_attention
from client.runtime.batch import lay_out
from client.runtime.device import Device
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.kv_cache import KvCache, KvTable, LayerShape

HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 4, 2, 8, 6
LENGTHS = ((5, 1), (40, 1), (0, 1), (17, 1), (0, 9), (23, 14))
"""(tokens before, rows now) of six sessions: single rows first."""


def textbook(call: AttentionCall, shape: LayerShape, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
    """One row's attention, key by key. keys and values [positions, kv heads, dim], query [heads, dim]."""
    position = len(keys) - 1
    seen = [p for p in range(position + 1) if p >= shape.first_visible(position)]
    rows = []
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        scores = keys[seen, kv_head] @ query[head] * (KEY_DIM**-0.5 if call.scaling is None else call.scaling)
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        if call.sinks is not None:
            scores = torch.cat([scores, call.sinks[head : head + 1]])
        weights = scores.softmax(0)[: len(seen)]
        rows.append(weights @ values[seen, kv_head])
    return torch.stack(rows)


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (8, None), (None, 16)])
@pytest.mark.parametrize(
    ("softcap", "with_sinks", "scaling"), [(None, False, None), (5.0, False, 0.3), (None, True, None)]
)
def test_ragged_attention_is_the_textbooks(
    softcap: float | None, with_sinks: bool, scaling: float | None, window: int | None, chunk: int | None,
    device: Device,
) -> None:  # fmt: skip
    torch.manual_seed(1)
    shape = LayerShape(3, KV_HEADS, KEY_DIM, VALUE_DIM, window, chunk)
    cache = KvCache([shape], 2**18, torch.float32, device)
    layer = cache.layers[3]
    layer.keys.fill_(float("nan"))  # what no session has written must not be seen, and masks do not stop NaN
    layer.values.fill_(float("nan"))
    tables = _scattered_tables(cache)
    for table, (before, _) in zip(tables, LENGTHS, strict=True):
        slots = table.slots[:before]
        layer.write(slots, torch.randn(1, KV_HEADS, before, KEY_DIM), torch.randn(1, KV_HEADS, before, VALUE_DIM))
        table.advance(before)
    layout = lay_out([(table, rows) for table, (_, rows) in zip(tables, LENGTHS, strict=True)])
    num_rows = layout.num_rows
    call = AttentionCall(
        3, torch.randn(1, HEADS, num_rows, KEY_DIM), torch.randn(1, KV_HEADS, num_rows, KEY_DIM),
        torch.randn(1, KV_HEADS, num_rows, VALUE_DIM), scaling, softcap, torch.randn(HEADS) if with_sinks else None,
    )  # fmt: skip
    output = RaggedBatch(cache, layout.spans, layout.slots).attend(call)
    assert output.shape == (1, num_rows, HEADS, VALUE_DIM)
    for span in layout.spans:
        for offset in range(span.num_rows):
            slots, row = span.table.slots[: span.position + offset + 1], span.first_row + offset
            wanted = textbook(call, shape, layer.keys[slots], layer.values[slots], call.query[0, :, row])
            torch.testing.assert_close(output[0, row], wanted, rtol=1e-4, atol=1e-5)


def _scattered_tables(cache: KvCache) -> list[KvTable]:
    """Room for LENGTHS: half of the tables in one run of blocks, half in pieces."""
    fillers = [cache.open(16) for _ in range(cache.num_tokens // 16)]
    for filler in [*fillers[:9], *fillers[10:28:2]]:
        cache.close(filler)
    tables = [cache.open(48) for _ in LENGTHS]
    assert [table.first_slot is None for table in tables] == [False] * 3 + [True] * 3
    return tables


def module(layer: int = 1, **config: object) -> SimpleNamespace:
    return SimpleNamespace(layer_idx=layer, config=SimpleNamespace(**config))


def probe(attention_mask: object = None, sliding_window: int | None = None) -> ShapeProbe:
    found = ShapeProbe("someone")
    rows = torch.zeros(1, 2, 1, 8)
    with attending(found):
        ragged_attention(module(), rows, rows, rows[..., :5], attention_mask, sliding_window=sliding_window)
    return found


def test_a_probe_sees_what_a_layer_caches_and_how_far_it_looks() -> None:
    assert probe(sliding_window=7).shapes == (LayerShape(1, 2, 8, 5, window=7),)


def test_what_a_layer_does_not_say_is_read_from_the_config() -> None:
    found = ShapeProbe("someone")
    rows = torch.zeros(1, 2, 1, 8)
    config = {
        "layer_types": ["chunked_attention", "sliding_attention"],
        "sliding_window": 9,
        "attention_chunk_size": 16,
    }
    with attending(found):
        ragged_attention(module(0, **config), rows, rows, rows)
        ragged_attention(module(1, **config), rows, rows, rows)
    assert [(shape.window, shape.chunk) for shape in found.shapes] == [(None, 16), (9, None)]


def test_a_model_with_masks_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="masks of their own"):
        probe(attention_mask=torch.ones(1))


def test_the_attender_is_gone_after_the_forward() -> None:
    with pytest.raises(AttributeError):
        ragged_attention(module(), *[torch.zeros(1, 1, 1, 1)] * 3)
