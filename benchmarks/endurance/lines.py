"""A node's line to the coordinator and to its neighbours: a proxy that can be cut, slowed, or made to pass nothing on.

Nodes use it by the variable `ws_proxy` and the method CONNECT (RFC 9110, section 9.3.6), so that they dial the pool's
own address: their hello is signed for it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

PIECE_BYTES = 2**16


class Line:
    """Listens on a port of the system's choice; what dials by it is one node's.

    `delay_s` is added to each piece in each direction, and a piece is at most `piece_bytes`: together a rate."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.piece_bytes = PIECE_BYTES
        self.passes = asyncio.Event()
        self.passes.set()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """For the node's process."""
        assert self._server is not None, "it is open"
        port = self._server.sockets[0].getsockname()[1]
        return {"ws_proxy": f"http://127.0.0.1:{port}", "no_proxy": "", "NO_PROXY": ""}

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """All that runs over it now."""
        for writer in list(self._ends):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "it runs in one"
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            host, _, port = head.split()[1].decode().rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except (OSError, EOFError):  # whom it wants is away
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            with suppress(OSError):
                await writer.drain()
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            pumps = [self._pump(reader, far_writer), self._pump(far_reader, writer)]
            tasks = [asyncio.ensure_future(pump) for pump in pumps]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for pumping in tasks:
                pumping.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(self.piece_bytes):
                await self.passes.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
