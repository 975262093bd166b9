"""What a slice costs: memory and time. One cost model for planning, routing, the exact optimum and the simulator.

Decode is bound by memory bandwidth, so time is what was measured, not FLOPs: a step over `b` rows takes a layer
`step_s + b * row_s`. All layers are counted in `work`: how many of the benchmarked layer (one from the middle) they
are worth. Memory, in bytes; time, in seconds; rates, in tokens per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

from coordinator.scheduler.state import ITEM_BYTES, Device, Load, ModelFacts
from protocol.quantisation import NOTHING, Packed
from protocol.values import MEMORY_FOR_ACTIVATIONS, LayerBenchmark, LayerRange, Variant

MIN_KV_TOKENS = 4096
"""KV room that every slice must leave, so that a stage that holds its layers can also serve somebody."""
PREFILL_CHUNK_TOKENS = 512
"""Prompts pass through the stages in chunks of this size (client/ipc.py, `max_batch_tokens`)."""
MIN_TIME_S = 1e-9


@dataclass(frozen=True, slots=True)
class Bound:
    """The one definition of latency that throughput counts under: tokens of requests that meet both, per second.

    250 ms a token is four tokens a second, about the speed at which people read (Brysbaert 2019: 238 words a minute);
    10 s is the limit of attention (Nielsen 1993, section 5.5)."""

    ttft_s: float = 10.0
    tpot_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Workload:
    """Means over requests. `tokens_per_s` is the wanted rate of generated tokens (demand); None while unknown.

    `num_reserved_tokens` is the KV room a request reserves: prompt and the most that it may answer."""

    num_prompt_tokens: float = 512.0
    num_answer_tokens: float = 256.0
    num_reserved_tokens: float = 1024.0
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class ModelCost:
    """One variant of a model in bytes and work. Make it with `model_cost`, which keeps them."""

    facts: ModelFacts
    variant: Variant

    @property
    def num_layers(self) -> int:
        return self.facts.num_layers

    @cached_property
    def weight_item_bytes(self) -> float:
        bits = self.facts.weight_bits
        return float(ITEM_BYTES[self.variant]) if bits is None else bits / 8

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Bytes of the layers before layer i, for i = 0 ... num_layers; without embedding and head."""
        numels = self.facts.layer_numels
        packed = self.facts.packed_layers or (NOTHING,) * len(numels)
        return tuple(accumulate(map(self._bytes, numels, packed), initial=0.0))

    def _bytes(self, numel: int, packed: Packed) -> float:
        return packed.num_bytes + (numel - packed.numel) * self.weight_item_bytes

    @cached_property
    def work(self) -> tuple[float, ...]:
        """Work of the layers before layer i. No layer is for nothing, as times are divided by it."""
        active = [max(1, n) for n in self.facts.active_numels or self.facts.layer_numels]
        reference = active[len(active) // 2]
        return tuple(accumulate((n / reference for n in active), initial=0.0))

    @cached_property
    def embedding_bytes(self) -> float:
        return self._bytes(self.facts.embedding_numel, self.facts.packed_embedding)

    @cached_property
    def head_bytes(self) -> float:
        return self._bytes(self.facts.head_numel, self.facts.packed_head)

    @cached_property
    def hidden_bytes(self) -> int:
        """One row on the wire between two stages."""
        return self.facts.hidden_size * ITEM_BYTES[self.variant]

    def weight_bytes(self, layers: LayerRange) -> float:
        """Of a stage with these layers, the ends' own parts included."""
        ends = self.embedding_bytes * (layers.start == 0) + self.head_bytes * (layers.stop == self.num_layers)
        return self.weights[layers.stop] - self.weights[layers.start] + ends

    def work_of(self, layers: LayerRange) -> float:
        return self.work[layers.stop] - self.work[layers.start]

    def kv_prefix(self, num_tokens: float) -> tuple[float, ...]:
        """KV bytes of one session of `num_tokens` in the layers before layer i."""
        return _kv_prefix(self, num_tokens)

    def kv_bytes(self, layers: LayerRange, num_tokens: float) -> float:
        """KV bytes of one session of `num_tokens` in these layers."""
        prefix = self.kv_prefix(num_tokens)
        return prefix[layers.stop] - prefix[layers.start]


@lru_cache(maxsize=256)
def model_cost(facts: ModelFacts, variant: Variant) -> ModelCost:
    """The same object for the same model and variant."""
    return ModelCost(facts, variant)


@lru_cache(maxsize=256)
def _kv_prefix(model: ModelCost, num_tokens: float) -> tuple[float, ...]:
    facts = model.facts
    numels = facts.kv_numels or (facts.kv_numel_per_token,) * facts.num_layers
    windows = facts.windows or (None,) * facts.num_layers
    kept = (num_tokens if window is None else min(num_tokens, window) for window in windows)
    item_bytes = ITEM_BYTES[model.variant]
    return tuple(accumulate((n * item_bytes * k for n, k in zip(numels, kept, strict=True)), initial=0.0))


@dataclass(frozen=True, slots=True)
class Speed:
    """A device's measured speed with one model, per unit of work.

    A decode step over b rows takes `step_s + b * row_s`; one prompt token takes `prefill_s`. `head_s` is what the last
    stage adds to each step."""

    step_s: float
    row_s: float
    prefill_s: float
    head_s: float

    def slowed(self, factor: float) -> Speed:
        """As if everything took `factor` times as long."""
        return Speed(self.step_s * factor, self.row_s * factor, self.prefill_s * factor, self.head_s * factor)

    def step_time_s(self, work: float, num_rows: float, *, last: bool) -> float:
        """One decode step."""
        return work * (self.step_s + num_rows * self.row_s) + (self.head_s if last else 0.0)


@lru_cache(maxsize=65536)
def speed_of(benchmark: LayerBenchmark) -> Speed:
    """The straight line through the measured decode times (least squares), never falling with the batch."""
    points = [(float(time.batch_size), time.layer_s) for time in benchmark.decode]
    mean_rows = sum(rows for rows, _ in points) / len(points)
    mean_s = sum(layer_s for _, layer_s in points) / len(points)
    spread = sum((rows - mean_rows) ** 2 for rows, _ in points)
    slope = sum((rows - mean_rows) * (layer_s - mean_s) for rows, layer_s in points) / spread if spread else 0.0
    row_s = min(max(0.0, slope), points[0][1] / points[0][0])
    step_s = max(MIN_TIME_S, mean_s - row_s * mean_rows)
    return Speed(step_s, row_s, max(MIN_TIME_S, benchmark.prefill_layer_s_per_token), benchmark.head_s)


def device_speed(device: Device, manifest_hash: str) -> Speed:
    """As measured at join, corrected by what its live work has shown since."""
    speed = speed_of(device.benchmarks[manifest_hash])
    return speed if device.slowdown == 1.0 else speed.slowed(device.slowdown)


def usable_bytes(device: Device) -> float:
    """Its memory for weights and KV."""
    return device.spec.memory_bytes * (1 - MEMORY_FOR_ACTIVATIONS)


def response_s(
    speed: Speed, work: float, others: Load, *, last: bool, num_others: float = math.inf, trip_s: float = math.inf
) -> float:
    """Mean seconds from a row's arrival at a stage to its departure; inf where the load is more than it can do.

    A stage serves whatever waits in one step, and a row that comes while it is busy waits for half a step on average
    (Bailey 1954, bulk service). `others` is what the other sessions give it to do: a session's row never waits for
    itself (Reiser and Lavenberg 1980, the arrival theorem). If they are `num_others`, no step has more rows; and a row
    spends `trip_s` on its whole way round, so that the less of that is elsewhere the less it finds others under way."""
    free = 1.0 - others.prompt_tokens_per_s * work * speed.prefill_s
    row_s = work * speed.row_s
    first_s = work * speed.step_s + (speed.head_s if last else 0.0) + row_s
    slack = free - others.rows_per_s * row_s
    most_s = (first_s + num_others * row_s) / free if free > 0.0 else math.inf
    step_s = min(first_s / slack if slack > 0.0 else math.inf, most_s)
    if math.isinf(step_s):
        return math.inf
    elsewhere = max(0.0, 1.0 - step_s / trip_s)
    return step_s * (1.0 + elsewhere * min(1.0, others.rows_per_s * step_s) / 2.0)


def prefill_s(stage_s_per_token: Sequence[float], hop_s_per_token: Sequence[float], num_tokens: float) -> float:
    """Seconds for a prompt to pass through all stages in chunks, each chunk as soon as the stage is free for it.

    Latencies of the hops are not part of it."""
    chunk = min(num_tokens, PREFILL_CHUNK_TOKENS)
    num_more = max(0.0, num_tokens / chunk - 1.0) if chunk else 0.0
    each = [*stage_s_per_token, *hop_s_per_token]
    return chunk * (sum(each) + num_more * max(each, default=0.0))


# ---------------------------------------------------------------- what fits


@dataclass(frozen=True, slots=True)
class Place:
    """A device's possible part in a pipeline: how many layers fit, and what its time is made of."""

    device: Device
    max_layers: int
    layer_s: float
    extra_s: float


def place(device: Device, model: ModelFacts, *, first: bool, last: bool) -> Place:
    """What `device` can take of `model` at the given end(s) of a pipeline."""
    cost = model_cost(model, device.spec.variant)
    usable = usable_bytes(device) - cost.embedding_bytes * first - cost.head_bytes * last
    fitting = max(0, int(usable // _layer_bytes(cost)))
    limit = device.max_layers(model.manifest_hash)
    head_s = device.benchmarks[model.manifest_hash].head_s if last else 0.0
    most = min(fitting, model.num_layers if limit is None else limit, model.num_layers)
    return Place(device, most, device.layer_time_s(model.manifest_hash), head_s)


def memory_for(model: ModelFacts, variant: Variant, num_layers: int) -> int:
    """The least memory, in bytes, with which a device can hold that many layers anywhere in a pipeline: with one end's
    own part, or with both if it is all layers.

    The reverse of `place`: for demos and tests that make one machine play several small ones."""
    cost = model_cost(model, variant)
    ends = (cost.embedding_bytes, cost.head_bytes)
    ends_bytes = sum(ends) if num_layers >= model.num_layers else max(ends)
    return math.ceil((ends_bytes + num_layers * _layer_bytes(cost)) / (1 - MEMORY_FOR_ACTIVATIONS)) + 1


def _layer_bytes(cost: ModelCost) -> float:
    """The largest layer's weights and the KV room that it must leave."""
    kv_tokens = min(cost.facts.context_length, MIN_KV_TOKENS)
    kv = cost.kv_prefix(kv_tokens)
    largest_kv = max(stop - start for start, stop in pairwise(kv))
    return max(cost.facts.layer_numels) * cost.weight_item_bytes + largest_kv
