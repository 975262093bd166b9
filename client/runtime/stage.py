"""Layers [start, stop) of a model on a device, with their KV pool: rows in, hidden states or logits out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor

from client.pace import Pace
from client.runtime.attention import Attender, RaggedBatch, ShapeProbe, attending
from client.runtime.batch import StepLayout
from client.runtime.cut import CutModel, call_model
from client.runtime.device import Device
from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.fused_linear import Group, fuse, watching
from client.runtime.kv_cache import KvCache, LayerShape
from client.runtime.mixers import StateProbe, StateShape, adopt_mixers, mixing
from client.runtime.paged_forward import PagedForward
from client.runtime.state_pool import StatefulCache, mixing_over

_logger = logging.getLogger(__name__)
OpenPaged = Callable[[CutModel, KvCache, Mapping[int, Any]], PagedForward]
"""(model, its pool, each layer's attention module): the forward of a device that captures graphs."""


class Stage:
    """A cut model with its KV pool. `dtype` is that of hidden states in and out.

    What `forward` returns is valid until the next one."""

    def __init__(
        self, cut: CutModel, max_kv_bytes: int, dtype: torch.dtype, device: Device,
        open_paged: OpenPaged | None = None,
    ) -> None:  # fmt: skip
        """`open_paged` makes the forward of decode steps that are captured; an accelerator has one in any case.

        Raises UnsupportedArchitectureError, if the layers attend by themselves, or DeviceMemoryError."""
        self.cut = cut
        self.dtype = dtype
        self.device = device
        is_recurrent = adopt_mixers(cut.own_layers)
        if open_paged is None and not device.is_cpu:
            open_paged = PagedForward.open
        probe = ShapeProbe(cut.architecture.model_type)
        with watching(cut.own_layers if open_paged else []) as groups:
            shapes, state_shapes = probe_shapes(cut, dtype, device, probe)
        _fuse_all(groups)
        room_bytes = device.kv_bytes(max_kv_bytes)
        if is_recurrent:
            self.cache: KvCache = StatefulCache(shapes, state_shapes, room_bytes, dtype, device, open_paged is not None)
        else:
            self.cache = KvCache(shapes, room_bytes, dtype, device, keeps_tables=open_paged is not None)
        self._paged = open_paged(cut, self.cache, probe.modules) if open_paged else None

    @property
    def is_first(self) -> bool:
        return self.cut.is_first

    @property
    def is_last(self) -> bool:
        return self.cut.is_last

    @property
    def hidden_size(self) -> int:
        return self.cut.architecture.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.cut.architecture.vocab_size

    @property
    def can_truncate(self) -> bool:
        """Whether a session can keep its first rows and forget the others. A recurrent state can only take back the
        latest step: of a session that is to keep other rows than that, nothing is kept, and this is said then."""
        return True

    @property
    def has_prefix_cache(self) -> bool:
        """Whether a session can begin with rows that another one has computed: what each layer keeps of a position must
        lie there by itself. Windows are masks over such a pool; a state of all positions could not be divided."""
        return not isinstance(self.cache, StatefulCache)

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.cut.model.parameters())

    def forward(self, layout: StepLayout, inputs: Tensor, logit_rows: list[int]) -> Tensor:
        """One step. `inputs`: token ids [rows] on the first stage, else hidden states [rows, hidden size].

        Returns hidden states [rows, hidden size], or on the last stage logits [len(logit_rows), vocabulary].
        Writes the rows' keys and values, but leaves each table's length to the caller."""
        begin_s = perf_counter()
        if self._paged is not None:
            output = self._paged.forward(layout, inputs, logit_rows)
        else:
            output = self._forward_ragged(layout, inputs, logit_rows)
        if self.device.pace is not None:
            self._keep_pace(self.device.pace, layout, begin_s)
        return output

    def _forward_ragged(self, layout: StepLayout, inputs: Tensor, logit_rows: list[int]) -> Tensor:
        device = self.device.torch_device
        batch = RaggedBatch(self.cache, layout.spans, layout.slots.to(device))
        with mixing_over(self.cache, layout.spans):
            return run_cut(self.cut, batch, inputs.to(device), layout.positions.to(device), logit_rows)

    def _keep_pace(self, pace: Pace, layout: StepLayout, begin_s: float) -> None:
        """Wait for what slower hardware would still need; a forward that took longer by itself is not waited for."""
        num_decode = sum(span.num_rows == 1 for span in layout.spans)
        least_s = pace.least_s(self.cut.stop - self.cut.start, num_decode, layout.num_rows - num_decode)
        self.device.synchronize()
        sleep(max(0.0, begin_s + least_s - perf_counter()))


@torch.inference_mode()
def run_cut(cut: CutModel, attender: Attender, inputs: Tensor, positions: Tensor, logit_rows: list[int]) -> Tensor:
    """The model's own forward over ragged rows, attending through `attender`."""
    with attending(attender):
        rows = torch.tensor(logit_rows, dtype=torch.int64, device=inputs.device)
        return call_model(cut, inputs, positions, rows)


def _fuse_all(groups: Sequence[Group]) -> None:
    """As far as memory allows: a group needs that of its weights once more for a moment."""
    for group in groups:
        try:
            fuse(group)
        except torch.OutOfMemoryError:
            _logger.warning("projections are not fused: the device's memory is nearly full")
            return


def probe_shapes(
    cut: CutModel, dtype: torch.dtype, device: Device, probe: ShapeProbe | None = None
) -> tuple[tuple[LayerShape, ...], tuple[StateShape, ...]]:
    """What each layer of the cut caches per token, and what its mixer keeps per session, seen in a forward of one
    token. Mixers have been adopted before.

    Raises UnsupportedArchitectureError if a layer came by neither, or attended with a mask."""
    probe = probe or ShapeProbe(cut.architecture.model_type)
    if cut.is_first:
        inputs = torch.zeros(1, dtype=torch.int64, device=device.torch_device)
    else:
        inputs = torch.zeros(1, cut.architecture.hidden_size, dtype=dtype, device=device.torch_device)
    state_probe = StateProbe(cut.architecture.model_type)
    with mixing(state_probe):
        run_cut(cut, probe, inputs, torch.zeros(1, dtype=torch.int64, device=device.torch_device), [0])
    found = {shape.layer for shape in probe.shapes} | {shape.layer for shape in state_probe.shapes}
    if found != set(range(cut.start, cut.stop)):
        raise UnsupportedArchitectureError(
            cut.architecture.model_type, "some layers keep something other than a KV cache"
        )
    return probe.shapes, state_probe.shapes
