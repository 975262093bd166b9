"""Models of the sizes that pools serve, with the shapes of their published configurations.

Numbers of elements per layer follow from the shapes; bits per weight are those of a usual 4-bit quantisation with its
scales (4.5), of MXFP4 (4.25: OCP microscaling specification 1.0, blocks of 32 with one 8-bit scale), or 16.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from coordinator.scheduler.state import ModelFacts

FOUR_BITS = 4.5
MXFP4_BITS = 4.25


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model, and what the scheduler's facts do not say: how many more weights each further row of a step reads.

    In a mixture of experts rows choose different experts, so that a step over more rows reads more of them."""

    facts: ModelFacts
    row_numels: tuple[int, ...]
    """Per layer, the mean over steps of 1 to 16 rows."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a layer, `numel` weights each, of which a token chooses `num_chosen`."""

    num: int
    num_chosen: int
    numel: int

    @property
    def row_numel(self) -> int:
        """Weights that each row after the first adds to a step, with independent choices, up to 16 rows."""
        share = self.num_chosen / self.num
        distinct = self.num * (1 - (1 - share) ** _ROWS)
        return round((distinct - self.num_chosen) / (_ROWS - 1) * self.numel)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: weights that every token reads, experts if it has them, KV elements and window."""

    always_numel: int
    kv_numel: int
    experts: Experts | None = None
    window: int | None = None

    @property
    def numel(self) -> int:
        return self.always_numel + (self.experts.num * self.experts.numel if self.experts else 0)

    @property
    def active_numel(self) -> int:
        return self.always_numel + (self.experts.num_chosen * self.experts.numel if self.experts else 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a published configuration says about attention and vocabulary."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    context: int

    @property
    def attention_numel(self) -> int:
        """Of grouped-query attention: queries and output, keys and values (Ainslie et al. 2023)."""
        return 2 * self.hidden * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def kv_numel(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim

    def mlp_numel(self, intermediate: int) -> int:
        """A gated MLP: up, gate and down."""
        return 3 * self.hidden * intermediate

    def dense(self, intermediate: int, window: int | None = None) -> Layer:
        return Layer(self.attention_numel + self.mlp_numel(intermediate), self.kv_numel, window=window)


def make_model(name: str, shape: Shape, layers: tuple[Layer, ...], bits: float | None) -> SimModel:
    """The facts as the coordinator would have them from the manifest; the name stands for the weights' digest."""
    facts = ModelFacts(
        name=name,
        manifest_hash=hashlib.sha256(name.encode()).hexdigest(),
        context_length=shape.context,
        layer_numels=tuple(layer.numel for layer in layers),
        embedding_numel=shape.hidden * shape.vocabulary,
        head_numel=shape.hidden * shape.vocabulary,
        kv_numel_per_token=layers[len(layers) // 2].kv_numel,
        hidden_size=shape.hidden,
        active_numels=tuple(layer.active_numel for layer in layers),
        kv_numels=tuple(layer.kv_numel for layer in layers),
        windows=tuple(layer.window for layer in layers),
        weight_bits=bits,
    )
    return SimModel(facts, tuple(layer.experts.row_numel if layer.experts else 0 for layer in layers))


_ROWS = 16


def _dense(name: str, shape: Shape, num_layers: int, intermediate: int, bits: float | None) -> SimModel:
    return make_model(name, shape, (shape.dense(intermediate),) * num_layers, bits)


def _qwen3_30b() -> SimModel:
    """Qwen3-30B-A3B: 128 experts, 8 chosen (Qwen3 technical report, table 2)."""
    shape = Shape(2048, 32, 4, 128, 151_936, 32_768)
    layer = Layer(shape.attention_numel, shape.kv_numel, Experts(128, 8, shape.mlp_numel(768)))
    return make_model("qwen3-30b-a3b-4bit", shape, (layer,) * 48, FOUR_BITS)


def _gpt_oss_120b() -> SimModel:
    """gpt-oss-120b: 128 experts, 4 chosen, every second layer sees 128 tokens (model card, section 2)."""
    shape = Shape(2880, 64, 8, 64, 201_088, 131_072)
    experts = Experts(128, 4, shape.mlp_numel(2880))
    pair = tuple(Layer(shape.attention_numel, shape.kv_numel, experts, window) for window in (128, None))
    return make_model("gpt-oss-120b-mxfp4", shape, pair * 18, MXFP4_BITS)


def _qwen3_235b() -> SimModel:
    """Qwen3-235B-A22B (Qwen3 technical report, table 2)."""
    shape = Shape(4096, 64, 4, 128, 151_936, 32_768)
    layer = Layer(shape.attention_numel, shape.kv_numel, Experts(128, 8, shape.mlp_numel(1536)))
    return make_model("qwen3-235b-a22b-4bit", shape, (layer,) * 94, FOUR_BITS)


def _deepseek_v2() -> SimModel:
    """DeepSeek-V2 236B: multi-head latent attention, one dense layer first, two shared experts (report, section 3)."""
    shape = Shape(5120, 128, 128, 128, 102_400, 131_072)
    latent, rope, query_rank = 512, 64, 1536
    attention = 5120 * query_rank + query_rank * 128 * (128 + rope)  # queries, by way of their own low rank
    attention += 5120 * (latent + rope) + latent * 128 * (128 + 128) + 128 * 128 * 5120  # latent, keys, values, output
    first = Layer(attention + shape.mlp_numel(12_288), latent + rope)
    expert = shape.mlp_numel(1536)
    other = Layer(attention + 2 * expert, latent + rope, Experts(160, 6, expert))
    return make_model("deepseek-v2-236b-4bit", shape, (first, *(other,) * 59), FOUR_BITS)


def _llama4_maverick() -> SimModel:
    """Llama 4 Maverick 400B: every second layer is a mixture of 128 experts with one shared (published config)."""
    shape = Shape(5120, 40, 8, 128, 202_048, 131_072)
    expert = shape.mlp_numel(8192)
    mixture = Layer(shape.attention_numel + expert, shape.kv_numel, Experts(128, 1, expert))
    return make_model("llama4-maverick-400b-4bit", shape, (shape.dense(16_384), mixture) * 24, FOUR_BITS)


_LLAMA_8B = Shape(4096, 32, 8, 128, 128_256, 131_072)
_QWEN_32B = Shape(5120, 64, 8, 128, 151_936, 32_768)
_LLAMA_70B = Shape(8192, 64, 8, 128, 128_256, 131_072)
_LLAMA_405B = Shape(16_384, 128, 8, 128, 128_256, 131_072)

MODELS: dict[str, SimModel] = {
    model.facts.name: model
    for model in (
        _dense("llama3-8b", _LLAMA_8B, 32, 14_336, None),
        _dense("llama3-8b-4bit", _LLAMA_8B, 32, 14_336, FOUR_BITS),
        _dense("qwen3-32b", _QWEN_32B, 64, 25_600, None),
        _dense("qwen3-32b-4bit", _QWEN_32B, 64, 25_600, FOUR_BITS),
        _dense("llama3-70b", _LLAMA_70B, 80, 28_672, None),
        _dense("llama3-70b-4bit", _LLAMA_70B, 80, 28_672, FOUR_BITS),
        _dense("llama3-405b-4bit", _LLAMA_405B, 126, 53_248, FOUR_BITS),
        _qwen3_30b(),
        _gpt_oss_120b(),
        _qwen3_235b(),
        _deepseek_v2(),
        _llama4_maverick(),
    )
}
