"""How much the kernel may keep of what it cannot send yet."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from shell.unsent import MAX_UNSENT_BYTES, limit_unsent

needs_option = pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such option")


async def taken_by_the_kernel(limited: bool) -> int:
    """Bytes that a socket takes, without a buffer of our own, for a listener that reads nothing."""
    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0, limit=1)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        if limited:
            limit_unsent(writer.transport)
        raw = socket.socket(fileno=socket.dup(writer.get_extra_info("socket").fileno()))
        with raw, contextlib.suppress(BlockingIOError):
            raw.setblocking(False)
            num_bytes = 0
            while True:
                num_bytes += raw.send(bytes(2**16))
        return num_bytes
    finally:
        writer.transport.abort()
        server.close()
        for other in connected:
            other.transport.abort()


@needs_option
async def test_a_limited_socket_keeps_little_beside_what_is_under_way() -> None:
    limited, unlimited = await taken_by_the_kernel(True), await taken_by_the_kernel(False)
    assert limited < unlimited


async def test_a_transport_without_a_socket_of_the_internet_is_left_alone() -> None:
    near, far = socket.socketpair()
    with far:
        _, writer = await asyncio.open_connection(sock=near)
        limit_unsent(writer.transport)
        writer.transport.abort()


def test_the_limit_is_a_fraction_of_a_second_of_a_slow_line() -> None:
    assert MAX_UNSENT_BYTES / 125_000 < 2.0, "at one megabit per second"
