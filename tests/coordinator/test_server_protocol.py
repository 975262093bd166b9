"""uvicorn's protocols with deadlines, on a transport and a loop of paper."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from coordinator.handshake import MAX_HELLO_BYTES
from coordinator.server_protocol import (
    BODY_S,
    HEAD_S,
    NOT_TAKEN_S,
    HttpProtocol,
    Newest,
    WebsocketProtocol,
    guarded_http,
)

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
UPGRADE = (
    b" /node HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


class PaperTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = ""
        self.protocol: asyncio.BaseProtocol | None = None
        self.num_unwritten = 0

    def get_write_buffer_size(self) -> int:
        return self.num_unwritten

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 8000), "peername": ("10.0.0.1", 9)}.get(name, default)

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = self.ended or "aborted"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        """Nothing is read here."""

    def resume_reading(self) -> None:
        """Nothing is read here."""


class PaperTimer:
    def __init__(self, delay_s: float, run: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.run = run
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class PaperLoop:
    """Keeps what is to be run later; the tests say when later is. Requests are never answered."""

    def __init__(self) -> None:
        self.timers: list[PaperTimer] = []

    def call_later(self, delay_s: float, run: Callable[[], None]) -> PaperTimer:
        self.timers.append(PaperTimer(delay_s, run))
        return self.timers[-1]

    def create_task(self, coroutine: Any) -> asyncio.Future[None]:
        coroutine.close()
        return cast("asyncio.Future[None]", asyncio.Future())

    @property
    def waiting(self) -> list[PaperTimer]:
        return [timer for timer in self.timers if not timer.is_cancelled]


@pytest.fixture
def settings() -> uvicorn.Config:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    config = uvicorn.Config(app, http=guarded_http(2), ws=WebsocketProtocol, ws_max_size=2**20, log_config=None)
    config.load()
    return config


@pytest.fixture
async def loop() -> PaperLoop:
    """In a running loop: uvicorn's protocols make events."""
    return PaperLoop()


Connect = Callable[[], tuple[HttpProtocol, PaperTransport]]


@pytest.fixture
async def connect(settings: uvicorn.Config, loop: PaperLoop) -> Connect:
    state = ServerState()

    def connected() -> tuple[HttpProtocol, PaperTransport]:
        protocol = cast(Any, settings.http_protocol_class)(settings, state, {}, loop)
        transport = PaperTransport()
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport

    return connected


async def test_a_connection_that_says_nothing_is_let_go(connect: Connect, loop: PaperLoop) -> None:
    _, transport = connect()
    [deadline] = loop.waiting
    assert deadline.delay_s == HEAD_S
    deadline.run()
    assert transport.ended == "aborted"


async def test_a_head_that_trickles_does_not_put_its_deadline_off(connect: Connect, loop: PaperLoop) -> None:
    protocol, _ = connect()
    before = loop.waiting
    for byte in HEAD:
        protocol.data_received(bytes([byte]))
    assert loop.waiting == before


