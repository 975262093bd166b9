"""Control messages: what goes in comes out, and a receiver never sees a half-valid one."""

from __future__ import annotations

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import PEER_VERSION, PROTOCOL_VERSION, SUPPORTED_VERSIONS
from protocol import messages as m
from protocol.errors import MessageError, MessageFault
from protocol.pause import Hours, PauseMode, PauseRules, PoolDefaults
from protocol.values import (
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    DeviceWork,
    FinishReason,
    HeldSlice,
    Hop,
    LayerBenchmark,
    LayerRange,
    LinkTime,
    Sampling,
    StepTiming,
    StopRule,
    TokenLogprobs,
    Variant,
)

NODE, SESSION, DIGEST, CPU = "0a" * 16, "1b" * 16, "2c" * 32, DeviceId("cpu")
DEVICE = DeviceSpec(CPU, DeviceKind.CPU, "a CPU", 2**34, Variant.FLOAT32, 12)
BENCHMARK = LayerBenchmark((BatchTime(1, 0.01), BatchTime(8, 0.02)), 0.001, 0.002)
HELD = HeldSlice(CPU, DIGEST, Variant.FLOAT32, LayerRange(0, 4), 3, 8192)
WORK = DeviceWork(CPU, 4, 30, 55, 512, 0.75)
LINKS = (LinkTime(NODE, 0.05, 6e6, True), LinkTime(SESSION, None, None, False))
LOGPROBS = (TokenLogprobs(-0.1, ((5, -0.1), (9, -2.5))), TokenLogprobs(-2.5))
SHAPED = Sampling(0.5, 0.9, 40, 7, 0.1, 0.5, -0.5, 1.1, ((3, -100.0), (4, 2.5)), 2, 10)
HOP = Hop(NODE, 1, "wss://10.0.0.7:9000", "ticket-1", DIGEST)
KEY, SIGNATURE, NONCE = "3d" * 32, "4e" * 64, "5f" * 32
DEFAULTS = PoolDefaults(
    PauseRules(mode=PauseMode.WHEN_AWAY, programs=("blender",), hours=Hours(1320, 420)), 10**9, 8, 10**10
)

FROM_NODE: list[m.NodeMessage] = [
    m.Hello(
        protocol_version=PROTOCOL_VERSION,
        node_id=NODE,
        public_key=KEY,
        signature=SIGNATURE,
        app_version="0.1.0",
        name="Ada",
        devices=(DEVICE,),
        peer_address="wss://10.0.0.8:9000",
        peer_ticket="ticket-1",
        peer_fingerprint=DIGEST,
        invite="invitation",
        held=(HELD,),
    ),
    m.DeviceMeasured(CPU, DIGEST, BENCHMARK),
    m.DeviceFailed(CPU, DIGEST, 4, "out_of_memory", "No room."),
    m.SliceProgress(CPU, 4, False, 10, 100),
    m.SliceReady(CPU, 4, 8192, True),
    m.SessionOpened(SESSION, 1, 0),
    m.SliceReady(CPU, 4, 8192, True, has_prefix_cache=True),
    m.SessionOpened(SESSION, 1, 0, num_cached_tokens=48),
    m.SessionBroken(SESSION, 1, 0, "kv_full", "No room."),
    m.TokensSampled(SESSION, 1, 9, (5, 6), LOGPROBS, FinishReason.STOP, StepTiming(10, 20)),
    m.Heartbeat(1, 1000, 0, (WORK,), 0.04),
    m.LinksMeasured(LINKS, 0.04),
    m.RowsAt(SESSION, 2, 1, 40, 39, 0.25),
    m.Leaving("paused", 30.0),
    m.DeviceFailed(CPU, DIGEST, 4, "disk_full", "No room.", max_layers=0),
]
FROM_COORDINATOR: list[m.CoordinatorMessage] = [
    m.Challenge((3, 4), NONCE, "a pool", DEFAULTS),
    m.Welcome(PROTOCOL_VERSION, "a pool", 2.0, "weights-token"),
    m.Refused("protocol_version", "Update the older one."),
    m.MeasureDevice(CPU, DIGEST, Variant.FLOAT32),
    m.AssignSlice(CPU, 1, "model", DIGEST, Variant.BFLOAT16, LayerRange(3, 9), 24),
    m.ReleaseSlice(CPU, 1),
    m.OpenSession(
        SESSION, 2, CPU, 1, 1, 2, 10, 100, HOP, HOP, Sampling(0.5, 0.9, 40, 7), StopRule(100, (2,)), (1, 2), 8, 6
    ),
    m.WhereAreRows(SESSION, 2, 1),
    m.CloseSession(SESSION, 2),
    m.OpenSession(SESSION, 2, CPU, 1, 1, 2, 40, 100, HOP, HOP, prefix_hashes=(SESSION, NODE)),
    m.CloseSession(SESSION, 2, (SESSION, NODE)),
    m.OpenSession(SESSION, 2, CPU, 1, 1, 2, 10, 100, HOP, HOP, SHAPED, StopRule(100)),
    m.MeasureLinks((HOP,)),
]
LEAVING_OF_VERSION_3 = '{"type":"leaving","reason":"paused"}'
OPEN_OF_VERSION_3 = m.OpenSession(SESSION, 2, CPU, 1, 0, 2, 10, 100, HOP, HOP)


