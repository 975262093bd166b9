"""The agent's connection to the coordinator: hello, messages both ways, data frames for the relay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from client.errors import JoinError
from protocol.env import Connection, ConnectionClosed, Env, NetworkError
from protocol.errors import CloseCode, MessageError
from protocol.frames import FrameLimits
from protocol.messages import (
    CoordinatorMessage,
    Hello,
    NodeMessage,
    Refused,
    Welcome,
    decode_coordinator_message,
    encode_message,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = FrameLimits().max_payload_bytes + 2**20
WELCOME_TIMEOUT_S = 20.0
LEAVE_TIMEOUT_S = 2.0
"""For the good-bye: a coordinator that does not take it must not keep a volunteer waiting."""
FINAL_CODES = (CloseCode.PROTOCOL_VERSION, CloseCode.BAD_MESSAGE)
"""Refusals that trying again cannot change."""


class Link:
    """One connection, from welcome to end."""

    def __init__(self, connection: Connection, welcome: Welcome) -> None:
        self.welcome = welcome
        self._connection = connection
        self._outbox: asyncio.Queue[str | bytes] = asyncio.Queue()

    def tell(self, message: NodeMessage) -> None:
        self._outbox.put_nowait(encode_message(message))

    def relay(self, frame: bytes) -> None:
        self._outbox.put_nowait(frame)

    async def run(self, on_message: Callable[[CoordinatorMessage], None], on_frame: Callable[[bytes], None]) -> None:
        """Read and write until the connection ends (ConnectionClosed) or the pool refuses us (JoinError)."""
        writer = asyncio.create_task(self._write())
        try:
            await self._read(on_message, on_frame)
        except ConnectionClosed as error:
            if error.code == CloseCode.REPLACED:
                raise JoinError("replaced", "Another agent with this node's identity has joined the pool.") from None
            raise
        finally:
            writer.cancel()

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
                await self._connection.send(await self._outbox.get())
        except ConnectionClosed:  # the reader sees the same and ends the link
            return


async def open_link(url: str, hello: Hello, env: Env) -> Link:
    """Connect and be welcomed. Raises NetworkError (try again later) or JoinError (it would not help)."""
    connection = await env.network.connect(url, MAX_MESSAGE_BYTES)
    try:
        return Link(connection, await _welcome(connection, hello))
    except BaseException:
        await connection.close()  # also when cancelled: the pool must not take us for a node that is there
        raise


async def _welcome(connection: Connection, hello: Hello) -> Welcome:
    try:
        # Not wait_for: Python 3.11's swallows a cancellation that comes together with the answer (gh-86296).
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            await connection.send(encode_message(hello))
            answer = _checked(await connection.recv())
    except ConnectionClosed as error:
        if error.code in FINAL_CODES:
            raise JoinError("refused", error.reason or "The pool refuses this node without a reason.") from None
        raise NetworkError(f"the coordinator closed the connection: {error}") from None
    except TimeoutError:
        raise NetworkError("the coordinator does not answer") from None
    if not isinstance(answer, Welcome):
        raise JoinError("unexpected_answer", "What answers at this address is not a DecentLLM coordinator.")
    return answer


def _checked(data: str | bytes) -> CoordinatorMessage:
    """A control message; raises JoinError if it is a refusal, or not understood (then versions do not match)."""
    try:
        message = decode_coordinator_message(data)
    except MessageError as error:
        raise JoinError("not_understood", f"The coordinator says something this version cannot read: {error}") from None
    if isinstance(message, Refused):
        raise JoinError(message.code, message.message)
    return message
