"""uvicorn's two protocols with the limits that they lack: a stranger who says little, or slowly, or too much at first,
holds a connection for seconds and a few kilobytes only.

A request's head must come within HEAD_S and its body within BODY_S, however evenly the bytes trickle. Of connections
that have sent no head yet MAX_SILENT are kept; one more ends the oldest. A websocket's first message may have
MAX_HELLO_BYTES: until then nobody knows who it is. Whoever takes nothing of what is written for NOT_TAKEN_S is cut.
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode as WebsocketCode

from coordinator.handshake import MAX_HELLO_BYTES
from shell.unsent import limit_unsent

HEAD_S = 10.0
BODY_S = 60.0
"""For 4 MiB: half a megabit per second is enough."""
MAX_SILENT = 256
NOT_TAKEN_S = 30.0

T = TypeVar("T")


class Newest(Generic[T]):
    """At most so many of something, the newest ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[T, None] = {}

    def add(self, item: T) -> T | None:
        """Keep it as the newest; returns the one that had to go for it."""
        self._kept.pop(item, None)
        oldest = next(iter(self._kept)) if len(self._kept) >= self._limit else None
        if oldest is not None:
            del self._kept[oldest]
        self._kept[item] = None
        return oldest

    def discard(self, item: T) -> None:
        """Harmless when it is not there."""
        self._kept.pop(item, None)

    def __len__(self) -> int:
        return len(self._kept)


class TakenWatch:
    """Ends a connection whose other side takes nothing while something is left to write; slowly is good enough.

    uvicorn waits for such a client for ever, and closing would wait, too, for what is left to be sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._num_left = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on something must be taken every NOT_TAKEN_S."""
        self.stop()
        self._num_left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(NOT_TAKEN_S, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._num_left:
            self.start()
        else:
            self._timer = None
            self._transport.abort()


class HttpProtocol(H11Protocol):
    """One connection. Use `guarded_http`."""

    silent: Newest[HttpProtocol]
    taken: TakenWatch
    _deadline: asyncio.TimerHandle | None = None
    _awaited: object = None
    """What the deadline is for: h11.IDLE (a head), h11.SEND_BODY, or nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.taken = TakenWatch(self.loop, transport)
        self._watch()
        oldest = self.silent.add(self)
        if oldest is not None:
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.taken.start()

    def resume_writing(self) -> None:
        self.taken.stop()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.taken.stop()
        self._await(None)
        self.silent.discard(self)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._await(None)
        self.silent.discard(self)
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """RFC 6455, section 4.1: a GET. The websocket library would answer nothing to another method."""
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def _watch(self) -> None:
        state = self.conn.their_state
        if state is not h11.IDLE:
            self.silent.discard(self)
        is_upgraded = self.transport.get_protocol() is not self
        is_between = state is h11.IDLE and self.timeout_keep_alive_task is not None  # uvicorn's own deadline
        is_awaited = state in (h11.IDLE, h11.SEND_BODY) and not (is_upgraded or is_between)
        self._await(state if is_awaited else None)

    def _await(self, what: object) -> None:
        """The deadline counts from when the wait began: what trickles in does not put it off."""
        if what is self._awaited:
            return
        self._awaited = what
        if self._deadline is not None:
            self._deadline.cancel()
        delay_s = HEAD_S if what is h11.IDLE else BODY_S
        self._deadline = None if what is None else self.loop.call_later(delay_s, self._give_up)

    def _give_up(self) -> None:
        self.transport.abort()


def guarded_http(max_silent: int = MAX_SILENT) -> type[HttpProtocol]:
    """The protocol class of one server, whose connections know of each other (uvicorn makes one for each of them)."""

    class Guarded(HttpProtocol):
        silent = Newest(max_silent)

    return Guarded


class WebsocketProtocol(WebSocketsSansIOProtocol):
    """A websocket whose first message is small, and whose faults are the sender's: they make no noise in our log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.max_message_size = MAX_HELLO_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.taken = TakenWatch(self.loop, self.transport)
        limit_unsent(self.transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.taken.start()

    def resume_writing(self) -> None:
        self.taken.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.taken.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # uvicorn hands the whole head over at once, and the library refused it
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    async def send(self, message: Any) -> None:
        """Whoever was refused with a status has got an answer. uvicorn takes it for an application that forgot to give
        one, and has a line about each in the log: thousands when all nodes come back at once."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        self.conn.max_message_size = self.config.ws_max_size
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            self.conn.fail(WebsocketCode.INVALID_DATA, "a text message must be UTF-8")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
