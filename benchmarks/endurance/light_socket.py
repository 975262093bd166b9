"""A websocket client that costs next to nothing, so that one process can play thousands of nodes: whole messages only,
and a mask of zeros (RFC 6455, section 5.3, wants one that is unpredictable against scripts in browsers)."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import time
from collections.abc import Callable

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN = 0x80
MASKED = 0x80
NO_MASK = b"\0\0\0\0"


class LightSocket(asyncio.Protocol):
    """`on_message` gets each message; `on_close` is called once, whoever closed."""

    def __init__(self, on_message: Callable[[str | bytes], None], on_close: Callable[[], None]) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._on_close = on_close
        self._buffer = bytearray()
        self._is_open = False
        self._transport: asyncio.Transport | None = None
        self._pinged_at_s = 0.0
        self._pong: asyncio.Future[float] | None = None

    async def connect(self, port: int, source: str) -> None:
        """To the pool on this machine, from one of its own addresses. Raises OSError."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port, local_addr=(source, 0))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /node HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._write("\r\n".join(lines).encode())
        await self.opened

    def send(self, data: str | bytes) -> None:
        """Nothing is done once it has closed."""
        kind, body = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, data)
        self._frame(kind, body)

    async def ping(self) -> float:
        """Seconds of a round trip; inf if it closes meanwhile."""
        self._pong = asyncio.get_running_loop().create_future()
        self._pinged_at_s = time.monotonic()
        self._frame(PING, b"")
        return await self._pong

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "of a stream"
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_open and not self._take_head():
            return
        while self._take_frame():
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionRefusedError("closed before the websocket was open"))
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(float("inf"))
        self._transport = None
        self._on_close()

    # ------------------------------------------------------------ parts

    def _take_head(self) -> bool:
        head, separator, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not separator:
            return False
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.close()
            return False
        self._buffer = bytearray(rest)
        self._is_open = True
        if not self.opened.done():
            self.opened.set_result(None)
        return True

    def _take_frame(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        size, start = buffer[1] & 0x7F, 2
        if size == 126:
            size, start = (struct.unpack_from(">H", buffer, 2)[0], 4) if len(buffer) >= 4 else (2**62, 4)
        elif size == 127:
            size, start = (struct.unpack_from(">Q", buffer, 2)[0], 10) if len(buffer) >= 10 else (2**62, 10)
        if len(buffer) < start + size:
            return False
        kind, body = buffer[0] & 0x0F, bytes(buffer[start : start + size])
        del buffer[: start + size]
        self._take(kind, body)
        return True

    def _take(self, kind: int, body: bytes) -> None:
        if kind == TEXT:
            self._on_message(body.decode())
        elif kind == BINARY:
            self._on_message(body)
        elif kind == PING:
            self._frame(PONG, body)
        elif kind == PONG and self._pong is not None and not self._pong.done():
            self._pong.set_result(time.monotonic() - self._pinged_at_s)
        elif kind == CLOSE:
            self.close()

    def _frame(self, kind: int, body: bytes) -> None:
        size = len(body)
        if size < 126:
            head = struct.pack(">BB", FIN | kind, MASKED | size)
        elif size < 2**16:
            head = struct.pack(">BBH", FIN | kind, MASKED | 126, size)
        else:
            head = struct.pack(">BBQ", FIN | kind, MASKED | 127, size)
        self._write(head + NO_MASK + body)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