def wire(original: Any, /, **changes: Any) -> str:
    """The message as JSON with fields changed; `...` removes the field."""
    fields = json.loads(m.encode_message(original)) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def refused(text: str | bytes, decode: Any = m.decode_node_message) -> MessageError:
    with pytest.raises(MessageError) as caught:
        decode(text)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 260
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_message_type_is_tried_here() -> None:
    assert {type(message) for message in FROM_NODE} == set(typing.get_args(m.NodeMessage))
    assert {type(message) for message in FROM_COORDINATOR} == set(typing.get_args(m.CoordinatorMessage))


@pytest.mark.parametrize("message", FROM_NODE, ids=lambda message: type(message).__name__)
def test_a_nodes_message_comes_back_as_it_was(message: m.NodeMessage) -> None:
    text = m.encode_message(message)
    assert m.decode_node_message(text) == message
    assert m.decode_node_message(text.encode()) == message
    assert json.loads(text)["type"] == type(message).__name__.lower()


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=lambda message: type(message).__name__)
def test_a_coordinators_message_comes_back_as_it_was(message: m.CoordinatorMessage) -> None:
    assert m.decode_coordinator_message(m.encode_message(message)) == message


def test_a_peers_hello_comes_back_as_it_was() -> None:
    hello = m.PeerHello(3, NODE, "ticket-1")
    assert m.decode_peer_message(m.encode_message(hello)) == hello


@pytest.mark.parametrize("num_logprobs", [1, 3])
def test_as_many_logprobs_as_tokens_or_none(num_logprobs: int) -> None:
    sampled = m.TokensSampled(SESSION, 1, 9, (5, 6))
    text = wire(sampled, logprobs=[{"sampled": -0.5}] * num_logprobs)
    assert refused(text).code is MessageFault.INVALID


def test_tokens_that_are_known_already_are_left_out_with_their_logprobs() -> None:
    sampled = m.TokensSampled(SESSION, 1, 9, (5, 6), LOGPROBS, FinishReason.STOP)
    assert sampled.behind(1) == m.TokensSampled(SESSION, 1, 10, (6,), LOGPROBS[1:], FinishReason.STOP)
    assert sampled.behind(0) == sampled


@pytest.mark.parametrize(("sampling", "expected"), [(Sampling(0.5, 0.9, 40, 7), True), (SHAPED, False)])
def test_what_a_node_of_the_version_before_knows_of_sampling(sampling: Sampling, expected: bool) -> None:
    assert sampling.is_of_version_3 is expected
    fields = json.loads(msgspec.json.encode(sampling))
    assert (fields.keys() <= {"temperature", "top_p", "top_k", "seed"}) is expected


def test_what_a_node_of_the_version_before_says_is_understood() -> None:
    assert m.decode_node_message(LEAVING_OF_VERSION_3) == m.Leaving("paused", 0.0)
    hello = m.decode_node_message(wire(FROM_NODE[0], protocol_version=PROTOCOL_VERSION - 1))
    assert isinstance(hello, m.Hello)
    assert hello.protocol_version in SUPPORTED_VERSIONS


def test_a_session_that_keeps_nothing_is_opened_in_words_of_the_version_before() -> None:
    said = json.loads(m.encode_message(OPEN_OF_VERSION_3))
    assert {"num_kept_tokens", "next_from", "prefix_hashes"}.isdisjoint(said)


def test_a_session_of_which_nothing_is_named_is_closed_in_words_of_the_version_before() -> None:
    assert set(json.loads(m.encode_message(m.CloseSession(SESSION, 2)))) == {"type", "session_id", "epoch"}


