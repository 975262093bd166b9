"""Control messages: one frozen struct each, JSON text frames, grouped by direction.

A message is refused as a whole (MessageError) if it is too large, not JSON, has an unknown or missing field, or a
value out of range: a receiver never sees a half-valid one. Unknown fields are refused within a version; a new field
means a new version.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, structs

from protocol.errors import MessageError, MessageFault
from protocol.pause import PoolDefaults
from protocol.values import (
    Bytes,
    Count,
    DeviceId,
    DeviceSpec,
    DeviceWork,
    Digest,
    FinishReason,
    HeldSlice,
    Hex32,
    Hop,
    LayerBenchmark,
    LayerRange,
    LinkTime,
    Name,
    RoundTrip,
    Sampling,
    Seconds,
    Secret,
    Sentence,
    StepTiming,
    StopRule,
    Token,
    TokenLogprobs,
    Url,
    Value,
    Variant,
)

MAX_MESSAGE_BYTES = 8 * 2**20
"""A session's token history is the longest thing sent: a million tokens fit."""
MAX_LINK_TARGETS = 64
"""Links that one message asks for or tells of."""

Device = Annotated[DeviceId, Meta(min_length=1, max_length=32)]
Code = Annotated[str, Meta(pattern=r"\A[a-z0-9_]{1,48}\Z")]


class _Message(Value, frozen=True, tag_field="type", tag=str.lower):
    """Base of all messages; on the wire the class name in lower case is the field `type`."""


# ---------------------------------------------------------------- node -> coordinator


class Hello(_Message, frozen=True):
    """A node's first message, in answer to Challenge.

    `signature` is Ed25519 by `public_key` over protocol.identity.hello_bytes(...): who holds the key is the node, and
    `node_id` follows from the key. `invite` is needed once, by a pool that is not open. `peer_address` is where other
    nodes may reach this one directly, with `peer_ticket`; `peer_fingerprint` is its certificate's there (wss only)."""

    protocol_version: Count
    node_id: Hex32
    public_key: Digest
    signature: Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]
    app_version: Name
    name: Name
    devices: Annotated[tuple[DeviceSpec, ...], Meta(min_length=1, max_length=64)]
    peer_address: Url | None = None
    peer_ticket: Secret | None = None
    peer_fingerprint: Digest | None = None
    invite: Secret | None = None
    held: tuple[HeldSlice, ...] = ()


class DeviceMeasured(_Message, frozen=True):
    device_id: Device
    manifest_hash: Digest
    benchmark: LayerBenchmark


class DeviceFailed(_Message, frozen=True, omit_defaults=True):
    """A device cannot do what it was asked: measuring or serving a slice. It stays idle until asked again.

    `max_layers`: the slice does not fit on its disk, but so many of its layers would (None: not known, or it failed for
    another reason)."""

    device_id: Device
    manifest_hash: Digest
    generation: Count
    code: Code
    message: Sentence
    max_layers: Count | None = None


class SliceProgress(_Message, frozen=True):
    device_id: Device
    generation: Count
    loading: bool
    done_bytes: Bytes
    total_bytes: Bytes


class SliceReady(_Message, frozen=True, omit_defaults=True):
    """The slice is loaded and serves. `num_kv_tokens` is the KV room: tokens of all sessions together. Said again with
    less room by a device that ran out of memory; what is reserved there stays so.

    `has_prefix_cache`: what sessions leave in that room may be the beginning of others, if they are told by what name
    (OpenSession.prefix_hashes). Since version 4."""

    device_id: Device
    generation: Count
    num_kv_tokens: Count
    can_truncate: bool
    has_prefix_cache: bool = False


class SessionOpened(_Message, frozen=True, omit_defaults=True):
    """`num_cached_tokens`: the stage has the first rows of the prompt, whole blocks of them, and may begin behind any
    of these blocks: wherever its first row says. Since version 4."""

    session_id: Hex32
    epoch: Count
    stage: Count
    num_cached_tokens: Count = 0


class SessionBroken(_Message, frozen=True):
    """A stage cannot open or continue a session. `code` says why (kv_full, non_finite, out_of_memory, ...)."""

    session_id: Hex32
    epoch: Count
    stage: Count
    code: Code
    message: Sentence


