"""A real worker process at the other end of a socket pair, driven step by step by a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TypeVar

import msgspec

from client.ipc import (
    AgentMessage,
    FramePacket,
    PacketReader,
    WorkDone,
    WorkerMessage,
    WorkerReady,
    pack_frame,
    pack_message,
)
from protocol.frames import Frame, encode_frame

REPOSITORY = Path(__file__).parents[3]
TIMEOUT_S = 60.0
M = TypeVar("M")


class WorkerProcess:
    """Start with `with`; `receive` waits for the next packet. Counts of work, which may come at any time, are kept in
    `work`."""

    def __init__(self, *arguments: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(TIMEOUT_S)
        command = [sys.executable, "-m", "client.runtime", "--channel", str(theirs.fileno()), "--device", "cpu"]
        environment = {**os.environ, "DECENTLLM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=REPOSITORY, env=environment, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        self._reader = PacketReader()
        self.work: list[WorkDone] = []
        self._packets: deque[WorkerMessage | FramePacket] = deque()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.communicate()

    def ready(self) -> WorkerReady:
        return self.expect(WorkerReady)

    def send(self, message: AgentMessage) -> None:
        self.socket.sendall(pack_message(message))

    def send_frame(self, frame: Frame) -> None:
        self.socket.sendall(pack_frame(0, encode_frame(frame)))

    def send_bytes(self, data: bytes) -> None:
        """A frame's bytes as they came from another worker."""
        self.socket.sendall(pack_frame(0, data))

    def receive(self) -> WorkerMessage | FramePacket:
        while not self._packets:
            data = self.socket.recv(2**20)
            assert data, "the worker closed its socket"
            self._packets.extend(packet for packet in self._reader.from_worker(data) if not self._keep(packet))
        return self._packets.popleft()

    def expect(self, kind: type[M]) -> M:
        packet = self.receive()
        assert isinstance(packet, kind), packet
        return packet

    def _keep(self, packet: WorkerMessage | FramePacket) -> bool:
        if isinstance(packet, WorkDone):
            self.work.append(packet)
        return isinstance(packet, WorkDone)

    def until_work(self, num_steps: int) -> WorkDone:
        """The counts, once there are so many steps in all; nothing else may come meanwhile."""
        while sum(done.num_steps for done in self.work) < num_steps:
            self._packets.extend(p for p in self._reader.from_worker(self.socket.recv(2**20)) if not self._keep(p))
            assert not self._packets
        parts = [msgspec.structs.astuple(done) for done in self.work]
        return WorkDone(*(sum(column) for column in zip(*parts, strict=True)))

    def finish(self) -> tuple[int, str, str]:
        """Close the socket and wait: (exit code, standard output, standard error)."""
        self.socket.close()
        output, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, output, errors
