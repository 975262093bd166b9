"""Block tables on the device: a row per open session, and one of trash."""

import pytest
import torch

from client.runtime import block_tables
from client.runtime.block_tables import BlockTables
from client.runtime.device import Device
from client.runtime.errors import KvFullError
from client.runtime.kv_cache import BLOCK_TOKENS, KvCache, LayerShape


def pool(num_blocks: int, device: Device) -> KvCache:
    return KvCache([LayerShape(0, 1, 4, 4)], num_blocks * BLOCK_TOKENS * 32, torch.float32, device, keeps_tables=True)


def test_a_sessions_blocks_stand_in_its_row_where_they_always_stood(device: Device) -> None:
    cache = pool(8, device)
    assert cache.tables is not None
    address = cache.tables.blocks.data_ptr()
    first, second = cache.open(2 * BLOCK_TOKENS), cache.open(BLOCK_TOKENS)
    assert first.row is not None
    assert second.row is not None
    assert cache.tables.blocks[first.row, :2].tolist() == first.blocks
    assert cache.tables.blocks[second.row, :1].tolist() == second.blocks
    assert cache.tables.blocks.data_ptr() == address


def test_the_last_row_is_of_the_block_that_belongs_to_nobody(device: Device) -> None:
    cache = pool(3, device)
    assert cache.tables is not None
    assert set(cache.tables.blocks[cache.tables.trash_row].tolist()) == {3}
    assert len(cache.layers[0].keys) == 4 * BLOCK_TOKENS
    assert cache.num_tokens == 3 * BLOCK_TOKENS


def test_rows_are_used_again(device: Device) -> None:
    cache = pool(2, device)
    for _ in range(5):
        tables = [cache.open(BLOCK_TOKENS) for _ in range(2)]
        assert len({table.row for table in tables}) == 2
        for table in tables:
            cache.close(table)
    cache.validate()


def test_more_sessions_than_rows_find_the_pool_full(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tables, "MAX_SESSIONS", 2)
    cache = pool(8, device)
    for _ in range(2):
        cache.open(BLOCK_TOKENS)
    with pytest.raises(KvFullError):
        cache.open(BLOCK_TOKENS)
    assert cache.num_free_tokens == 6 * BLOCK_TOKENS


def test_a_session_longer_than_a_row_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tables, "MAX_BLOCKS", 3)
    with pytest.raises(KvFullError, match="64 tokens is needed, 48 are free"):
        pool(8, device).open(4 * BLOCK_TOKENS)


def test_a_row_is_given_back_once() -> None:
    tables = BlockTables(4, 4, torch.device("cpu"))
    row = tables.add([1, 2])
    tables.remove(row)
    with pytest.raises(AssertionError, match="given back once"):
        tables.remove(row)
