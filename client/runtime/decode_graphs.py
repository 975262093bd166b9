"""Decode steps as captured graphs: one per batch size of a few, smaller batches padded to the next.

A captured step reads its inputs at fixed addresses and is replayed with one launch. Padded rows belong to no session:
they write into the pool's trash block and look at nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from client.runtime.attention import Span
from client.runtime.batch import StepLayout
from client.runtime.block_tables import BlockTables
from client.runtime.errors import first_line
from client.runtime.pool_call import DecodeRows
from client.runtime.state_pool import begin_steps

_logger = logging.getLogger(__name__)

BUCKETS = (1, 4, 8, 16, 32, 64, 128)
"""Decoding is bound by reading weights: on an H100, 4 rows take 1 % longer than 2, 64 rows 1 % longer than 48."""
LOAD_ORDER = (1, 64, 16, 4, 32, 8, 128)
"""Captured when a slice is loaded, as far as time allows: the first two in any case."""
NUM_CERTAIN = 2
MIN_CONTEXT, CONTEXT_STEP = 256, 1024
NUM_NUMBERS = 5
"""That a row has: its table, its position, its token, and where its recurrent states are read and written."""
TIMED_ROUNDS, TIMED_REPLAYS = 3, 8

Replay = Callable[[], Tensor]
Variant = Callable[[], AbstractContextManager[None]]
"""Something that is in force while a step is captured, such as compiled layers."""


class Recorder(Protocol):
    """What captures a step."""

    def record(self, step: Callable[[], Tensor]) -> Replay:
        """`step` once and for all; its output stays where it is. May raise anything that torch raises."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""


