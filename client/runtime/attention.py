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
POOLED_NAME = "decentllm_pooled"
"""Under this name an attention module has its PooledLayer, on devices whose forwards are captured."""
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


class Scoring(Protocol):
    """How a call turns products of queries and keys into weights."""

    @property
    def scaling(self) -> float | None: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def sinks(self) -> Tensor | None: ...


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
    scaling, softcap, sinks = kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("s_aux")
    pooled = getattr(module, POOLED_NAME, None)
    if pooled is not None:  # nothing else of Python's state is read: a compiled layer comes by here
        return pooled(query, key, value, scaling, softcap, sinks), None
    call = AttentionCall(module.layer_idx, query, key, value, scaling, softcap, sinks)
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
        self.modules: dict[int, Any] = {}
        """Each layer's attention module."""
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
        self.modules[module.layer_idx] = module
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
    """One step's rows over the pool, one view of it per session: what a CPU is fastest with.

    `slots` [rows] is where each row's key and value go."""

    def __init__(self, cache: KvCache, spans: Sequence[Span], slots: Tensor) -> None:
        self._cache = cache
        self._slots = slots
        self._masks: dict[MaskKey, Tensor | None] = {}
        self._spans = spans

    def attend(self, call: AttentionCall) -> Tensor:
        layer = self._cache.layers[call.layer]
        layer.write(self._slots, call.key, call.value)
        if len(self._spans) == 1:
            return self._attend_span(self._spans[0], call, layer).transpose(1, 2)
        parts = [self._attend_span(span, call, layer)[0].transpose(0, 1) for span in self._spans]
        return torch.cat(parts).unsqueeze(0)

    def _attend_span(self, span: Span, call: AttentionCall, layer: LayerCache) -> Tensor:
        """[1, heads, rows, value dim]"""
        start = layer.shape.first_visible(span.position)
        keys, values = layer.read(span.table, start, span.stop)
        query = call.query[:, :, span.first_row : span.first_row + span.num_rows]
        return attend(query, keys, values, self._mask(span, start, layer.shape), call)

    def _mask(self, span: Span, start: int, shape: LayerShape) -> Tensor | None:
        """[rows, keys from `start` on] bool, or None if every row sees every key."""
        if span.num_rows == 1:
            return None
        key = (span.first_row, start, shape.window, shape.chunk)
        if key not in self._masks:
            rows = torch.arange(span.position, span.stop, device=self._slots.device)[:, None]
            keys = torch.arange(start, span.stop, device=self._slots.device)
            self._masks[key] = visible(rows, keys, shape.window, shape.chunk)
        return self._masks[key]


def visible(rows: Tensor, keys: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """Which of the key positions the row positions attend to, broadcast."""
    mask = keys <= rows
    if window is not None:
        mask = mask & (keys > rows - window)
    if chunk is not None:
        mask = mask & (keys // chunk == rows // chunk)
    return mask


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, call: Scoring) -> Tensor:
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


def _attend_scores(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, call: Scoring) -> Tensor:
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
