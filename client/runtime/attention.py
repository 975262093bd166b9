"""Attention over the paged pool for a ragged batch, as a function that transformers' models call.

Registered once in transformers' AttentionInterface. A custom name costs no mask: `masking_utils` returns None for it.
The batch of the forward in progress is passed aside, not by keyword: StableLM and Nemotron hand no keywords down.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

from client.runtime.errors import UnsupportedArchitectureError
from client.runtime.kv_cache import KvCache, KvTable, LayerCache, LayerShape

INTERFACE_NAME = "decentllm_ragged"
MaskKey = tuple[int, int, int | None, int | None]


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer asks for. query [1, heads, rows, dim], key and value [1, kv heads, rows, dim].

    `softcap` bounds scores by tanh (Gemma 2); `sinks` [heads] is one more score per head without a value (GPT-OSS)."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one session in a step: `num_rows` from `first_row` on, the first at `position`."""

    first_row: int
    num_rows: int
    position: int
    table: KvTable

    @property
    def stop(self) -> int:
        """One past the last position: as many keys are there."""
        return self.position + self.num_rows


class Attender(Protocol):
    """What stands behind the attention function during a forward."""

    def attend(self, call: AttentionCall) -> Tensor:
        """[1, rows, heads, value dim]"""


_current = threading.local()


@contextmanager
def attending(attender: Attender) -> Iterator[None]:
    """During this block, forwards in this thread attend through `attender`."""
    _current.attender = attender
    try:
        yield
    finally:
        del _current.attender


def ragged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions. Probing has shown that a model passes no mask here."""
    call = AttentionCall(
        module.layer_idx, query, key, value, kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("s_aux")
    )
    attender = _current.attender
    if isinstance(attender, ShapeProbe):
        attender.look(module, attention_mask, kwargs)
    return attender.attend(call), None


AttentionInterface.register(INTERFACE_NAME, ragged_attention)


class ShapeProbe:
    """Records what each layer would cache. Its attention is zero."""

    def __init__(self, model_type: str) -> None:
        self._model_type = model_type
        self._reach: dict[int, tuple[int | None, int | None]] = {}
        self._shapes: dict[int, LayerShape] = {}

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        return tuple(self._shapes[layer] for layer in sorted(self._shapes))

    def look(self, module: Any, attention_mask: Any, kwargs: Mapping[str, Any]) -> None:
        """Raises UnsupportedArchitectureError if the layer attends in a way that the pool does not know."""
        if attention_mask is not None:
            raise UnsupportedArchitectureError(self._model_type, "they build attention masks of their own")
        if module.layer_idx in self._reach:
            raise UnsupportedArchitectureError(self._model_type, "a layer attends more than once")
        self._reach[module.layer_idx] = _reach(module, kwargs.get("sliding_window"))

    def attend(self, call: AttentionCall) -> Tensor:
        _, num_kv_heads, num_rows, key_dim = call.key.shape
        value_dim = call.value.shape[-1]
        shape = LayerShape(call.layer, num_kv_heads, key_dim, value_dim, *self._reach[call.layer])
        self._shapes[call.layer] = shape
        return call.value.new_zeros(1, num_rows, call.query.shape[1], value_dim)


def _reach(module: Any, sliding_window: int | None) -> tuple[int | None, int | None]:
    """(window, chunk) of a layer. Some families say it only through the mask (Qwen2-MoE, Llama 4): the config knows."""
    config = module.config
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else None
    if sliding_window is None and kind == "sliding_attention":
        sliding_window = config.sliding_window
    return sliding_window, config.attention_chunk_size if kind == "chunked_attention" else None


class RaggedBatch:
    """One step's rows over the pool: single rows of many sessions first, then chunks of prompts.

    `slots` [rows] is where each row's key and value go. With `groups_decode`, all single rows are attended to in one
    call over gathered, padded keys: what an accelerator wants. A CPU is faster with one view per session."""

    def __init__(self, cache: KvCache, spans: Sequence[Span], slots: Tensor, groups_decode: bool) -> None:
        self._cache = cache
        self._slots = slots
        self._masks: dict[MaskKey, Tensor | None] = {}
        num_single = next((i for i, span in enumerate(spans) if span.num_rows > 1), len(spans))
        self._grouped = _DecodeGroup(spans[:num_single], slots.device) if groups_decode and num_single > 1 else None
        self._spans = spans[num_single:] if self._grouped else spans

    def attend(self, call: AttentionCall) -> Tensor:
        layer = self._cache.layers[call.layer]
        layer.write(self._slots, call.key, call.value)
        if len(self._spans) == 1 and self._grouped is None:
            return self._attend_span(self._spans[0], call, layer).transpose(1, 2)
        parts = [] if self._grouped is None else [self._grouped.attend(call, layer)]
        parts += [self._attend_span(span, call, layer)[0].transpose(0, 1) for span in self._spans]
        return torch.cat(parts).unsqueeze(0)

    def _attend_span(self, span: Span, call: AttentionCall, layer: LayerCache) -> Tensor:
        """[1, heads, rows, value dim]"""
        start = layer.shape.first_visible(span.position)
        keys, values = layer.read(span.table, start, span.stop)
        query = call.query[:, :, span.first_row : span.first_row + span.num_rows]
        return _attend(query, keys, values, self._mask(span, start, layer.shape), call)

    def _mask(self, span: Span, start: int, shape: LayerShape) -> Tensor | None:
        """[rows, keys from `start` on] bool, or None if every row sees every key."""
        if span.num_rows == 1:
            return None
        key = (span.first_row, start, shape.window, shape.chunk)
        if key not in self._masks:
            rows = torch.arange(span.position, span.stop, device=self._slots.device)[:, None]
            self._masks[key] = _visible(rows, torch.arange(start, span.stop, device=self._slots.device), shape)
        return self._masks[key]


class _DecodeGroup:
    """The single rows of a step, padded to the longest context."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        longest = max(span.stop for span in spans)
        table = torch.empty(len(spans), longest, dtype=torch.int64)
        for row, span in zip(table, spans, strict=True):
            row[: span.stop] = span.table.slots[: span.stop]
            # Padding repeats the session's own first slot: other slots may hold NaN, which a mask does not stop.
            row[span.stop :] = span.table.slots[0]
        self._slots = table.to(device)
        self._rows = torch.tensor([[span.position] for span in spans], device=device)
        self._keys = torch.arange(longest, device=device)
        self._masks: dict[tuple[int | None, int | None], Tensor] = {}

    def attend(self, call: AttentionCall, layer: LayerCache) -> Tensor:
        """[rows, heads, value dim]"""
        reach = (layer.shape.window, layer.shape.chunk)
        if reach not in self._masks:
            self._masks[reach] = _visible(self._rows, self._keys, layer.shape)[:, None, None]
        keys, values = layer.gather(self._slots)
        query = call.query[0, :, : len(self._slots)].transpose(0, 1).unsqueeze(2)
        return _attend(query, keys, values, self._masks[reach], call).squeeze(2)


