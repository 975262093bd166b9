"""Challenge, hello and what is wrong with it, over a hub on virtual time."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from coordinator.core import HEARTBEAT_S
from coordinator.handshake import (
    HELLO_TIMEOUT_S,
    MAX_CLOSE_REASON_BYTES,
    Handshake,
    Refusal,
    checked_hello,
    close_reason,
)
from protocol import PROTOCOL_VERSION, SUPPORTED_VERSIONS
from protocol import messages as m
from protocol.env import Connection, ConnectionClosed
from protocol.errors import CloseCode
from protocol.identity import node_id_of
from protocol.messages import Hello, encode_message
from protocol.pause import PauseMode, PauseRules, PoolDefaults
from shell.keys import public_key_of, sign
from tests.fakes import pool_facts as facts
from tests.fakes.hub_driver import URL, hear, refusal, running_hub
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import on_virtual_time

NONCE = "5a" * 32
OTHER_KEY = public_key_of(facts.private_key(2))


def hello_with(**changes: object) -> str:
    fields = json.loads(encode_message(facts.hello(1))) | changes
    return json.dumps(fields, ensure_ascii=False)


@on_virtual_time
async def test_the_coordinator_speaks_first_and_a_hello_that_answers_is_welcomed() -> None:
    async with running_hub() as pool:
        connection, challenge = await pool.challenged()
        assert challenge.protocol_versions == tuple(sorted(SUPPORTED_VERSIONS))
        assert challenge.pool_name == "test pool"
        await connection.send(encode_message(facts.signed(facts.hello(1), challenge.nonce)))
        welcome = await hear(connection)
        assert isinstance(welcome, m.Welcome)
        assert welcome == m.Welcome(PROTOCOL_VERSION, "test pool", HEARTBEAT_S, welcome.weights_token)
        assert isinstance(await hear(connection), m.MeasureDevice)
        assert facts.node_id(1) in pool.hub.core.nodes


@pytest.mark.parametrize("version", sorted(SUPPORTED_VERSIONS))
@on_virtual_time
async def test_a_node_is_welcomed_in_the_version_that_it_speaks(version: int) -> None:
    async with running_hub() as pool:
        _, welcome = await pool.welcomed(facts.hello(1, version=version))
        assert welcome.protocol_version == version


@on_virtual_time
async def test_the_pools_defaults_come_with_the_challenge() -> None:
    defaults = PoolDefaults(PauseRules(mode=PauseMode.WHEN_AWAY), max_layers=4)
    world = VirtualWorld()
    handshake = Handshake(world.env(), "test pool", defaults)

    async def serve(connection: Connection) -> None:
        assert await handshake.run(connection, "") is None

    await world.env().network.listen("10.0.0.1", 8000, serve, 2**20)
    connection = await world.env("node").network.connect(URL, 2**20)
    challenge = await hear(connection)
    assert isinstance(challenge, m.Challenge)
    assert challenge.defaults == defaults
    await connection.close()


@on_virtual_time
async def test_no_nonce_is_used_twice() -> None:
    async with running_hub() as pool:
        nonces = {(await pool.challenged())[1].nonce for _ in range(5)}
        assert len(nonces) == 5


@pytest.mark.parametrize("version", [1, 2, PROTOCOL_VERSION + 1, 99])
@pytest.mark.parametrize("changes", [{}, {"new_field": [1]}, {"public_key": None}])
@on_virtual_time
async def test_a_wrong_protocol_version_is_told_which_are_spoken(version: int, changes: dict[str, object]) -> None:
    async with running_hub() as pool:
        connection, _ = await pool.challenged()
        await connection.send(hello_with(protocol_version=version, **changes))
        told, closed = await refusal(connection)
        assert told.code == "protocol_version"
        assert "speaks protocol version 3, 4," in told.message
        assert closed.code == CloseCode.PROTOCOL_VERSION
        assert not pool.hub.core.nodes


BAD_HELLOS: dict[str, tuple[str | bytes, str]] = {
    "not JSON": ("hello?", "not_json"),
    "empty": ("", "not_json"),
    "deep": ("[" * 10_000, "Expected `object`"),
    "too long": (" " * 70_000 + hello_with(), "limit 65536"),
    "unknown field": (hello_with(surprise=1), "surprise"),
    "a field in another alphabet": (hello_with(**{"\n" + "字" * 300: 1}), "unknown field"),
    "missing field": (hello_with(node_id=None), "node_id"),
    "no key": (hello_with(public_key=None), "public_key"),
    "a short signature": (hello_with(signature="00"), "signature"),
    "no devices": (hello_with(devices=[]), "devices"),
    "a device twice": (hello_with(devices=[json.loads(hello_with())["devices"][0]] * 2), "devices"),
    "markup in the name": (hello_with(name="<script>"), "name"),
    "as bytes": (encode_message(facts.hello(1)).encode(), "text"),
    "another message": (encode_message(m.Heartbeat(0, 0, 0)), "must be a hello"),
    "the coordinator's message": (encode_message(m.Welcome(PROTOCOL_VERSION, "x", 1, "a-token-")), "type"),
}


@pytest.mark.parametrize("case", BAD_HELLOS)
@on_virtual_time
async def test_a_bad_hello_is_refused_with_a_sentence(case: str) -> None:
    sent, word = BAD_HELLOS[case]
    async with running_hub() as pool:
        connection, _ = await pool.challenged()
        await connection.send(sent)
        told, closed = await refusal(connection)
        assert told.code == "bad_message"
        assert word in told.message
        assert closed.code == CloseCode.BAD_MESSAGE
        assert closed.reason
        await pool.welcomed(facts.hello(1))


FALSE_HELLOS: dict[str, tuple[Hello, str]] = {
    "another node's id": (
        msgspec.structs.replace(facts.signed(facts.hello(1), NONCE), node_id=facts.node_id(2)),
        "wrong_node_id",
    ),
    "another node's key": (
        msgspec.structs.replace(facts.signed(facts.hello(1), NONCE), public_key=OTHER_KEY),
        "wrong_node_id",
    ),
    "no proof": (facts.hello(1), "bad_signature"),
    "another key's signature": (
        msgspec.structs.replace(facts.hello(1), signature=sign(facts.private_key(2), b"")),
        "bad_signature",
    ),
    "an answer to another challenge": (facts.signed(facts.hello(1), "5b" * 32), "bad_signature"),
    "an answer to another pool": (facts.signed(facts.hello(1), NONCE, "other.example:8000"), "bad_signature"),
}


@pytest.mark.parametrize("case", FALSE_HELLOS)
def test_a_hello_that_proves_nothing_is_not_believed(case: str) -> None:
    hello, code = FALSE_HELLOS[case]
    refused = checked_hello(encode_message(hello), NONCE, "pool.example:8000")
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.close_code) == (code, CloseCode.NOT_ALLOWED)
    assert refused.sentence.endswith(".")
    assert len(refused.sentence) <= 400


def test_a_key_that_is_no_point_of_the_curve_has_signed_nothing() -> None:
    bad = "02" + "00" * 31
    hello = msgspec.structs.replace(facts.hello(1), public_key=bad, node_id=node_id_of(bad))
    refused = checked_hello(encode_message(hello), NONCE, "")
    assert isinstance(refused, Refusal)
    assert refused.code == "bad_signature"


def test_the_audience_is_a_host_name_so_its_case_does_not_matter() -> None:
    hello = facts.signed(facts.hello(1), NONCE, "Pool.Example:8000")
    assert checked_hello(encode_message(hello), NONCE, "pool.example:8000") == hello


@on_virtual_time
async def test_a_false_hello_is_told_so_and_another_node_is_welcome() -> None:
    async with running_hub() as pool:
        connection, challenge = await pool.challenged()
        stolen = facts.signed(facts.hello(1), challenge.nonce)
        second, _ = await pool.challenged()
        await second.send(encode_message(stolen))
        told, closed = await refusal(second)
        assert (told.code, closed.code) == ("bad_signature", CloseCode.NOT_ALLOWED)
        await connection.send(encode_message(stolen))
        assert isinstance(await hear(connection), m.Welcome)


@on_virtual_time
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with running_hub() as pool:
        connection, _ = await pool.challenged()
        before = pool.world.env().clock.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert caught.value.code == 1013
        assert pool.world.env().clock.monotonic() - before == pytest.approx(HELLO_TIMEOUT_S, abs=0.1)


@on_virtual_time
async def test_a_connection_that_goes_before_its_hello_is_forgotten() -> None:
    async with running_hub() as pool:
        connection = await pool.connect()
        await connection.close()
        await asyncio.sleep(HELLO_TIMEOUT_S)
        assert not pool.hub.core.nodes


@pytest.mark.parametrize("sentence", ["short", "é" * 200, "字" * 200, "x" * 122 + "é"])
def test_a_close_reason_fits_its_frame_and_stays_text(sentence: str) -> None:
    reason = close_reason(sentence)
    assert sentence.startswith(reason)
    assert MAX_CLOSE_REASON_BYTES - 3 < len(reason.encode()) <= MAX_CLOSE_REASON_BYTES or reason == sentence
