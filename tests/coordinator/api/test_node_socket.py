"""A websocket of the ASGI server as the core's Connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from coordinator.api.node_socket import SocketConnection
from protocol.env import Connection, ConnectionClosed

TEXT: Message = {"type": "websocket.receive", "text": "hi"}
GONE: Message = {"type": "websocket.disconnect", "code": 4409, "reason": "replaced"}


async def opened(incoming: list[Message], on_send: Callable[[Message], None] = lambda _: None) -> SocketConnection:
    messages = iter([{"type": "websocket.connect"}, *incoming])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        on_send(message)

    websocket = WebSocket({"type": "websocket", "path": "/node", "headers": []}, receive, send)
    await websocket.accept()
    return SocketConnection(websocket)


async def test_text_and_bytes_come_as_they_are() -> None:
    connection: Connection = await opened(
        [TEXT, {"type": "websocket.receive", "bytes": b"\x00", "text": None}, {"type": "websocket.receive", "text": ""}]
    )
    assert [await connection.recv() for _ in range(3)] == ["hi", b"\x00", ""]


async def test_text_and_bytes_are_sent_as_what_they_are() -> None:
    sent: list[Message] = []
    connection = await opened([], sent.append)
    await connection.send("a")
    await connection.send(b"b")
    assert [(m.get("text"), m.get("bytes")) for m in sent[1:]] == [("a", None), (None, b"b")]


async def test_the_other_sides_close_is_raised_with_its_code() -> None:
    connection = await opened([GONE])
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    assert (caught.value.code, caught.value.reason) == (4409, "replaced")
    with pytest.raises(ConnectionClosed):
        await connection.recv()
    await connection.close()


async def test_a_close_without_code_or_reason_is_understood() -> None:
    connection = await opened([{"type": "websocket.disconnect"}])
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    assert (caught.value.code, caught.value.reason) == (1006, "")


async def test_nothing_can_be_sent_after_closing_and_closing_twice_is_harmless() -> None:
    sent: list[Message] = []
    connection = await opened([], sent.append)
    await connection.close(4406, "version")
    await connection.close(4406, "version")
    assert sent[1:] == [{"type": "websocket.close", "code": 4406, "reason": "version"}]
    with pytest.raises(ConnectionClosed):
        await connection.send("x")


async def test_a_connection_that_broke_while_sending_is_closed() -> None:
    def fail(message: Message) -> None:
        if message["type"] == "websocket.send":
            raise OSError("broken pipe")

    connection = await opened([], fail)
    with pytest.raises(ConnectionClosed):
        await connection.send("x")