def _visible(rows: Tensor, keys: Tensor, shape: LayerShape) -> Tensor:
    """Which of the key positions the row positions attend to, broadcast."""
    mask = keys <= rows
    if shape.window is not None:
        mask = mask & (keys > rows - shape.window)
    if shape.chunk is not None:
        mask = mask & (keys // shape.chunk == rows // shape.chunk)
    return mask


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """query [n, heads, rows, dim] over keys, values [n, kv heads, positions, dim]: [n, heads, rows, value dim]."""
    if call.softcap is None and call.sinks is None:
        return _attend_fused(query, keys, values, mask, call.scaling)
    return _attend_scores(query, keys, values, mask, call)


def _attend_fused(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    batch, num_heads, num_rows, dim = query.shape
    group = num_heads // keys.shape[1]
    if num_rows == 1 and group > 1:  # the group's heads become rows: no repeated keys
        folded = query.reshape(batch, keys.shape[1], group, dim)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
        return out.reshape(batch, num_heads, 1, values.shape[-1])
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)


def _attend_scores(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """For what the fused kernels lack: soft-capped scores and sinks. Softmax in float32, as the models' own code."""
    num_heads, num_rows, dim = query.shape[1:]
    group = num_heads // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = (query @ keys.transpose(2, 3)).float() * (dim**-0.5 if call.scaling is None else call.scaling)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if call.sinks is not None:
        sinks = call.sinks.float().view(1, num_heads, 1, 1).expand(len(query), num_heads, num_rows, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[2]].to(query.dtype)
    return weights @ values
