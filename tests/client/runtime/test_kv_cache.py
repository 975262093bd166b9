"""The paged pool: blocks are handed out once, in runs where possible, and all come back."""

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client.runtime.device import Device
from client.runtime.errors import DeviceMemoryError, KvFullError
from client.runtime.kv_cache import BLOCK_TOKENS, BlockPool, KvCache, KvTable, LayerCache, LayerShape

SHAPE = LayerShape(layer=4, num_kv_heads=2, key_dim=6, value_dim=3)
TOKEN_BYTES = 2 * (6 + 3) * 4


def cache(num_blocks: int, device: Device) -> KvCache:
    return KvCache([SHAPE], num_blocks * BLOCK_TOKENS * TOKEN_BYTES, torch.float32, device)


def test_a_pool_holds_as_many_whole_blocks_as_its_bytes_allow(device: Device) -> None:
    pool = KvCache([SHAPE, LayerShape(5, 2, 6, 3)], 5 * BLOCK_TOKENS * TOKEN_BYTES, torch.float32, device)
    assert pool.num_tokens == 2 * BLOCK_TOKENS


def test_a_pool_without_room_for_a_block_is_out_of_memory(device: Device) -> None:
    with pytest.raises(DeviceMemoryError):
        KvCache([SHAPE], BLOCK_TOKENS * TOKEN_BYTES - 1, torch.float32, device)


def test_a_reservation_is_rounded_up_to_blocks_and_given_back_whole(device: Device) -> None:
    pool = cache(4, device)
    table = pool.open(BLOCK_TOKENS + 1)
    assert (table.capacity, pool.num_free_tokens) == (2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)
    pool.close(table)
    assert pool.num_free_tokens == pool.num_tokens
    pool.validate()


def test_a_full_pool_refuses_and_reserves_nothing(device: Device) -> None:
    pool = cache(4, device)
    pool.open(3 * BLOCK_TOKENS)
    with pytest.raises(KvFullError, match="room for 32 tokens is needed, 16 are free"):
        pool.open(2 * BLOCK_TOKENS)
    assert pool.num_free_tokens == BLOCK_TOKENS
    pool.validate()


def test_blocks_come_in_one_run_where_there_is_one() -> None:
    pool = BlockPool(8)
    held = [pool.take(2) for _ in range(4)]
    pool.give_back(held[1])
    pool.give_back(held[2])
    assert pool.take(3) == [2, 3, 4]


def test_scattered_blocks_serve_when_there_is_no_run() -> None:
    pool = BlockPool(6)
    held = [pool.take(1) for _ in range(6)]
    for blocks in held[::2]:
        pool.give_back(blocks)
    assert pool.take(3) == [0, 2, 4]


@pytest.mark.parametrize("blocks", [[1, 2, 3], [5, 0, 3]])
def test_what_was_written_is_read_back_wherever_the_blocks_lie(blocks: list[int]) -> None:
    layer = LayerCache(SHAPE, 8 * BLOCK_TOKENS, torch.float32, torch.device("cpu"))
    table = KvTable(blocks)
    keys, values = torch.randn(1, 2, 40, 6), torch.randn(1, 2, 40, 3)
    layer.write(table.slots[:40], keys, values)
    read_keys, read_values = layer.read(table, 7, 40)
    assert torch.equal(read_keys, keys[:, :, 7:])
    assert torch.equal(read_values, values[:, :, 7:])


def test_reading_consecutive_blocks_copies_nothing() -> None:
    layer = LayerCache(SHAPE, 8 * BLOCK_TOKENS, torch.float32, torch.device("cpu"))
    keys, _ = layer.read(KvTable([2, 3]), 0, 20)
    assert keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr()


def test_truncation_forgets_the_end_and_keeps_the_reservation() -> None:
    table = KvTable([0, 1])
    table.advance(30)
    table.truncate(12)
    assert (table.length, table.capacity) == (12, 32)
    table.advance(20)
    assert table.length == 32


def test_a_table_never_grows_past_its_reservation() -> None:
    with pytest.raises(AssertionError, match="more was written than reserved"):
        KvTable([0]).advance(BLOCK_TOKENS + 1)


@pytest.mark.parametrize(
    ("window", "chunk", "position", "first"),
    [(None, None, 40, 0), (16, None, 40, 25), (16, None, 3, 0), (None, 16, 40, 32), (4, 16, 40, 37), (16, 16, 33, 32)],
)
def test_windows_and_chunks_bound_what_a_position_sees(
    window: int | None, chunk: int | None, position: int, first: int
) -> None:
    assert LayerShape(0, 1, 1, 1, window, chunk).first_visible(position) == first


class Reservations(RuleBasedStateMachine):
    """Sessions come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(24)
        self.held: list[list[int]] = []

    @rule(num_blocks=st.integers(0, 12))
    def take(self, num_blocks: int) -> None:
        free_before = self.pool.num_free
        try:
            self.held.append(self.pool.take(num_blocks))
        except KvFullError:
            assert num_blocks > free_before == self.pool.num_free

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.pool.give_back(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def every_block_is_free_or_held_once(self) -> None:
        self.pool.validate(self.held)


TestReservations = Reservations.TestCase
