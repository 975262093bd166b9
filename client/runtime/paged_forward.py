"""A stage's forward on a device that graphs are captured on: decode steps replayed, everything else step by step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from client.runtime.attention import POOLED_NAME, Span
from client.runtime.batch import StepLayout, lay_out
from client.runtime.block_tables import BlockTables
from client.runtime.compiled_layers import CompiledLayers, has_triton
from client.runtime.cut import CutModel, call_model
from client.runtime.decode_graphs import (
    BUCKETS,
    LOAD_ORDER,
    NUM_CERTAIN,
    CudaRecorder,
    DecodeGraphs,
    Recorder,
    StepBuffers,
    StepInputs,
)
from client.runtime.errors import KvFullError, first_line
from client.runtime.few_rows import adopt
from client.runtime.kv_cache import KvCache, LayerShape
from client.runtime.mixers import mixing
from client.runtime.packed_trial import adopt_experts, adopt_packed
from client.runtime.paged_steps import DecodeAttention, DecodeStep, MixedStep, gather_decode
from client.runtime.pool_call import DecodeRows, PoolCall, PooledLayer, stepping
from client.runtime.state_pool import StatefulCache, StateStep, all_go_on, mixing_over

_logger = logging.getLogger(__name__)

PREPARE_LIMIT_S = 45.0
"""For compiling and capturing at load; what is not done by then runs as it is."""
MIN_COMPILED_ROWS = 64
"""Steps of fewer rows than this, with chunks of prompts among them, are not worth a look at compiled code's guards."""
TRIAL_ROWS, NUM_TRIALS = 512, 6
TOLERANCE = 0.02


class PagedForward:
    """The forward of `cut` over `cache`, whose device keeps block tables. `modules`: each layer's attention module."""

    def __init__(
        self, cut: CutModel, cache: KvCache, modules: Mapping[int, Any], recorder: Recorder, decode: DecodeAttention
    ) -> None:
        assert cache.tables is not None
        self._cut = cut
        self._cache = cache
        self._tables: BlockTables = cache.tables
        self._device = cache.device.torch_device
        self._decode = decode
        self._compiled_mixed: CompiledLayers | None = None
        self._recorder = recorder
        for layer, module in modules.items():
            setattr(module, POOLED_NAME, PooledLayer(cache.layers[layer]))
        hidden_size = None if cut.is_first else cut.architecture.hidden_size
        self._states = cache.states if isinstance(cache, StatefulCache) else None
        trash_place = None if self._states is None else self._states.trash_place
        buffers = StepBuffers(BUCKETS[-1], self._tables, hidden_size, cache.dtype, self._device, trash_place)
        self._graphs = DecodeGraphs(self._captured, buffers, self._tables, recorder, decode is gather_decode)

    @classmethod
    def open(
        cls, cut: CutModel, cache: KvCache, modules: Mapping[int, Any], limit_s: float = PREPARE_LIMIT_S,
        sizes: Sequence[int] = LOAD_ORDER,
    ) -> PagedForward:  # fmt: skip
        """With what is fastest on this device, found out by trying for about `limit_s`."""
        device = cache.device.torch_device
        decode = choose_decode(cache.shapes, cache.dtype, device)
        recorder = CudaRecorder(device)
        made = cls(cut, cache, modules, recorder, decode)
        if decode is not gather_decode:
            adopt_few_rows(cut, recorder)
        may_compile = decode is not gather_decode and made._states is None  # mixers are called from outside
        made.prepare(sizes, may_compile, limit_s)
        return made

    @torch.no_grad()
    def prepare(self, sizes: Sequence[int], may_compile: bool, limit_s: float) -> None:
        """Capture decode steps of these sizes, and compile what is faster compiled."""
        begin = perf_counter()
        layers = self._cut.own_layers if may_compile else []
        variants = [CompiledLayers(layers, dynamic=False).active] if layers else []
        self._graphs.prepare(sizes[:NUM_CERTAIN], variants, begin + limit_s)
        if layers and perf_counter() < begin + limit_s:
            self._try_compiled_mixed(CompiledLayers(layers, dynamic=True))
        self._graphs.prepare(sizes[NUM_CERTAIN:], variants, begin + limit_s)
        _logger.info("captured and compiled in %.1f s", perf_counter() - begin)

    @torch.no_grad()
    def forward(self, layout: StepLayout, inputs: Tensor, logit_rows: list[int]) -> Tensor:
        """As Stage.forward. What comes out may be overwritten by the next step."""
        is_captured = self._states is None or all_go_on(layout.spans)
        output = self._graphs.run(layout, inputs) if is_captured else None
        if output is None:
            return self._mixed(layout, inputs, logit_rows)
        if self._cut.is_last and logit_rows != list(range(layout.num_rows)):
            return output[logit_rows]
        return output

    def _captured(self, inputs: StepInputs, rows: DecodeRows) -> Tensor:
        states: AbstractContextManager[None] = nullcontext()
        if self._states is not None:
            states = mixing(StateStep.at(self._states, inputs.read_from, inputs.write_to))
        with stepping(DecodeStep(rows, self._decode)), states:
            return call_model(self._cut, inputs.values, inputs.positions, None)

    def _mixed(self, layout: StepLayout, inputs: Tensor, logit_rows: list[int]) -> Tensor:
        device = self._device
        num_single = next((i for i, span in enumerate(layout.spans) if span.num_rows > 1), len(layout.spans))
        rows = self._decode_rows(layout.spans[:num_single]) if num_single else None
        step = MixedStep(rows, layout.spans[num_single:], layout.slots.to(device), self._decode)
        keep = torch.tensor(logit_rows, dtype=torch.int64, device=device)
        with stepping(step), mixing_over(self._cache, layout.spans), self._layers(layout.num_rows):
            return call_model(self._cut, inputs.to(device), layout.positions.to(device), keep)

    def _layers(self, num_rows: int) -> AbstractContextManager[None]:
        is_compiled = self._compiled_mixed is not None and num_rows >= MIN_COMPILED_ROWS
        return self._compiled_mixed.active() if is_compiled and self._compiled_mixed else nullcontext()

    def _decode_rows(self, spans: Sequence[Span]) -> DecodeRows:
        numbers = torch.tensor([[span.table.row for span in spans], [span.position for span in spans]])
        table_rows, positions = numbers.to(self._device)
        return DecodeRows(self._tables.blocks, table_rows, positions, max(span.stop for span in spans))

    def _try_compiled_mixed(self, compiled: CompiledLayers) -> None:
        """Take compiled layers for chunks of prompts, if they work and are faster."""
        try:
            plain_s = self._trial_s()
            self._compiled_mixed = compiled
            compiled_s = self._trial_s()
        except KvFullError:
            self._compiled_mixed = None
        except Exception as error:  # noqa: BLE001 - compilers raise anything; the layers run as they are
            self._compiled_mixed = None
            _logger.warning("layers are not compiled for prompts: %s", first_line(error))
        else:
            self._compiled_mixed = compiled if compiled_s < plain_s else None
            _logger.info("prompts: a chunk takes %.2f ms, compiled %.2f ms", plain_s * 1e3, compiled_s * 1e3)

    def _trial_s(self) -> float:
        """How long a chunk of a prompt takes, once the code for it is there."""
        table = self._cache.open(TRIAL_ROWS)
        try:
            layout = lay_out([(table, TRIAL_ROWS)])
            inputs = torch.zeros(TRIAL_ROWS, dtype=torch.int64)
            if not self._cut.is_first:
                inputs = torch.zeros(TRIAL_ROWS, self._cut.architecture.hidden_size, dtype=self._cache.dtype)
            times = []
            for _ in range(NUM_TRIALS):
                begin = perf_counter()
                self._mixed(layout, inputs, [])
                self._recorder.synchronize()
                times.append(perf_counter() - begin)
            return min(times)
        finally:
            self._cache.close(table)


