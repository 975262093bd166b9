"""The agent's connection to the coordinator: challenge, hello, messages both ways, data frames for the relay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from client.errors import JoinError
from protocol import PROTOCOL_VERSION
from protocol.env import (
    Access,
    Connection,
    ConnectionClosed,
    Env,
    NetworkError,
    NotAWebsocket,
    OutgoingConnection,
    WrongCertificate,
)
from protocol.errors import CloseCode, MessageError
from protocol.frames import FrameLimits
from protocol.join_link import JoinLink
from protocol.messages import (
    Challenge,
    CoordinatorMessage,
    Hello,
    NodeMessage,
    Refused,
    Welcome,
    decode_coordinator_message,
    encode_message,
)
from protocol.pieces import pieces_of
from shell.lanes import Lanes, Stuck, send_or_give_up

log = logging.getLogger(__name__)

M = TypeVar("M")
Greet = Callable[[Challenge], Hello]

MAX_MESSAGE_BYTES = FrameLimits().max_payload_bytes + 2**20
MAX_CONTROL_BYTES = 16 * 2**20
MAX_RELAY_BYTES = 64 * 2**20
"""Rows that may wait for the coordinator to relay them: a minute of a line of ten megabits per second."""
WELCOME_TIMEOUT_S = 20.0
TRY_AGAIN_LATER = 1013
"""IANA's registry of websocket close codes."""
LEAVE_TIMEOUT_S = 2.0
"""For the good-bye: a coordinator that does not take it must not keep a volunteer waiting."""
FINAL_CODES: dict[int, tuple[str, str]] = {
    CloseCode.PROTOCOL_VERSION: ("refused", "The pool refuses this version of DecentLLM."),
    CloseCode.BAD_MESSAGE: ("refused", "The pool refuses this node without a reason."),
    CloseCode.NOT_ALLOWED: ("not_allowed", "The pool does not accept this node."),
    CloseCode.REPLACED: ("replaced", "Another agent with this node's identity has joined the pool."),
}
"""Closes that trying again cannot change: a code, and a sentence for one without a reason."""
AT_THE_DOOR = frozenset({"wrong_certificate", "not_a_pool"})
"""Codes of JoinErrors that do not come from the pool itself: what stands between us and a pool that had us before
may go away again (a hotel's login page, a proxy without its server)."""