def test_direct_links_begin_with_the_oldest_version_that_a_neighbour_may_speak() -> None:
    assert PEER_VERSION == min(SUPPORTED_VERSIONS) == PROTOCOL_VERSION - 1


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=lambda message: type(message).__name__)
def test_a_message_in_the_wrong_direction_is_refused(message: m.CoordinatorMessage) -> None:
    assert refused(m.encode_message(message)).code is MessageFault.INVALID


@pytest.mark.parametrize("message", FROM_NODE, ids=lambda message: type(message).__name__)
def test_a_nodes_message_is_none_for_a_node(message: m.NodeMessage) -> None:
    refused(m.encode_message(message), m.decode_coordinator_message)
    refused(m.encode_message(message), m.decode_peer_message)


@pytest.mark.parametrize("message", [*FROM_NODE, *FROM_COORDINATOR], ids=lambda message: type(message).__name__)
def test_an_unknown_or_missing_field_is_refused(message: Any) -> None:
    decode = m.decode_node_message if message in FROM_NODE else m.decode_coordinator_message
    assert "surprise" in refused(wire(message, surprise=1), decode).detail
    required = [field.name for field in msgspec.structs.fields(message) if field.required]
    for name in required:
        assert name in refused(wire(message, **{name: ...}), decode).detail


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_version": -1},
        {"protocol_version": "1"},
        {"protocol_version": True},
        {"node_id": "0A" * 16},
        {"node_id": "0a" * 15},
        {"node_id": "0a" * 16 + "\n"},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "<script>"},
        {"name": "a\u0000b"},
        {"name": "a\nb"},
        {"devices": []},
        {"devices": [json.loads(msgspec.json.encode(DEVICE))] * 65},
        {"peer_address": "ws://" + "x" * 400},
        {"peer_ticket": "x" * 129},
        {"peer_ticket": "short"},
        {"peer_fingerprint": "2C" * 32},
        {"peer_fingerprint": "2c" * 31},
        {"public_key": "3d" * 31},
        {"public_key": "3d" * 32 + "\n"},
        {"public_key": "zz" * 32},
        {"public_key": None},
        {"signature": "4e" * 63},
        {"signature": "4E" * 64},
        {"signature": ""},
        {"invite": ""},
        {"invite": "with blank"},
        {"invite": "line\nbreak"},
        {"invite": "x" * 129},
        {"held": None},
    ],
)
def test_a_hello_with_a_bad_value_is_refused(changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refused(wire(FROM_NODE[0], **changes)).detail


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": -1},
        {"memory_bytes": 10**17},
        {"memory_bytes": "24GB"},
        {"memory_bytes": 1.5},
        {"device_id": ""},
        {"device_id": "x" * 33},
        {"kind": "tpu"},
        {"variant": "int3"},
        {"max_layers": -1},
        {"name": "<b>"},
    ],
)
def test_a_device_with_a_bad_claim_is_refused_by_field(changes: dict[str, Any]) -> None:
    device = json.loads(msgspec.json.encode(DEVICE)) | changes
    assert f"devices[0].{next(iter(changes))}" in refused(wire(FROM_NODE[0], devices=[device])).detail


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (FROM_NODE[1], {"benchmark": {"decode": [], "prefill_layer_s_per_token": 1, "head_s": 1}}),
        (FROM_NODE[2], {"code": "Not A Code"}),
        (FROM_NODE[2], {"message": "x" * 401}),
        (FROM_NODE[7], {"tokens": []}),
        (FROM_NODE[7], {"tokens": [0] * 257}),
        (FROM_NODE[7], {"tokens": [-1]}),
        (FROM_NODE[7], {"tokens": [2**31]}),
        (FROM_NODE[7], {"finish_reason": "bored"}),
        (FROM_NODE[7], {"position": 2**60}),
        (FROM_NODE[8], {"pool_rtt_s": -0.1}),
        (FROM_NODE[8], {"work": [json.loads(msgspec.json.encode(WORK)) | {"compute_s": -1}]}),
        (FROM_NODE[8], {"work": [json.loads(msgspec.json.encode(WORK))] * 129}),
        (FROM_NODE[9], {"links": [json.loads(msgspec.json.encode(LINKS[0])) | {"bytes_per_s": 0}]}),
        (FROM_NODE[9], {"links": [json.loads(msgspec.json.encode(LINKS[0])) | {"rtt_s": "soon"}]}),
        (FROM_NODE[9], {"links": [json.loads(msgspec.json.encode(LINKS[0]))] * (m.MAX_LINK_TARGETS + 1)}),
    ],
)
def test_a_value_out_of_range_is_refused(message: m.NodeMessage, changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refused(wire(message, **changes)).detail


@pytest.mark.parametrize(
    ("message", "changes", "field"),
    [
        (FROM_COORDINATOR[0], {"nonce": "5f"}, "nonce"),
        (FROM_COORDINATOR[0], {"protocol_versions": []}, "protocol_versions"),
        (FROM_COORDINATOR[0], {"protocol_versions": [1] * 17}, "protocol_versions"),
        (FROM_COORDINATOR[0], {"defaults": {"rules": {"max_temperature_c": 39}}}, "defaults.rules.max_temperature_c"),
        (FROM_COORDINATOR[0], {"defaults": {"rules": {"mode": "never"}}}, "defaults.rules.mode"),
        (FROM_COORDINATOR[0], {"defaults": {"max_layers": -1}}, "defaults.max_layers"),
        (FROM_COORDINATOR[1], {"weights_token": "short"}, "weights_token"),
        (FROM_COORDINATOR[1], {"weights_token": "with blank"}, "weights_token"),
        (FROM_COORDINATOR[1], {"heartbeat_s": 0}, "heartbeat_s"),
        (FROM_COORDINATOR[8], {"targets": []}, "targets"),
    ],
)
def test_a_pool_that_says_what_cannot_be_is_refused_by_field(
    message: m.CoordinatorMessage, changes: dict[str, Any], field: str
) -> None:
    assert field in refused(wire(message, **changes), m.decode_coordinator_message).detail


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "{}", "{", "nonsense", '{"type":1}', '{"type":"nothing"}'])
def test_what_is_no_message_is_refused(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("text", ["\ud800", b"\xff\xfe", '{"type":"leaving","reason":"\\ud800"}', "NaN", "\x00"])
def test_what_is_no_text_is_refused(text: str | bytes) -> None:
    refused(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 5000, "-0.5"])