@torch.no_grad()
def adopt_few_rows(cut: CutModel, recorder: Recorder) -> None:
    """Own products of few rows in the layers and the head, where they are faster."""
    from client.runtime.few_rows_kernels import multiply_few_rows
    from client.runtime.packed_expert_kernels import multiply_blocks, multiply_pairs
    from client.runtime.packed_kernels import multiply_packed

    head = [cut.model] if cut.is_last else []
    num_adopted = adopt([*cut.own_layers, *head], multiply_few_rows, recorder)
    num_adopted += adopt_packed([*cut.own_layers, *head], multiply_packed, recorder)
    num_adopted += adopt_experts(cut.own_layers, multiply_pairs, multiply_blocks, recorder)
    _logger.info("own products of few rows for %d shapes of weights", num_adopted)


def choose_decode(shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> DecodeAttention:
    """The Triton kernel where it runs and agrees with the plain formula for every shape of layer, else the latter."""
    if not has_triton():
        _logger.warning("Triton is not installed: decoding gathers keys, which is slower with long contexts")
        return gather_decode
    try:
        from client.runtime.paged_decode import triton_decode

        for shape in {(s.num_kv_heads, s.key_dim, s.value_dim): s for s in shapes}.values():
            _check_decode(triton_decode, shape, dtype, device)
    except Exception as error:  # noqa: BLE001 - no C compiler, a card that is too old, a wrong result: all the same
        _logger.warning("Triton does not work here, decoding gathers keys: %s", first_line(error))
        return gather_decode
    return triton_decode


def _check_decode(decode: DecodeAttention, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError if `decode` disagrees with gathered keys."""
    pools = torch.randn(2, 64, shape.num_kv_heads, max(shape.key_dim, shape.value_dim), dtype=dtype, device=device)
    keys, values = pools[0, ..., : shape.key_dim].contiguous(), pools[1, ..., : shape.value_dim].contiguous()
    query = torch.randn(1, 2 * shape.num_kv_heads, 2, shape.key_dim, dtype=dtype, device=device)
    rows = DecodeRows(
        torch.tensor([[2, 0], [3, 1]], dtype=torch.int32, device=device), torch.arange(2, device=device),
        torch.tensor([5, 27], device=device), 32,
    )  # fmt: skip
    key, value = query[:, : shape.num_kv_heads], values[None, :2].transpose(1, 2).clone()
    call = PoolCall(query, key, value, keys, values, None, shape.key_dim**-0.5, None, None, None)
    found, wanted = decode(call, rows).float(), gather_decode(call, rows).float()
    error = float((found - wanted).norm() / wanted.norm())
    if not error < TOLERANCE:
        raise ValueError(f"its result is off by {error:.3f}")
