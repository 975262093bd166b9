"""The torch workers: started in their own interpreter, talked to over the inherited socket, killed to free memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from client.ipc import (
    IPC_VERSION,
    AgentMessage,
    FramePacket,
    IpcError,
    PacketReader,
    WorkerMessage,
    WorkerReady,
    pack_frame,
    pack_message,
)
from protocol.env import ConnectionClosed, Env, Process
from protocol.values import DeviceId
from shell.lanes import Lanes

log = logging.getLogger(__name__)

START_LIMIT_S = 180.0
"""For torch to be imported from a cold disk and the device to answer; a worker silent for longer is ended."""
END_GRACE_S = 3.0
"""For a worker whose socket has closed to end by itself; then it is killed."""
MAX_CONTROL_BYTES = 64 * 2**20
"""Messages that may wait for a worker; one that lets more come together is ended. A session's history is the longest
part of one, and a worker that computes a long prompt reads nothing meanwhile."""
MAX_ROW_BYTES = 256 * 2**20
"""Rows that may wait for a worker. Prompts of 32,000 tokens, at 8 KiB a row."""
NOT_STARTED = 127
"""The status reported for a worker that could not be started: a shell's for a command that it does not find."""
ENVIRONMENT = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA's own order is by speed; ours is NVML's, which is by bus (CUDA programming guide, environment variables)."""

OnMessage = Callable[[DeviceId, WorkerMessage], None]
OnFrame = Callable[[DeviceId, int, bytes], None]
OnExit = Callable[[DeviceId, int, str], None]


@dataclass(slots=True)
class _Worker:
    process: Process
    outbox: Lanes = field(default_factory=lambda: Lanes(MAX_CONTROL_BYTES, MAX_ROW_BYTES))
    reason: str = ""
    """Why it was ended, if we did that."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What workers say, and their end: the exit status and, if it was not their own doing, why."""

    on_message: OnMessage
    on_frame: OnFrame
    on_exit: OnExit


class Workers:
    """The worker processes of one node, one per device."""

    def __init__(self, command: Sequence[str], env: Env, callbacks: Callbacks) -> None:
        self._command = tuple(command)
        self._env = env
        self._callbacks = callbacks
        self._workers: dict[DeviceId, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def pids(self) -> dict[DeviceId, int]:
        return {device_id: worker.process.pid for device_id, worker in self._workers.items()}

    def start(self, device_id: DeviceId) -> None:
        """Start the device's worker; its first message is WorkerReady. `on_exit` tells if it cannot be started."""
        task = asyncio.create_task(self._run(device_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell(self, device_id: DeviceId, message: AgentMessage) -> None:
        """Queue a message, before all frames; dropped if the worker is gone, which `on_exit` reports anyway."""
        worker = self._workers.get(device_id)
        if worker is not None and not worker.outbox.put_urgent(pack_message(message)) and not worker.reason:
            worker.reason = "The worker took none of its messages any more"
            log.error("worker %s takes no messages (%d bytes wait)", device_id, worker.outbox.num_bytes)
            worker.process.kill()

    def pass_frame(self, device_id: DeviceId, frame: bytes) -> bool:
        """Whether there was room for it, or nobody that it could be for."""
        worker = self._workers.get(device_id)
        return worker is None or worker.outbox.put_bulk(pack_frame(0, frame))

    def end(self, device_id: DeviceId, reason: str) -> None:
        """Kill it; `on_exit` gives this reason. Harmless when it is gone."""
        if device_id in self._workers:
            worker = self._workers[device_id]
            worker.reason = reason
            worker.process.kill()

    def cpu_s(self, device_id: DeviceId) -> float | None:
        """What it has used of the processor; None if that is not known, or it is gone."""
        worker = self._workers.get(device_id)
        return None if worker is None else worker.process.cpu_s()

    async def kill_all(self) -> None:
        """End every worker at once and wait until they are gone: only then is their memory free.

        Nothing is reported any more, and none can be started. One that is just being started is let come up and
        then ended: cancelled half-way it could be left behind."""
        self._is_closed = True
        for worker in self._workers.values():
            worker.process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, device_id: DeviceId) -> None:
        if self._is_closed:
            return
        argv = [*self._command, "--channel", "{channel}", "--device", device_id]
        try:
            process = await self._env.processes.spawn(argv, ENVIRONMENT)
        except OSError as error:
            log.error("the worker of %s cannot be started: %s", device_id, error)
            self._report_exit(device_id, NOT_STARTED, f"The worker cannot be started ({error.strerror or error})")
            return
        worker = _Worker(process)
        self._workers[device_id] = worker
        reason = ""
        try:
            reason = await self._listen(device_id, worker) or worker.reason
        finally:
            if reason or self._is_closed:
                process.kill()
            status = await _end(process)
            del self._workers[device_id]
            self._report_exit(device_id, status, reason)

    async def _listen(self, device_id: DeviceId, worker: _Worker) -> str:
        """Until the worker ends or has to be ended; returns why it has to."""
        writer = asyncio.create_task(_write(worker))
        try:
            await self._read(device_id, worker)
        except ConnectionClosed:
            log.info("worker %s closed its channel", device_id)
        except IpcError as error:
            log.error("worker %s: %s", device_id, error)
            return "The worker is of another build than the agent"
        except TimeoutError:
            log.error("worker %s said nothing for %.0f s after its start", device_id, START_LIMIT_S)
            return f"The worker did not come up within {START_LIMIT_S:.0f} s"
        finally:
            writer.cancel()
        return worker.reason

    async def _read(self, device_id: DeviceId, worker: _Worker) -> None:
        reader = PacketReader()
        async with asyncio.timeout(START_LIMIT_S) as start_limit:
            while not self._is_closed:
                data = await worker.process.channel.read()
                start_limit.reschedule(None)
                for packet in reader.from_worker(data):
                    self._take(device_id, packet)

    def _take(self, device_id: DeviceId, packet: WorkerMessage | FramePacket) -> None:
        if isinstance(packet, FramePacket):
            self._callbacks.on_frame(device_id, packet.link, packet.data)
            return
        if isinstance(packet, WorkerReady) and packet.ipc_version != IPC_VERSION:
            raise IpcError(f"it speaks version {packet.ipc_version}, this agent {IPC_VERSION}")
        self._callbacks.on_message(device_id, packet)

    def _report_exit(self, device_id: DeviceId, status: int, reason: str) -> None:
        if not self._is_closed:
            self._callbacks.on_exit(device_id, status, reason)


async def _end(process: Process) -> int:
    """Its exit status. Its socket closes a moment before it has ended: a kill then would hide its own status."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_GRACE_S):
            return await process.wait()
    process.kill()
    return await process.wait()


async def _write(worker: _Worker) -> None:
    try:
        while True:
            packet = await worker.outbox.get()
            assert isinstance(packet, bytes), "packets are bytes"
            await worker.process.channel.write(packet)
    except ConnectionClosed:  # the reader sees the same and cleans up
        return
