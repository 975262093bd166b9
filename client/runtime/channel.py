"""Packets over the inherited socket. Never blocked by an agent that is itself busy writing: it reads meanwhile."""

from __future__ import annotations

import select
import socket
from collections import deque
from time import monotonic

from client.ipc import AgentMessage, FramePacket, PacketReader, WorkerMessage, pack_frame, pack_message
from client.runtime.errors import ChannelClosedError
from protocol.frames import Frame, encode_frame

RECEIVE_BYTES = 2**20
MAX_UNSENT_BYTES = 32 * 2**20
"""Beyond this the worker waits for its agent instead of computing on."""
MAX_UNREAD_BYTES = 256 * 2**20
"""Received while it waits so. Then it does not read either: the agent never waits for us to read before it reads."""


class Channel:
    """The worker's end of the socket pair. Every method raises ChannelClosedError once the agent is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = PacketReader()
        self._received: list[AgentMessage | FramePacket] = []
        self._unsent: deque[memoryview] = deque()
        self._num_unsent_bytes = 0
        self._num_unread_bytes = 0

    def take(self, wait: bool, at_most_s: float | None = None) -> list[AgentMessage | FramePacket]:
        """All packets that have arrived, in order; with `wait`, at least one, unless none comes in `at_most_s`.

        Raises IpcError on anything else."""
        self._pump(timeout_s=0)
        until_s = None if at_most_s is None else monotonic() + at_most_s
        while wait and not self._received:
            rest_s = None if until_s is None else max(0.0, until_s - monotonic())
            self._pump(timeout_s=rest_s)
            wait = rest_s != 0.0
        packets, self._received = self._received, []
        self._num_unread_bytes = 0
        return packets

    def send_message(self, message: WorkerMessage) -> None:
        """Queue a message, and send as much as the socket takes."""
        self._send(pack_message(message))

    def send_frame(self, link: int, frame: Frame) -> None:
        """Queue a data frame for a link, and send as much as the socket takes."""
        self._send(pack_frame(link, encode_frame(frame)))

    def poll(self) -> None:
        """Notice a closed channel during long work, without losing what arrives."""
        self._pump(timeout_s=0)

    def _send(self, packet: bytes) -> None:
        self._unsent.append(memoryview(packet))
        self._num_unsent_bytes += len(packet)
        self._write()
        while self._num_unsent_bytes > MAX_UNSENT_BYTES:
            self._pump(timeout_s=None)

    def _pump(self, timeout_s: float | None) -> None:
        """Wait until the socket can be read or, if something is unsent, written; then do both."""
        writers = [self._socket] if self._unsent else []
        readers = [self._socket] if self._num_unread_bytes < MAX_UNREAD_BYTES or not writers else []
        readable, writable, _ = select.select(readers, writers, [], timeout_s)
        if writable:
            self._write()
        if readable:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosedError from error
        if not data:
            raise ChannelClosedError
        self._num_unread_bytes += len(data)
        self._received.extend(self._reader.from_agent(data))

    def _write(self) -> None:
        while self._unsent:
            try:
                num_sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosedError from error
            self._num_unsent_bytes -= num_sent
            rest = self._unsent.popleft()[num_sent:]
            if rest:
                self._unsent.appendleft(rest)