class TokensSampled(_Message, frozen=True):
    """From the tail: 1 to k consecutive tokens, the first at `position`. The coordinator commits, then streams.

    `logprobs`: of each token, if they are wanted; since version 4."""

    session_id: Hex32
    epoch: Count
    position: Count
    tokens: Annotated[tuple[Token, ...], Meta(min_length=1, max_length=256)]
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(max_length=256)] = ()
    finish_reason: FinishReason | None = None
    timing: StepTiming = StepTiming()

    def __post_init__(self) -> None:
        if len(self.logprobs) not in (0, len(self.tokens)):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.tokens)} tokens")

    def behind(self, num_known: int) -> TokensSampled:
        """Without its first tokens, of which there are more than so many."""
        position, tokens, logprobs = self.position + num_known, self.tokens[num_known:], self.logprobs[num_known:]
        return structs.replace(self, position=position, tokens=tokens, logprobs=logprobs)


class Heartbeat(_Message, frozen=True):
    """Work done since the node joined; `num_sessions` now open; frames it refused.

    `work` is what devices did since the last heartbeat (those that did nothing are left out), and
    `pool_rtt_s` a round trip to the coordinator, when one was measured since then."""

    num_sessions: Count
    num_tokens: Count
    num_refused_frames: Count
    work: Annotated[tuple[DeviceWork, ...], Meta(max_length=128)] = ()
    pool_rtt_s: RoundTrip | None = None


class LinksMeasured(_Message, frozen=True):
    """The answer to MeasureLinks: one entry per target. `pool_rtt_s` is as in Heartbeat."""

    links: Annotated[tuple[LinkTime, ...], Meta(max_length=MAX_LINK_TARGETS)]
    pool_rtt_s: RoundTrip | None = None


class RowsAt(_Message, frozen=True, omit_defaults=True):
    """The answer to WhereAreRows, from the agent: what has passed it, whatever its worker does. Since version 4.

    Positions below `num_received` have come in for this stage, those below `num_sent` have gone on to the next one
    (from the tail to the head: the tokens); `waiting_s` is for how long rows have been here while none went on (0 if
    none are here); `silent_s` for how long the worker has said nothing at all although it owes rows of some session:
    at work on any of them it is heard every second or after every step (None: not known, or these are its first)."""

    session_id: Hex32
    epoch: Count
    stage: Count
    num_received: Count
    num_sent: Count
    waiting_s: Seconds
    silent_s: Seconds | None = None


class Leaving(_Message, frozen=True, omit_defaults=True):
    """The node goes on purpose: nothing new, and what runs here goes on elsewhere.

    Since version 4: with `within_s` it goes on serving what it has for so long, and goes as soon as no session is left
    on it; the coordinator moves them one by one, each between two tokens."""

    reason: Sentence
    within_s: Seconds = 0.0


NodeMessage = (
    Hello
    | DeviceMeasured
    | DeviceFailed
    | SliceProgress
    | SliceReady
    | SessionOpened
    | SessionBroken
    | TokensSampled
    | Heartbeat
    | LinksMeasured
    | RowsAt
    | Leaving
)


# ---------------------------------------------------------------- coordinator -> node


class Challenge(_Message, frozen=True):
    """The coordinator's first message on a connection. `nonce` is used once, and is what the hello signs."""

    protocol_versions: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=16)]
    nonce: Digest
    pool_name: Name
    defaults: PoolDefaults = PoolDefaults()


class Welcome(_Message, frozen=True):
    """The node is in. `weights_token` opens the weight mirror while the connection lasts (a bearer token)."""

    protocol_version: Count
    pool_name: Name
    heartbeat_s: Annotated[float, Meta(gt=0, le=600)]
    weights_token: Secret


class Refused(_Message, frozen=True):
    """Why the coordinator closes this connection; one sentence that the volunteer is shown."""

    code: Code
    message: Sentence


class MeasureDevice(_Message, frozen=True):
    """Measure layers of this model's shape on random weights. Answer: DeviceMeasured or DeviceFailed."""

    device_id: Device
    manifest_hash: Digest
    variant: Variant


class AssignSlice(_Message, frozen=True):
    """Download, load and serve these layers. Answers: SliceProgress..., then SliceReady or DeviceFailed.

    `generation` grows with each assignment of a device: answers to an older one are dropped."""

    device_id: Device
    generation: Count
    model_name: Name
    manifest_hash: Digest
    variant: Variant
    layers: LayerRange
    num_layers: Count


class ReleaseSlice(_Message, frozen=True):
    device_id: Device
    generation: Count


class MeasureLinks(_Message, frozen=True):
    """Measure the links to these nodes, without disturbing rows. Answer: LinksMeasured."""

    targets: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=MAX_LINK_TARGETS)]


class WhereAreRows(_Message, frozen=True):
    """A session's answer is late. Answer: RowsAt, or SessionBroken if the session is not open here. Since version 4."""

    session_id: Hex32
    epoch: Count
    stage: Count


