"""How much of a connection's data may wait in the kernel, where nothing can overtake it any more."""

from __future__ import annotations

import asyncio
import socket

MAX_UNSENT_BYTES = 128 * 2**10
"""Without a limit the kernel takes megabytes, for which a slow line needs seconds. Data under way do not count, so the
speed of a line that is not faster than this process stays what it is."""


def limit_unsent(transport: asyncio.BaseTransport) -> None:
    """Where the system knows how: Linux and macOS do (TCP_NOTSENT_LOWAT, https://lwn.net/Articles/560082/)."""
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if sock is not None and option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES)
