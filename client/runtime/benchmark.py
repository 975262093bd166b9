"""How fast a device computes layers of a model's shape, on random weights: before it is assigned any."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from client.runtime.architecture import Architecture, read_architecture
from client.runtime.batch import StepLayout, lay_out
from client.runtime.cut import CutModel, cut_class, meta_cut
from client.runtime.decode_graphs import BUCKETS, bucket_of
from client.runtime.device import Device
from client.runtime.kv_cache import BLOCK_TOKENS, KvTable
from client.runtime.loading import materialise
from client.runtime.mixers import adopt_mixers
from client.runtime.packed_loading import assemble, pack_cut
from client.runtime.packed_model import check_packable
from client.runtime.paged_forward import PagedForward
from client.runtime.sampling import sample
from client.runtime.stage import Stage, probe_shapes, run_cut
from client.runtime.state_pool import state_token_bytes
from protocol.values import MIN_STATEFUL_TOKENS, BatchTime, LayerBenchmark, Quantisation, Sampling

CONTEXT_TOKENS = 128
"""Decode is timed with this much context behind each session."""
PROMPT_TOKENS = 4096
"""Room for the longest prefill that is timed, and more."""
MEASURE_S = 0.6
"""Repetitions of one figure end after this long, or after MAX_REPETITIONS."""
MAX_REPETITIONS = 25
PREFILL_BUDGET_S = 1.5
"""A prefill expected to take longer than this is timed over fewer tokens."""
PREPARE_LIMIT_S = 10.0
"""Compiling and capturing at a measurement, which is to be over soon."""
PATTERN_LENGTH = 1_000_003
"""Random weights repeat after this many elements (a prime, so that no two rows are equal): filling is then a copy."""


def measure_layers(
    config_json: str,
    dtype: torch.dtype,
    device: Device,
    batch_sizes: Sequence[int],
    num_prefill_tokens: int,
    between: Callable[[], None] = lambda: None,
    quantisation: Quantisation | None = None,
) -> LayerBenchmark:
    """Median times of one layer from the middle of the model, and of its head. `between` is called now and then.

    Raises BadConfigError, UnsupportedArchitectureError, or what torch raises when the layer does not fit."""
    architecture = read_architecture(config_json)
    if quantisation is not None:
        check_packable(meta_cut(architecture, 0, architecture.num_layers))
    clock = StepClock(device, between)
    middle = architecture.num_layers // 2
    layer = LayerTimer(
        random_cut(architecture, middle, middle + 1, dtype, device, quantisation),
        dtype,
        device,
        clock,
        [*batch_sizes, 1],
    )
    decode = tuple(BatchTime(size, layer.decode_s(size)) for size in sorted(set(batch_sizes)))
    num_tokens = min(num_prefill_tokens, max(BLOCK_TOKENS, int(PREFILL_BUDGET_S / decode[0].layer_s)))
    prefill_s = layer.prefill_s(max(1, num_tokens)) / max(1, num_tokens)
    del layer  # its memory is needed for the head
    device.release_cached()
    num_layers = architecture.num_layers
    head = random_cut(architecture, num_layers, num_layers, dtype, device, quantisation)
    return LayerBenchmark(decode, prefill_s, head_s(head, dtype, device, clock))


class StepClock:
    """Median of a bounded number of repetitions, after one that warms up."""

    def __init__(self, device: Device, between: Callable[[], None]) -> None:
        self._device = device
        self._between = between

    def median_s(self, step: Callable[[], object]) -> float:
        """Seconds that `step` takes, device included."""
        self._once(step)
        times = [self._once(step)]
        while len(times) < MAX_REPETITIONS and sum(times) < MEASURE_S:
            times.append(self._once(step))
        return statistics.median(times)

    def _once(self, step: Callable[[], object]) -> float:
        self._between()
        begin = perf_counter()
        step()
        self._device.synchronize()
        return perf_counter() - begin


class LayerTimer:
    """One layer, with random weights: from the middle of a model, where families with a few dense layers at the start
    are past them."""

    def __init__(
        self, cut: CutModel, dtype: torch.dtype, device: Device, clock: StepClock, batch_sizes: Sequence[int]
    ) -> None:
        self._clock = clock
        room_bytes = _room_bytes(cut, dtype, device, max(batch_sizes))
        sizes = sorted({bucket_of(size) or BUCKETS[-1] for size in batch_sizes})
        open_paged = None if device.is_cpu else partial(PagedForward.open, limit_s=PREPARE_LIMIT_S, sizes=sizes)
        self._stage = Stage(cut, room_bytes, dtype, device, open_paged)
        for layer in self._stage.cache.layers.values():  # timing must not read what happens to lie in memory
            layer.keys.zero_()
            layer.values.zero_()

    def decode_s(self, batch_size: int) -> float:
        """One decode step of `batch_size` sessions, each with CONTEXT_TOKENS behind it."""
        tables = [self._stage.cache.open(CONTEXT_TOKENS + 1) for _ in range(batch_size)]
        for table in tables:
            table.advance(CONTEXT_TOKENS)
        return self._timed([(table, 1) for table in tables])

    def prefill_s(self, num_tokens: int) -> float:
        """One chunk of `num_tokens` of a new prompt."""
        return self._timed([(self._stage.cache.open(num_tokens), num_tokens)])

    def _timed(self, takes: list[tuple[KvTable, int]]) -> float:
        layout = lay_out(takes)
        inputs = self._inputs(layout)
        try:
            return self._clock.median_s(lambda: self._stage.forward(layout, inputs, []))
        finally:
            for table, _ in takes:
                self._stage.cache.close(table)

    def _inputs(self, layout: StepLayout) -> Tensor:
        if self._stage.is_first:
            return torch.ones(layout.num_rows, dtype=torch.int64)
        return torch.randn(layout.num_rows, self._stage.hidden_size, dtype=torch.float32).to(self._stage.dtype)


def _room_bytes(cut: CutModel, dtype: torch.dtype, device: Device, num_sessions: int) -> int:
    """For so many sessions with CONTEXT_TOKENS each, and a prompt."""
    is_recurrent = adopt_mixers(cut.own_layers)
    shapes, state_shapes = probe_shapes(cut, dtype, device)
    token_bytes = sum(shape.num_elements for shape in shapes) * dtype.itemsize + state_token_bytes(state_shapes)
    session_tokens = MIN_STATEFUL_TOKENS if is_recurrent else CONTEXT_TOKENS + BLOCK_TOKENS
    return (num_sessions * session_tokens + PROMPT_TOKENS) * token_bytes


def head_s(cut: CutModel, dtype: torch.dtype, device: Device, clock: StepClock) -> float:
    """Final norm, lm_head and greedy sampling for one token, of a cut without layers."""
    hidden = torch.randn(1, cut.architecture.hidden_size, dtype=torch.float32).to(device.torch_device, dtype)
    position = torch.zeros(1, dtype=torch.int64, device=device.torch_device)

    def step() -> None:
        sample(run_cut(cut, _NoAttention(), hidden, position, [0]), [(Sampling(), 0)])

    return clock.median_s(step)


def random_cut(
    architecture: Architecture, start: int, stop: int, dtype: torch.dtype, device: Device,
    quantisation: Quantisation | None = None,
) -> CutModel:  # fmt: skip
    """Layers [start, stop) with random weights, loaded as if from a checkpoint; packed ones layer by layer."""
    pattern = torch.randn(PATTERN_LENGTH, generator=torch.Generator().manual_seed(0)) * 0.02
    pattern = pattern.to(device.torch_device, dtype)

    def cut(first: int, last: int) -> CutModel:
        shapes = meta_cut(architecture, first, last).model.state_dict()
        tensors = {name: _RandomTensor(tuple(meta.shape), pattern) for name, meta in shapes.items()}
        return materialise(cut_class(architecture, first, last), architecture, tensors, dtype, device)

    if quantisation is None:
        return cut(start, stop)
    if start == stop:
        return pack_cut(cut(start, stop), quantisation)
    pieces = [pack_cut(cut(index, index + 1), quantisation) for index in range(start, stop)]
    return assemble(meta_cut(architecture, start, stop), pieces)


class _RandomTensor:
    def __init__(self, shape: tuple[int, ...], pattern: Tensor) -> None:
        self._shape = shape
        self._pattern = pattern

    def __getitem__(self, index: Any) -> Tensor:
        tensor = torch.empty(self._shape, dtype=self._pattern.dtype, device=self._pattern.device)
        for piece in torch.split(tensor.flatten(), len(self._pattern)):
            piece.copy_(self._pattern[: len(piece)])
        return tensor


class _NoAttention:
    """Behind a cut without layers nothing attends."""

    def attend(self, call: Any) -> Tensor:
        raise AssertionError("a head has no attention")