class CudaRecorder:
    """CUDA graphs that share one memory pool: their steps never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], Tensor]) -> Replay:
        """Run the step twice aside, so that libraries and compilers have made what they need, and capture it."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            step()
            step()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Views of the static buffers for one number of rows: token ids [rows] or hidden states [rows, hidden size].

    `read_from` and `write_to` are places of recurrent states, if there are any."""

    table_rows: Tensor
    positions: Tensor
    values: Tensor
    read_from: Tensor
    write_to: Tensor


class StepBuffers:
    """What captured steps read. One copy brings rows, positions, token ids and places, one more hidden states."""

    def __init__(
        self, max_rows: int, tables: BlockTables, hidden_size: int | None, dtype: torch.dtype, device: torch.device,
        trash_place: int | None = None,
    ) -> None:  # fmt: skip
        """`hidden_size` is None on a first stage, which takes token ids. `trash_place`: where padded rows keep their
        recurrent states, if the stage has any."""
        is_cuda = device.type == "cuda"
        num_numbers = NUM_NUMBERS * max_rows
        hosts = [torch.zeros(num_numbers, dtype=torch.int64, pin_memory=is_cuda) for _ in range(2)]
        self._hosts = [(host, host.numpy()) for host in hosts]
        """In turn. Assigning lists to an array is a tenth of what it costs through torch."""
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=device)
        self._trash_row = tables.trash_row
        self._trash_place = trash_place
        self._host_hidden: Tensor | None = None
        if hidden_size is not None:
            self._host_hidden = torch.zeros(max_rows, hidden_size, dtype=dtype, pin_memory=is_cuda)
            self._hidden_array = self._host_hidden.view(torch.uint8).numpy()
            self._hidden = torch.zeros(max_rows, hidden_size, dtype=dtype, device=device)

    def of(self, num_rows: int) -> StepInputs:
        table_rows, positions, tokens, *places = self._numbers[: NUM_NUMBERS * num_rows].view(NUM_NUMBERS, num_rows)
        values = tokens if self._host_hidden is None else self._hidden[:num_rows]
        return StepInputs(table_rows, positions, values, *places)

    def fill(self, num_rows: int, spans: Sequence[Span], values: Tensor | None) -> None:
        """Bring a step's rows, padded to `num_rows`. `values` as in StepInputs, on any device; None: padding only.

        What was brought the time before last must have been read: the engine waits for each step's result before it
        gives the device the next but one."""
        num_live, pad = len(spans), num_rows - len(spans)
        host, array = self._hosts[0]
        self._hosts.reverse()
        tokens: Sequence[int] = ()
        is_here = values is not None and values.device == self._numbers.device and self._numbers.is_cuda
        if self._host_hidden is None:
            tokens = [] if values is None or is_here else values.tolist()
        else:
            self._hidden_array[num_live:num_rows] = 0
            if values is not None:
                self._hidden_array[:num_live] = values.cpu().view(torch.uint8).numpy()
            self._hidden[:num_rows].copy_(self._host_hidden[:num_rows], non_blocking=True)
        table_rows = [span.table.row for span in spans]
        numbers = [*table_rows, *[self._trash_row] * pad, *[span.position for span in spans], *[0] * pad]
        numbers += [*tokens, *[0] * (num_rows - len(tokens))]
        if self._trash_place is not None:
            numbers += [place for places in begin_steps(spans) for place in (*places, *[self._trash_place] * pad)]
        array[: len(numbers)] = numbers
        self._numbers[: len(numbers)].copy_(host[: len(numbers)], non_blocking=True)
        if self._host_hidden is None and is_here and values is not None:
            self.of(num_rows).values[:num_live].copy_(values)


class DecodeGraphs:
    """Captured decode steps of a stage. `forward(inputs, rows)` is the stage's own forward over static inputs.

    With `by_context`, a step's shape also depends on the longest context in it, rounded up to a power of two."""

    def __init__(
        self, forward: Callable[[StepInputs, DecodeRows], Tensor], buffers: StepBuffers, tables: BlockTables,
        recorder: Recorder, by_context: bool,
    ) -> None:  # fmt: skip
        self._forward = forward
        self._buffers = buffers
        self._tables = tables
        self._recorder = recorder
        self._by_context = by_context
        self._replays: dict[tuple[int, int], Replay | None] = {}
        self._has_failed = False

    def prepare(self, sizes: Sequence[int], variants: Sequence[Variant], deadline_s: float) -> None:
        """Capture batches of these sizes, each in the variant that is fastest here, until the clock says it is time.

        Sizes that are not captured by then are padded to larger ones."""
        for num_rows in sizes:
            if perf_counter() < deadline_s or num_rows in LOAD_ORDER[:NUM_CERTAIN]:
                self._capture((num_rows, MIN_CONTEXT if self._by_context else 0), [nullcontext, *variants])

    def run(self, layout: StepLayout, inputs: Tensor) -> Tensor | None:
        """The step's output, [rows, ...], valid until the next one; None if it has to be computed otherwise."""
        longest = max(span.stop for span in layout.spans)
        key = self._key(layout.num_rows, context_of(longest) if self._by_context else 0)
        if key is None or not layout.is_decode:
            return None
        if key not in self._replays:
            self._capture(key, [nullcontext])
        replay = self._replays[key]
        if replay is None:
            return None
        self._buffers.fill(key[0], layout.spans, inputs)
        return replay()[: layout.num_rows]

    def _key(self, num_rows: int, max_keys: int) -> tuple[int, int] | None:
        """What to replay for so many rows. Padded rows cost next to nothing, unless keys are gathered for them too."""
        if not self._by_context:
            captured = (size for size, _ in self._replays if size >= num_rows and self._replays[size, 0] is not None)
            smallest = min(captured, default=None)
            if smallest is not None:
                return smallest, max_keys
        bucket = bucket_of(num_rows)
        return None if bucket is None else (bucket, max_keys)

    def _capture(self, key: tuple[int, int], variants: Sequence[Variant]) -> None:
        """Of those that can be captured, keep the fastest."""
        replays = [replay for variant in variants if (replay := self._try(key, variant)) is not None]
        if len(replays) < 2:
            self._replays[key] = next(iter(replays), None)
            return
        times = [time_s(replay, self._recorder) for replay in replays]
        self._replays[key] = replays[times.index(min(times))]
        _logger.info("decode of %d rows: %s us", key[0], " or ".join(f"{time * 1e6:.0f}" for time in times))

    def _try(self, key: tuple[int, int], variant: Variant) -> Replay | None:
        num_rows, max_keys = key
        self._buffers.fill(num_rows, [], None)
        inputs = self._buffers.of(num_rows)

        def step() -> Tensor:
            rows = DecodeRows(self._tables.blocks, inputs.table_rows, inputs.positions, max_keys)
            return self._forward(inputs, rows)

        try:
            with variant():
                return self._recorder.record(step)
        except Exception as error:  # noqa: BLE001 - torch raises anything; a step can always be computed plainly
            if not self._has_failed:  # one line is enough: the other sizes will fail alike
                _logger.warning("decode of %d rows is not captured: %s", num_rows, first_line(error))
            self._has_failed = True
            return None


def time_s(replay: Replay, recorder: Recorder) -> float:
    """Seconds of a replay: the least of several rounds, so that a hiccup of the host does not decide."""
    replay()
    times = []
    for _ in range(TIMED_ROUNDS):
        recorder.synchronize()
        begin = perf_counter()
        for _ in range(TIMED_REPLAYS):
            replay()
        recorder.synchronize()
        times.append(perf_counter() - begin)
    return min(times) / TIMED_REPLAYS


def bucket_of(num_rows: int) -> int | None:
    """The number of rows that a step of `num_rows` is padded to; None if it is larger than any."""
    return next((bucket for bucket in BUCKETS if bucket >= num_rows), None)


def context_of(num_keys: int) -> int:
    """What contexts up to `num_keys` are padded to: a power of two, then multiples of CONTEXT_STEP."""
    if num_keys > CONTEXT_STEP:
        return -(-num_keys // CONTEXT_STEP) * CONTEXT_STEP
    return max(MIN_CONTEXT, 1 << (num_keys - 1).bit_length())