class OpenSession(_Message, frozen=True, omit_defaults=True):
    """Make room for a session as stage `stage` of `num_stages`.

    Rows up to position `num_prompt_tokens` - 1 are prefill; from that row on the tail samples. `next` is the
    neighbour that gets this stage's rows; for the tail it is the head, which gets the sampled tokens. Only the tail
    has `sampling`, `stop` and `history` (all tokens so far: penalties and resuming need them).

    Since version 4, for a session that ran over this stage before: the stage keeps the KV of positions below
    `num_kept_tokens` from the epoch before and computes from there on (0: nothing is kept). The next stage holds
    positions below `next_from`: rows below it are not sent, and rows from there up to `num_kept_tokens`, which are not
    computed again, are sent from what the stage has kept of its outputs. A stage that does not have what it should
    keep says SessionBroken with the code `nothing_kept`.

    Since version 4, for a stage with a prefix cache: `prefix_hashes` name the prompt's whole blocks of KV_BLOCK_TOKENS,
    each by everything up to its end and by the tenant. Under these names the stage may have rows of other sessions
    (SessionOpened.num_cached_tokens), and keeps its own when the session ends."""

    session_id: Hex32
    epoch: Count
    device_id: Device
    generation: Count
    stage: Count
    num_stages: Annotated[int, Meta(ge=1, le=1024)]
    num_prompt_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    num_reserved_tokens: Count
    previous: Hop
    next: Hop
    sampling: Sampling | None = None
    stop: StopRule | None = None
    history: tuple[Token, ...] = ()
    num_kept_tokens: Count = 0
    next_from: Count = 0
    prefix_hashes: tuple[Hex32, ...] = ()


class CloseSession(_Message, frozen=True, omit_defaults=True):
    """Free everything of this session up to and including this epoch. Repeating it does nothing.

    Since version 4, for a stage with a prefix cache, in the epoch in which the session ends: `prefix_hashes` name the
    blocks of prompt and answer."""

    session_id: Hex32
    epoch: Count
    prefix_hashes: tuple[Hex32, ...] = ()


CoordinatorMessage = (
    Challenge
    | Welcome
    | Refused
    | MeasureDevice
    | MeasureLinks
    | AssignSlice
    | ReleaseSlice
    | WhereAreRows
    | OpenSession
    | CloseSession
)


# ---------------------------------------------------------------- node -> node


class PeerHello(_Message, frozen=True):
    """First message on a direct link. The ticket came from the coordinator, with the session or with MeasureLinks.

    `protocol_version` is protocol.PEER_VERSION."""

    protocol_version: Count
    node_id: Hex32
    ticket: Secret


PeerMessage = PeerHello

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_node_decoder: msgspec.json.Decoder[NodeMessage] = msgspec.json.Decoder(NodeMessage)
_coordinator_decoder: msgspec.json.Decoder[CoordinatorMessage] = msgspec.json.Decoder(CoordinatorMessage)
_peer_decoder = msgspec.json.Decoder(PeerMessage)


def encode_message(message: NodeMessage | CoordinatorMessage | PeerMessage) -> str:
    """The message as JSON text."""
    return _encoder.encode(message).decode()


def decode_node_message(text: str | bytes) -> NodeMessage:
    """Decode what a node sent to the coordinator; raises MessageError."""
    return _decode(_node_decoder, text)


def decode_coordinator_message(text: str | bytes) -> CoordinatorMessage:
    """Decode what the coordinator sent to a node; raises MessageError."""
    return _decode(_coordinator_decoder, text)


def decode_peer_message(text: str | bytes) -> PeerMessage:
    """Decode what a node sent to a node; raises MessageError."""
    return _decode(_peer_decoder, text)


class _AnyHello(msgspec.Struct):
    protocol_version: Count


def claimed_version(text: str | bytes) -> int | None:
    """The `protocol_version` of a hello that this build cannot read otherwise; None if it has none."""
    try:
        return msgspec.json.decode(text, type=_AnyHello).protocol_version
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    if len(text) > MAX_MESSAGE_BYTES:
        raise MessageError(MessageFault.TOO_LARGE, f"{len(text)} bytes, limit {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise MessageError(MessageFault.INVALID, _plain(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MessageError(MessageFault.NOT_JSON, _plain(error)) from None


def _plain(error: Exception) -> str:
    """The library's sentence may quote a field's name, which is the sender's: one short line of ASCII, for logs."""
    return "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in str(error)[:200])[:200]
