"""Which batch a step is padded to, what its inputs then are, and what happens where nothing can be captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client.runtime.attention import Span
from client.runtime.batch import StepLayout, lay_out
from client.runtime.block_tables import BlockTables
from client.runtime.decode_graphs import (
    BUCKETS,
    LOAD_ORDER,
    DecodeGraphs,
    Replay,
    StepBuffers,
    StepInputs,
    bucket_of,
    context_of,
)
from client.runtime.kv_cache import KvTable
from client.runtime.pool_call import DecodeRows
from client.runtime.state_pool import StatefulTable
from tests.client.runtime.recording import EagerRecorder

CPU = torch.device("cpu")
FAR, NEVER = 1e12, 0.0


@given(st.integers(1, BUCKETS[-1]))
def test_a_batch_is_padded_to_the_next_bucket(num_rows: int) -> None:
    bucket = bucket_of(num_rows)
    assert bucket is not None
    assert bucket >= num_rows
    assert not any(num_rows <= other < bucket for other in BUCKETS)


def test_a_batch_beyond_the_largest_bucket_has_none() -> None:
    assert bucket_of(BUCKETS[-1] + 1) is None


@pytest.mark.parametrize(
    ("keys", "padded"), [(1, 256), (256, 256), (257, 512), (1000, 1024), (1025, 2048), (5000, 5120)]
)
def test_contexts_are_padded_to_powers_of_two_and_then_in_steps(keys: int, padded: int) -> None:
    assert context_of(keys) == padded


def tables() -> BlockTables:
    return BlockTables(8, 8, CPU)


def spans(*rows_and_positions: tuple[int, int]) -> tuple[Span, ...]:
    tables = [KvTable(list(range(8)), row=row) for row, _ in rows_and_positions]
    for table, (_, position) in zip(tables, rows_and_positions, strict=True):
        table.advance(position)
    return lay_out([(table, 1) for table in tables]).spans


def test_rows_of_sessions_with_states_read_one_place_and_write_another_and_padded_ones_the_trash_place() -> None:
    buffers = StepBuffers(8, tables(), None, torch.float32, CPU, trash_place=20)
    held = [StatefulTable([0], state=number, row=number) for number in (3, 5)]
    for table in held:
        table.advance(4)
    rows = lay_out([(table, 1) for table in held]).spans
    buffers.fill(4, rows, torch.tensor([11, 12]))
    inputs = buffers.of(4)
    assert inputs.read_from.tolist() == [held[0].current_place, held[1].current_place, 20, 20]
    assert inputs.write_to.tolist() == [held[0].begin_step(), held[1].begin_step(), 20, 20]
    assert set(inputs.read_from.tolist()) & set(inputs.write_to.tolist()) == {20}


def test_padded_rows_are_of_the_trash_row_at_position_zero() -> None:
    found = tables()
    buffers = StepBuffers(8, found, None, torch.float32, CPU)
    buffers.fill(4, spans((5, 9), (6, 9), (7, 9), (4, 9)), torch.tensor([1, 2, 3, 4]))
    buffers.fill(4, spans((2, 30), (0, 7)), torch.tensor([11, 12]))
    inputs = buffers.of(4)
    assert inputs.table_rows.tolist() == [2, 0, found.trash_row, found.trash_row]
    assert inputs.positions.tolist() == [30, 7, 0, 0]
    assert inputs.values.tolist() == [11, 12, 0, 0]


def test_padded_hidden_states_are_zero_whatever_was_there_before() -> None:
    buffers = StepBuffers(8, tables(), 3, torch.bfloat16, CPU)
    others = torch.full((4, 3), torch.nan, dtype=torch.bfloat16)
    buffers.fill(4, spans((0, 1), (1, 1), (2, 1), (3, 1)), others)
    hidden = torch.randn(1, 3).bfloat16()
    buffers.fill(4, spans((2, 30)), hidden)
    values = buffers.of(4).values
    assert torch.equal(values[:1], hidden)
    assert values[1:].eq(0).all()


def test_inputs_stay_where_they_are() -> None:
    buffers = StepBuffers(8, tables(), None, torch.float32, CPU)
    inputs = buffers.of(4)
    buffers.fill(4, spans((1, 5)), torch.tensor([3]))
    assert inputs.values.tolist() == [3, 0, 0, 0]
    assert inputs.values.data_ptr() == buffers.of(4).values.data_ptr()


class Doubler:
    """A stage whose output is twice its tokens. In the variant `slowly`, it takes its time; in `never`, it breaks."""

    def __init__(self) -> None:
        self.recorder = EagerRecorder()
        self.sizes: list[int] = []
        self.contexts: list[int] = []
        self.pause_s = 0.0
        self.breaks = False

    def forward(self, inputs: StepInputs, rows: DecodeRows) -> Tensor:
        if self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        time.sleep(self.pause_s)
        self.sizes.append(len(inputs.values))
        self.contexts.append(rows.max_keys)
        return inputs.values * 2 + (1 if self.pause_s else 0)

    def graphs(self, by_context: bool = False) -> DecodeGraphs:
        found = tables()
        buffers = StepBuffers(BUCKETS[-1], found, None, torch.float32, CPU)
        return DecodeGraphs(self.forward, buffers, found, self.recorder, by_context)

    @contextmanager
    def slowly(self) -> Iterator[None]:
        self.pause_s = 0.002
        try:
            yield
        finally:
            self.pause_s = 0.0

    @contextmanager
    def never(self) -> Iterator[None]:
        self.breaks = True
        try:
            yield
        finally:
            self.breaks = False


def decode_of(num_rows: int, position: int = 5) -> tuple[StepLayout, Tensor]:
    layout = lay_out([(KvTable(list(range(512)), row=row % 8), 1) for row in range(num_rows)])
    for span in layout.spans:
        span.table.advance(position)
    return lay_out([(span.table, 1) for span in layout.spans]), torch.arange(num_rows)


def run(graphs: DecodeGraphs, num_rows: int, position: int = 5) -> list[int] | None:
    layout, tokens = decode_of(num_rows, position)
    output = graphs.run(layout, tokens)
    return None if output is None else output.tolist()


@pytest.mark.parametrize("num_rows", [1, 3, 64, 100])
def test_a_step_gives_its_own_rows_only(num_rows: int) -> None:
    assert run(Doubler().graphs(), num_rows) == [2 * token for token in range(num_rows)]


def test_a_batch_that_is_too_large_or_holds_a_chunk_is_left_to_others() -> None:
    graphs = Doubler().graphs()
    assert run(graphs, BUCKETS[-1] + 1) is None
    layout = lay_out([(KvTable([0]), 1), (KvTable([1]), 2)])
    assert graphs.run(layout, torch.arange(3)) is None


def test_a_size_that_was_not_captured_in_time_is_padded_to_a_larger_one() -> None:
    stage = Doubler()
    graphs = stage.graphs()
    graphs.prepare(LOAD_ORDER, [], NEVER)
    assert stage.recorder.num_recorded == 2
    assert run(graphs, 3) == [0, 2, 4]
    assert stage.recorder.num_recorded == 2
    assert stage.sizes[-1] == 64


def test_all_sizes_are_captured_when_there_is_time() -> None:
    stage = Doubler()
    stage.graphs().prepare(LOAD_ORDER, [], FAR)
    assert sorted(stage.sizes) == list(BUCKETS)


def test_the_variant_that_is_faster_here_is_kept() -> None:
    stage = Doubler()

    class Slow(EagerRecorder):
        """Replays of steps that were recorded slowly stay slow."""

        def record(self, step: Callable[[], Tensor]) -> Replay:
            replay, pause_s = super().record(step), stage.pause_s

            def again() -> Tensor:
                time.sleep(pause_s)
                return replay() + (1 if pause_s else 0)

            return again

    stage.recorder = Slow()
    graphs = stage.graphs()
    graphs.prepare([4], [stage.slowly], FAR)
    assert run(graphs, 3) == [0, 2, 4]


@pytest.mark.expected_logs("decode of 1 rows is not captured: RuntimeError: operation not permitted")
def test_what_cannot_be_captured_in_one_variant_is_in_the_other_and_one_line_says_so() -> None:
    stage = Doubler()
    graphs = stage.graphs()
    graphs.prepare(LOAD_ORDER, [stage.never], FAR)
    assert run(graphs, 2) == [0, 2]


@pytest.mark.expected_logs("is not captured")
def test_where_nothing_can_be_captured_steps_are_left_to_others(caplog: pytest.LogCaptureFixture) -> None:
    stage = Doubler()
    graphs = stage.graphs()
    with stage.never():
        graphs.prepare(LOAD_ORDER, [], FAR)
    assert run(graphs, 1) is None
    assert run(graphs, 64) is None
    assert len([record for record in caplog.records if "not captured" in record.getMessage()]) == 1


def test_gathered_keys_are_captured_by_the_longest_context() -> None:
    stage = Doubler()
    graphs = stage.graphs(by_context=True)
    for position in (5, 200, 300, 400, 3000):
        assert run(graphs, 1, position) == [0]
    assert sorted(set(stage.contexts)) == [256, 512, 3072]
    assert stage.recorder.num_recorded == 3