def test_what_is_no_number_is_refused(number: str) -> None:
    refused(wire(m.Heartbeat(1, 1000, 0, (), 0.04)).replace("1000", number))


@pytest.mark.parametrize("bomb", ["[" * 10**6, '{"a":' * 10**5, '{"type":"hello","held":' + "[" * 10**5])
def test_a_depth_bomb_is_refused(bomb: str) -> None:
    refused(bomb)


def test_a_message_that_is_too_large_is_refused_unread() -> None:
    assert refused(" " * (m.MAX_MESSAGE_BYTES + 1)).code is MessageFault.TOO_LARGE


def test_a_foreign_field_name_cannot_forge_a_line_of_the_log() -> None:
    error = refused(json.dumps({"type": "leaving", "reason": "", "x\nERROR \u202e" + "é" * 300: 1}, ensure_ascii=False))
    assert "unknown field" in error.detail


def test_a_million_tokens_of_history_fit() -> None:
    history = tuple(range(10**6))
    message = msgspec.structs.replace(FROM_COORDINATOR[6], history=history)
    assert m.decode_coordinator_message(m.encode_message(message)).history == history  # type: ignore[union-attr]


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_input_is_a_message_or_a_message_error(data: bytes | str) -> None:
    for decode in (m.decode_node_message, m.decode_coordinator_message, m.decode_peer_message):
        with pytest.raises(MessageError):
            decode(data)
    assert m.claimed_version(data) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(FROM_NODE), st.data())
def test_a_message_with_a_field_of_any_value_is_whole_or_refused(message: m.NodeMessage, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["type", *msgspec.structs.asdict(message)]))
    text = json.dumps(json.loads(m.encode_message(message)) | {name: data.draw(json_values)})
    try:
        decoded = m.decode_node_message(text)
    except MessageError:
        return
    assert m.decode_node_message(m.encode_message(decoded)) == decoded


def test_the_version_of_an_unreadable_hello_is_found() -> None:
    assert m.claimed_version('{"protocol_version":99,"new":[1]}') == 99
    assert m.claimed_version(b'{"protocol_version":0}') == 0
    for text in (
        '{"protocol_version":"2"}',
        '{"protocol_version":-1}',
        "{}",
        "[",
        '{"protocol_version":' + "9" * 400 + "}",
    ):
        assert m.claimed_version(text) is None