class Link:
    """One connection, from welcome to end."""

    def __init__(self, connection: OutgoingConnection, welcome: Welcome) -> None:
        self.welcome = welcome
        self._connection = connection
        self._lanes = Lanes(MAX_CONTROL_BYTES, MAX_RELAY_BYTES)
        self._closing: asyncio.Task[None] | None = None

    def tell(self, message: NodeMessage) -> None:
        """Goes before all rows. A coordinator that takes none of it for long is left."""
        if not self._lanes.put_urgent(encode_message(message)):
            self._give_up()

    def relay(self, frame: bytes) -> bool:
        """Whether there was room for it; if not, what it was part of is broken. It goes in pieces, so that no message
        waits long behind it."""
        return all(self._lanes.put_bulk(piece) for piece in pieces_of(frame))

    async def run(self, on_message: Callable[[CoordinatorMessage], None], on_frame: Callable[[bytes], None]) -> None:
        """Read and write until the connection ends (ConnectionClosed) or the pool refuses us (JoinError)."""
        writer = asyncio.create_task(self._write())
        try:
            await self._read(on_message, on_frame)
        except ConnectionClosed as error:
            raise _final(error) or error from None
        finally:
            writer.cancel()

    async def ping(self) -> float:
        """Seconds of a round trip to the coordinator. Raises ConnectionClosed."""
        return await self._connection.ping()

    def drop(self, reason: str) -> None:
        """End it. The reader sees the end, as of any other broken connection."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._connection.close(TRY_AGAIN_LATER, reason))

    async def leave(self, message: NodeMessage) -> None:
        """Say a last message and close; within a few seconds, whatever the coordinator does."""
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._connection.send(encode_message(message))
        except (ConnectionClosed, TimeoutError):
            log.info("the coordinator did not hear our good-bye")
        await self._connection.close(1000, "leaving")

    async def _read(self, on_message: Callable[[CoordinatorMessage], None], on_frame: Callable[[bytes], None]) -> None:
        while True:
            data = await self._connection.recv()
            if isinstance(data, bytes):
                on_frame(data)
            else:
                on_message(_checked(data))

    async def _write(self) -> None:
        try:
            while True:
                await send_or_give_up(self._connection.send, await self._lanes.get())
        except ConnectionClosed:  # the reader sees the same and ends the link
            return
        except Stuck:
            self._give_up()

    def _give_up(self) -> None:
        if self._closing is None:
            log.warning("the coordinator does not take our messages (%d bytes wait)", self._lanes.num_bytes)
            self.drop("nothing is taken")


async def open_link(url: str, link: JoinLink, greet: Greet, env: Env) -> Link:
    """Connect to the websocket at `url` of the pool that `link` names, answer its challenge and be welcomed.

    Raises NetworkError (try again later) or JoinError (it would not help)."""
    connection = await _connect(url, link, env)
    try:
        return Link(connection, await _welcome(connection, greet))
    except BaseException:
        await connection.close()  # also when cancelled: the pool must not take us for a node that is there
        raise


async def _welcome(connection: Connection, greet: Greet) -> Welcome:
    try:
        # Not wait_for: Python 3.11's swallows a cancellation that comes together with the answer (gh-86296).
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            challenge = _spoken_here(await _answer(connection, Challenge))
            await connection.send(encode_message(greet(challenge)))
            return await _answer(connection, Welcome)
    except ConnectionClosed as error:
        raise _final(error) or NetworkError(f"the coordinator closed the connection: {error}") from None
    except TimeoutError:
        raise NetworkError("the coordinator does not answer") from None


async def _connect(url: str, link: JoinLink, env: Env) -> OutgoingConnection:
    try:
        return await env.network.connect(url, MAX_MESSAGE_BYTES, Access(pin=link.pin), is_mixed=True)
    except WrongCertificate as error:
        log.info("%s", error)
        raise JoinError("wrong_certificate", _wrong_certificate(link)) from None
    except NotAWebsocket as error:
        log.info("%s", error)
        raise _not_a_pool() from None


def _wrong_certificate(link: JoinLink) -> str:
    if link.pin:
        return (
            f"The server at {link.host_and_port} is not the pool that the join link names, or its certificate is out of"
            " date: ask the pool's operator for a new link."
        )
    if urlsplit(link.url).scheme == "http":
        return (
            f"The server at {link.host_and_port} takes secure connections only: use the pool's full join link, which"
            " begins with decentllm://."
        )
    return (
        f"No public authority vouches for the server at {link.host_and_port}: use the pool's full join link, which"
        " begins with decentllm://."
    )


def _not_a_pool() -> JoinError:
    return JoinError("not_a_pool", "What answers at this address is not a DecentLLM coordinator.")


async def _answer(connection: Connection, kind: type[M]) -> M:
    message = _checked(await connection.recv())
    if not isinstance(message, kind):
        raise _not_a_pool()
    return message


def _spoken_here(challenge: Challenge) -> Challenge:
    """Raises JoinError if this build speaks no version that the pool speaks."""
    if PROTOCOL_VERSION in challenge.protocol_versions:
        return challenge
    older = max(challenge.protocol_versions) < PROTOCOL_VERSION
    advice = "its operator must update it" if older else "update DecentLLM"
    spoken = ", ".join(str(version) for version in challenge.protocol_versions)
    sentence = f"The pool speaks version {spoken} of the protocol, this program version {PROTOCOL_VERSION}: {advice}."
    raise JoinError("protocol_version", sentence)


def _final(error: ConnectionClosed) -> JoinError | None:
    """None for a close that another try may change."""
    if error.code not in FINAL_CODES:
        return None
    code, sentence = FINAL_CODES[error.code]
    return JoinError(code, sentence if code == "replaced" else error.reason or sentence)


def _checked(data: str | bytes) -> CoordinatorMessage:
    """A control message; raises JoinError if it is a refusal, or not understood (then versions do not match)."""
    try:
        message = decode_coordinator_message(data)
    except MessageError as error:
        raise JoinError("not_understood", f"The coordinator says something this version cannot read: {error}") from None
    if isinstance(message, Refused):
        raise JoinError(message.code, message.message)
    return message