async def test_a_body_has_a_deadline_of_its_own_and_a_whole_request_none(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    protocol.data_received(HEAD + b"\r\nab")
    [deadline] = loop.waiting
    assert deadline.delay_s == BODY_S
    protocol.data_received(b"c")
    assert loop.waiting == [deadline]
    protocol.data_received(b"d")
    assert loop.waiting == []
    assert transport.ended == ""


async def test_a_lost_connection_leaves_no_deadline(connect: Connect, loop: PaperLoop) -> None:
    protocol, _ = connect()
    protocol.data_received(HEAD)
    protocol.connection_lost(None)
    assert loop.waiting == []
    assert len(protocol.silent) == 0


async def test_too_many_silent_connections_end_the_oldest_and_none_that_has_spoken(connect: Connect) -> None:
    busy, busy_transport = connect()
    busy.data_received(HEAD + b"\r\n")
    silent = [connect()[1] for _ in range(3)]
    assert [transport.ended for transport in silent] == ["aborted", "", ""]
    assert busy_transport.ended == ""


async def test_an_upgraded_connection_has_no_deadline_here(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET" + UPGRADE + b"\r\n")
    assert isinstance(transport.protocol, WebsocketProtocol)
    assert loop.waiting == []
    assert len(protocol.silent) == 0


async def test_an_upgrade_by_another_method_is_a_request_like_any_other(connect: Connect) -> None:
    protocol, transport = connect()
    protocol.data_received(b"POST" + UPGRADE + b"Content-Length: 0\r\n\r\n")
    assert transport.protocol is protocol


async def test_an_upgrade_that_the_websocket_library_refuses_is_answered_and_closed(connect: Connect) -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET" + UPGRADE + b"X: 1\r\n" * 200 + b"\r\n")
    assert b" 431 " in transport.written.partition(b"\r\n")[0]
    assert transport.ended == "closed"


# ---------------------------------------------------------------- who takes nothing


def stops_reading(protocol: HttpProtocol, transport: PaperTransport, loop: PaperLoop) -> PaperTimer:
    """A client that has asked, and whose answer cannot be written any more; the timer that watches it."""
    protocol.data_received(HEAD + b"\r\nabcd")
    transport.num_unwritten = 70_000
    protocol.pause_writing()
    [timer] = loop.waiting
    assert timer.delay_s == NOT_TAKEN_S
    return timer


async def test_a_client_that_takes_nothing_of_its_answer_is_cut(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    stops_reading(protocol, transport, loop).run()
    assert transport.ended == "aborted", "closing would wait for what is left to be sent"


async def test_a_client_that_takes_a_little_is_waited_for_again(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    timer = stops_reading(protocol, transport, loop)
    transport.num_unwritten -= 1
    timer.run()
    assert transport.ended == ""
    loop.waiting[-1].run()
    assert transport.ended == "aborted"


async def test_a_client_that_reads_on_is_left_alone(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    stops_reading(protocol, transport, loop)
    protocol.resume_writing()
    assert loop.waiting == []
    assert transport.ended == ""


async def test_nobody_watches_a_connection_that_is_gone(connect: Connect, loop: PaperLoop) -> None:
    protocol, transport = connect()
    stops_reading(protocol, transport, loop)
    protocol.connection_lost(None)
    assert loop.waiting == []


# ---------------------------------------------------------------- websockets


@pytest.fixture
async def websocket(connect: Connect) -> tuple[WebsocketProtocol, PaperTransport]:
    protocol, transport = connect()
    protocol.data_received(b"GET" + UPGRADE + b"\r\n")
    websocket = transport.protocol
    assert isinstance(websocket, WebsocketProtocol)
    websocket.loop = websocket.taken._loop = cast(Any, PaperLoop())
    await websocket.send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    assert (await websocket.receive())["type"] == "websocket.connect"
    transport.written = b""
    return websocket, transport


def frame(data: bytes, opcode: int = 1) -> bytes:
    """A whole message from a client, masked with zeros (RFC 6455, section 5.2)."""
    return bytes([0x80 | opcode, 0x80 | 127]) + len(data).to_bytes(8, "big") + bytes(4) + data


async def test_the_first_message_is_small_and_those_behind_it_are_not(websocket: Any) -> None:
    protocol, transport = websocket
    protocol.data_received(frame(b"x" * MAX_HELLO_BYTES))
    protocol.data_received(frame(b"y" * 2 * MAX_HELLO_BYTES))
    assert [len((await protocol.receive())["text"]) for _ in range(2)] == [MAX_HELLO_BYTES, 2 * MAX_HELLO_BYTES]
    assert transport.ended == ""


async def test_a_first_message_that_is_too_large_is_refused_before_it_is_read(websocket: Any) -> None:
    protocol, transport = websocket
    protocol.data_received(frame(b"x" * (MAX_HELLO_BYTES + 1))[:14])
    assert (await protocol.receive())["code"] == 1009
    assert transport.written.startswith(b"\x88")
    assert transport.ended == "closed"


async def test_text_that_is_no_utf8_ends_the_connection_without_a_line_in_the_log(
    websocket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    protocol, transport = websocket
    protocol.data_received(frame(b"\xff\xfe"))
    assert (await protocol.receive())["code"] == 1007
    assert transport.ended == "closed"
    assert not caplog.records


async def test_a_node_that_is_refused_with_a_status_leaves_no_line_in_the_log(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET" + UPGRADE + b"\r\n")
    websocket = cast(Any, transport.protocol)
    caplog.clear()

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})
        await send({"type": "websocket.http.response.body", "body": b""})

    websocket.app = refuse
    await websocket.run_asgi()
    assert b" 503 " in transport.written and b"retry-after: 5" in transport.written.lower()
    assert transport.ended == "closed"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# ---------------------------------------------------------------- the newest


def test_of_many_the_newest_stay() -> None:
    newest = Newest[str](2)
    assert [newest.add(item) for item in "abac"] == [None, None, None, "b"]
    newest.discard("a")
    newest.discard("z")
    assert (len(newest), newest.add("d")) == (1, None)


async def test_a_node_that_takes_nothing_is_cut(websocket: tuple[WebsocketProtocol, PaperTransport]) -> None:
    protocol, transport = websocket
    loop = cast(PaperLoop, protocol.loop)
    before = len(loop.waiting)
    transport.num_unwritten = 100
    protocol.pause_writing()
    protocol.resume_writing()
    assert len(loop.waiting) == before
    protocol.pause_writing()
    loop.waiting[-1].run()
    assert transport.ended == "aborted"
