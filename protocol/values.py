"""Value types that several messages share. All sizes are bytes, all durations seconds, all counts `num_`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

NodeId = NewType("NodeId", str)
"""One installation of the client: 32 hex digits that it makes once and keeps."""
DeviceId = NewType("DeviceId", str)
"""One device of a node, such as `cuda:0` or `cpu`. What serves is always a (NodeId, DeviceId)."""
SessionId = NewType("SessionId", str)
"""One generation: 32 hex digits (16 bytes in a data frame)."""
ManifestHash = NewType("ManifestHash", str)
"""SHA-256 of a model's manifest: which weights these are, to the byte."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
RoundTrip = Annotated[float, Meta(gt=0, le=3600)]
"""Seconds; nothing answers in no time, and planners divide by it."""
Rate = Annotated[float, Meta(gt=0, le=1e15)]
"""Bytes per second."""
Layer = Annotated[int, Meta(ge=0, le=100_000)]
Token = Annotated[int, Meta(ge=0, lt=2**31)]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f<>\"'&]*\Z")]
Sentence = Annotated[str, Meta(max_length=400)]
Url = Annotated[str, Meta(max_length=400)]
Secret = Annotated[str, Meta(min_length=8, max_length=128, pattern=r"\A[A-Za-z0-9_-]*\Z")]
"""Tickets, invitations, bearer tokens: never logged."""


MEMORY_FOR_ACTIVATIONS = 0.1
"""Share of a device's memory that is neither weights nor KV: activations, the allocator's own. Planner and node reckon
with the same, or a slice that was planned to fit would not."""

KV_BLOCK_TOKENS = 16
"""A worker's KV room is given out in whole blocks of so many tokens. The scheduler reserves them so, too, or what it
has counted as room would be taken already."""

MIN_STATEFUL_TOKENS = 2048
"""A session of a model with recurrent layers reserves KV room for so many tokens at least. The states of these layers
have a fixed size, and are counted as a share of each of these tokens' bytes: by the worker's admission, by the
scheduler's room and by the planner's sizes alike. Twice as many would cost short chats, half as many long ones."""
STATE_COPIES = 2
"""A session keeps its recurrent states as they are, and as they were before its latest step."""


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every value and message: frozen, strict, no unknown fields within a negotiated version."""


class LayerRange(Value, frozen=True, order=True):
    """Layers [start, stop) of a model, counted from 0."""

    start: Layer
    stop: Layer

    def __post_init__(self) -> None:
        if self.start >= self.stop:
            raise ValueError(f"layer range {self.start}..{self.stop} is empty")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}"


class Variant(StrEnum):
    """The arithmetic a slice is served in. A chain never mixes variants."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantisation(StrEnum):
    """Weights in fewer bits than they were published in (see protocol.quantisation). Part of a model's manifest."""

    INT8 = "int8"
    INT4 = "int4"


class DeviceKind(StrEnum):
    CUDA = "cuda"
    CPU = "cpu"


class DeviceSpec(Value, frozen=True):
    """A device as the node offers it: what is left after the volunteer's own limits."""

    device_id: Annotated[DeviceId, Meta(min_length=1, max_length=32)]
    kind: DeviceKind
    name: Name
    memory_bytes: Bytes
    variant: Variant
    max_layers: Count | None = None


class BatchTime(Value, frozen=True):
    """Median time of one decoder layer for one decode step of `batch_size` sessions."""

    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    layer_s: Seconds


class LayerBenchmark(Value, frozen=True):
    """What a device measured on random weights of the model's own layer shape, before it is assigned anything."""

    decode: Annotated[tuple[BatchTime, ...], Meta(min_length=1, max_length=32)]
    prefill_layer_s_per_token: Seconds
    head_s: Seconds
    """Final norm, lm_head and sampling for one token; what serving the last stage costs on top of its layers."""


class HeldSlice(Value, frozen=True, omit_defaults=True):
    """A slice that a node already holds loaded: it re-attaches with it instead of loading again.

    Since version 4: `benchmark` is what the device measured of this model, for a coordinator that was restarted knows
    nothing of it; without one the device is measured and assigned anew."""

    device_id: DeviceId
    manifest_hash: Digest
    variant: Variant
    layers: LayerRange
    generation: Count
    num_kv_tokens: Count
    can_truncate: bool = False
    benchmark: LayerBenchmark | None = None
    has_prefix_cache: bool = False


class Sampling(Value, frozen=True, omit_defaults=True):
    """How the tail chooses a token. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    The random number of a position is a pure function of (seed, position), so that a replayed session continues
    with the tokens it would have had.

    Since version 4 the penalties, `logit_bias` (added to these tokens' logits) and `num_logprobs` (None: none are
    wanted; n: that of the token, and of the n likeliest). Tokens from position `answer_from` on are the answer, which
    presence and frequency are counted in; repetition looks at the prompt, too."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    logit_bias: Annotated[tuple[tuple[Token, Annotated[float, Meta(ge=-100, le=100)]], ...], Meta(max_length=1024)] = ()
    num_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    answer_from: Count = 0

    @property
    def is_of_version_3(self) -> bool:
        """Whether a node of the version before understands it."""
        return self == Sampling(self.temperature, self.top_p, self.top_k, self.seed)


UNKNOWN_LOGPROB = -9999.0
"""The least that is said; what OpenAI's API has for a token that is too unlikely to be given a number."""


class TokenLogprobs(Value, frozen=True, omit_defaults=True):
    """Natural logarithms of probabilities that the model itself gave, before temperature, penalties and biases: of the
    sampled token, and of the likeliest ones in falling order."""

    sampled: Annotated[float, Meta(ge=UNKNOWN_LOGPROB, le=0)]
    likeliest: Annotated[
        tuple[tuple[Token, Annotated[float, Meta(ge=UNKNOWN_LOGPROB, le=0)]], ...], Meta(max_length=20)
    ] = ()


class StopRule(Value, frozen=True):
    """When the tail ends a generation by itself: after `max_position` tokens in all, or at a stop token."""

    max_position: Count
    stop_tokens: tuple[Token, ...] = ()


class Hop(Value, frozen=True):
    """A neighbour in a chain: where its rows go. `address` is None when only the relay reaches it; `fingerprint` is
    the SHA-256 of the certificate to expect there (wss only)."""

    node_id: Hex32
    stage: Count
    address: Url | None = None
    ticket: Secret | None = None
    fingerprint: Digest | None = None


class LinkTime(Value, frozen=True):
    """What a node measured on the way to another one: round trip and, if that was measured, bytes per second.

    Not `is_direct`: rows go through the coordinator, and `rtt_s` is None, for only the coordinator knows the other
    half of the way."""

    node_id: Hex32
    rtt_s: RoundTrip | None
    bytes_per_s: Rate | None
    is_direct: bool


class DeviceWork(Value, frozen=True):
    """Work of a slice since it was last told: forwards, the decode rows and prompt tokens in them, their time."""

    device_id: Annotated[DeviceId, Meta(min_length=1, max_length=32)]
    generation: Count
    num_steps: Count
    num_decode_rows: Count
    num_prompt_tokens: Count
    compute_s: Seconds


class StepTiming(Value, frozen=True):
    """Summed over all stages of one token's trip: time in forwards, and in turning tensors to bytes and back."""

    compute_us: Count = 0
    codec_us: Count = 0


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
