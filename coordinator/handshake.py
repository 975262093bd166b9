"""The first words on a node's connection: a challenge, a hello that answers it, or a refusal that says why.

What is wrong is named in this order: the hello's version (another version may look different in every other way), its
form, the id that does not follow from the key, the signature.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from protocol import SUPPORTED_VERSIONS
from protocol.env import Connection, ConnectionClosed, Env
from protocol.errors import CloseCode, MessageError, MessageFault
from protocol.identity import hello_bytes, node_id_of
from protocol.messages import Challenge, Hello, Refused, claimed_version, decode_node_message, encode_message
from protocol.pause import PoolDefaults
from shell.keys import is_signed_by

HELLO_TIMEOUT_S = 10.0
MAX_HELLO_BYTES = 64 * 2**10
"""Sixty-four devices fit several times over; nobody is known yet who says it."""
NONCE_BYTES = 32
TRY_AGAIN_LATER = 1013
"""Websocket close code of the IANA registry."""
MAX_CLOSE_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node is not welcome: a code for programs, a sentence for its owner."""

    close_code: CloseCode
    code: str
    sentence: str


class Handshake:
    """Knows what the pool tells a newcomer."""

    def __init__(self, env: Env, pool_name: str, defaults: PoolDefaults) -> None:
        self._env = env
        self._pool_name = pool_name
        self._defaults = defaults

    async def run(self, connection: Connection, audience: str) -> Hello | None:
        """The hello of a node that holds its key, or None: then it has been told why not, or is gone.

        `audience` is what the node must have called this coordinator: the Host header of its connection."""
        nonce = self._env.random.token_hex(NONCE_BYTES)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):  # wait_for can lose a cancellation on Python 3.11 (gh-86296)
                await connection.send(encode_message(self._challenge(nonce)))
                data = await connection.recv()
        except ConnectionClosed:
            return None
        except TimeoutError:  # a slow machine may try again, so this is no BAD_MESSAGE
            await connection.close(TRY_AGAIN_LATER, f"no hello within {HELLO_TIMEOUT_S:.0f} s")
            return None
        answer = checked_hello(data, nonce, audience)
        if isinstance(answer, Refusal):
            await refuse(connection, answer)
            return None
        return answer

    def _challenge(self, nonce: str) -> Challenge:
        return Challenge(tuple(sorted(SUPPORTED_VERSIONS)), nonce, self._pool_name, self._defaults)


async def refuse(connection: Connection, refusal: Refusal) -> None:
    """Tell the node why, and close."""
    with contextlib.suppress(ConnectionClosed):  # it left before it was told why
        await connection.send(encode_message(Refused(refusal.code, refusal.sentence[:400])))
        await connection.close(refusal.close_code, close_reason(refusal.sentence))


def close_reason(sentence: str) -> str:
    """As much of the sentence as a close frame takes."""
    return sentence.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")


def bad_message(error: MessageError) -> Refusal:
    """For whatever cannot be read, now or later on the connection."""
    return Refusal(CloseCode.BAD_MESSAGE, "bad_message", str(error))


def checked_hello(data: str | bytes, nonce: str, audience: str) -> Hello | Refusal:
    """The hello if it is one, of a version that is spoken, and signed by the key that its id follows from."""
    version = claimed_version(data) if len(data) <= MAX_HELLO_BYTES else None
    if version is not None and version not in SUPPORTED_VERSIONS:
        return Refusal(CloseCode.PROTOCOL_VERSION, "protocol_version", _version_sentence(version))
    try:
        hello = _decoded(data)
    except MessageError as error:
        return bad_message(error)
    if hello.node_id != node_id_of(hello.public_key):
        sentence = "The node's id does not follow from its key; update the app, or remove its key file."
        return Refusal(CloseCode.NOT_ALLOWED, "wrong_node_id", sentence)
    if not is_signed_by(hello.public_key, hello.signature, hello_bytes(nonce, audience, hello.node_id)):
        sentence = (
            "The node did not prove that it holds its key; a proxy in between must pass the Host header on as it is."
        )
        return Refusal(CloseCode.NOT_ALLOWED, "bad_signature", sentence)
    return hello


def _decoded(data: str | bytes) -> Hello:
    """The first message of a node. Raises MessageError."""
    if isinstance(data, bytes):
        raise MessageError(MessageFault.UNEXPECTED, "the first message must be a hello in text, not bytes")
    if len(data) > MAX_HELLO_BYTES:
        raise MessageError(MessageFault.TOO_LARGE, f"a hello of {len(data)} bytes, limit {MAX_HELLO_BYTES}")
    message = decode_node_message(data)
    if not isinstance(message, Hello):
        raise MessageError(MessageFault.UNEXPECTED, "the first message must be a hello")
    if len({spec.device_id for spec in message.devices}) < len(message.devices):
        raise MessageError(MessageFault.INVALID, "two devices have the same device_id - at `$.devices`")
    return message


def _version_sentence(version: int) -> str:
    supported = ", ".join(str(v) for v in sorted(SUPPORTED_VERSIONS))
    return f"This pool speaks protocol version {supported}, the node speaks {version}; update the older one."
