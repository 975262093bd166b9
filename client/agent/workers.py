"""The torch workers: started in their own interpreter, talked to over the inherited socket, killed to free memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from client.ipc import AgentMessage, FramePacket, IpcError, PacketReader, WorkerMessage, pack_frame, pack_message
from protocol.env import ConnectionClosed, Env, Process
from protocol.values import DeviceId

log = logging.getLogger(__name__)

OnMessage = Callable[[DeviceId, WorkerMessage], None]
OnFrame = Callable[[DeviceId, int, bytes], None]
OnExit = Callable[[DeviceId, int], None]


@dataclass(slots=True)
class _Worker:
    process: Process
    outbox: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True, slots=True)
class Callbacks:
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

    @property
    def pids(self) -> dict[DeviceId, int]:
        return {device_id: worker.process.pid for device_id, worker in self._workers.items()}

    async def start(self, device_id: DeviceId) -> None:
        """Start the device's worker; its first message is WorkerReady. Raises OSError if it cannot be started."""
        argv = [*self._command, "--channel", "{channel}", "--device", device_id]
        worker = _Worker(await self._env.processes.spawn(argv, {}))
        self._workers[device_id] = worker
        task = asyncio.create_task(self._run(device_id, worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell(self, device_id: DeviceId, message: AgentMessage) -> None:
        """Queue a message; dropped if the worker is gone, which `on_exit` reports anyway."""
        if device_id in self._workers:
            self._workers[device_id].outbox.put_nowait(pack_message(message))

    def pass_frame(self, device_id: DeviceId, frame: bytes) -> None:
        if device_id in self._workers:
            self._workers[device_id].outbox.put_nowait(pack_frame(0, frame))

    async def kill_all(self) -> None:
        """End every worker at once and wait until they are gone: only then is their memory free."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, device_id: DeviceId, worker: _Worker) -> None:
        writer = asyncio.create_task(_write(worker))
        try:
            await self._read(device_id, worker)
        except ConnectionClosed:
            log.info("worker %s closed its channel", device_id)
        except IpcError as error:
            log.error("worker %s: %s", device_id, error)
        finally:
            writer.cancel()
            worker.process.kill()
            status = await worker.process.wait()
            self._workers.pop(device_id, None)
            self._callbacks.on_exit(device_id, status)

    async def _read(self, device_id: DeviceId, worker: _Worker) -> None:
        reader = PacketReader()
        while True:
            for packet in reader.from_worker(await worker.process.channel.read()):
                if isinstance(packet, FramePacket):
                    self._callbacks.on_frame(device_id, packet.link, packet.data)
                else:
                    self._callbacks.on_message(device_id, packet)


async def _write(worker: _Worker) -> None:
    try:
        while True:
            await worker.process.channel.write(await worker.outbox.get())
    except ConnectionClosed:  # the reader sees the same and cleans up
        return
