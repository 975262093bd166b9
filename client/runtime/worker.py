"""The worker process: commands and frames in, one batch after another, rows and tokens out."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from client.ipc import (
    IPC_VERSION,
    AgentMessage,
    AreYouThere,
    CommandFailed,
    EndSession,
    FramePacket,
    Here,
    LayersMeasured,
    LoadProgress,
    LoadSlice,
    MeasureLayers,
    PlanSlice,
    SessionFailed,
    SliceLoaded,
    SlicePlanned,
    StartSession,
    WorkerMessage,
    WorkerReady,
)
from client.runtime.benchmark import measure_layers
from client.runtime.channel import Channel
from client.runtime.cut import CutModel
from client.runtime.device import DTYPES, Device
from client.runtime.engine import Engine
from client.runtime.errors import ChannelClosedError, NoSliceError, as_fault
from client.runtime.loading import load_folder, plan_slice
from client.runtime.packed_loading import load_packed
from client.runtime.stage import Stage

_logger = logging.getLogger(__name__)
MAX_SENTENCE = 400
"""Longest failure message that the control protocol carries (protocol.values.Sentence)."""


def run_worker(sock: socket.socket, device: Device) -> None:
    """Serve the agent at the other end of `sock` until it closes. Raises IpcError if it speaks another version."""
    worker = Worker(Channel(sock), device)
    try:
        worker.run()
    except ChannelClosedError:
        _logger.info("the agent is gone")


class Worker:
    """The loop, and what a command does."""

    def __init__(self, channel: Channel, device: Device) -> None:
        self._channel = channel
        self._device = device
        self._engine: Engine | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            MeasureLayers: lambda message: self._command(self._measure, message),
            PlanSlice: lambda message: self._command(self._plan, message),
            LoadSlice: lambda message: self._command(self._load, message),
            StartSession: self._start,
            EndSession: self._end,
            AreYouThere: lambda message: self._channel.send_message(Here()),
            FramePacket: self._receive,
        }

    def run(self) -> None:
        """Until the agent closes the channel, which raises ChannelClosedError."""
        device = self._device
        self._channel.send_message(WorkerReady(IPC_VERSION, str(torch.__version__), device.name, device.free_bytes()))
        while True:
            engine = self._engine
            is_idle = engine is None or not engine.has_work
            for packet in self._channel.take(is_idle, engine.meter.due_in_s(monotonic()) if engine else None):
                self._handlers[type(packet)](packet)
            if self._engine is not None:
                self._engine.step()
                self._tell_work(self._engine)

    def _tell_work(self, engine: Engine) -> None:
        done = engine.meter.take(monotonic())
        if done is not None:
            self._channel.send_message(done)

    # ------------------------------------------------------------ commands

    def _command(self, work: Callable[[Any], WorkerMessage], message: AgentMessage) -> None:
        """Answer a command. Whatever fails, the worker is ready for the next one."""
        try:
            answer = work(message)
        except ChannelClosedError:
            raise
        except Exception as error:
            # transformers raises anything on a config or checkpoint it did not expect; the type says what it was.
            fault = as_fault(error)
            _logger.warning("%s failed: %s", type(message).__name__, fault, exc_info=fault is not error)
            answer = CommandFailed(fault.code, str(fault)[:MAX_SENTENCE])
            self._device.release_cached()
        self._channel.send_message(answer)

    def _measure(self, message: MeasureLayers) -> WorkerMessage:
        dtype = DTYPES[message.variant]
        sizes, num_tokens = message.batch_sizes, message.num_prefill_tokens
        return LayersMeasured(
            measure_layers(
                message.config_json, dtype, self._device, sizes, num_tokens, self._channel.poll, message.quantisation
            )
        )

    def _plan(self, message: PlanSlice) -> WorkerMessage:
        return SlicePlanned(plan_slice(message.config_json, message.layers, message.tensor_names))

    def _load(self, message: LoadSlice) -> WorkerMessage:
        if self._engine is not None:
            self._engine.close()
            self._engine = None  # its memory is needed for the new slice
            self._device.release_cached()
        dtype = DTYPES[message.variant]
        cut = self._load_cut(message, dtype)
        stage = Stage(cut, message.max_kv_bytes, dtype, self._device)
        self._engine = Engine(stage, self._channel, message.max_batch_tokens, message.max_sent_bytes)
        room = stage.cache.num_tokens, stage.weight_bytes
        return SliceLoaded(*room, stage.can_truncate, has_prefix_cache=stage.has_prefix_cache)

    def _load_cut(self, message: LoadSlice, dtype: torch.dtype) -> CutModel:
        folder, place = Path(message.folder), (dtype, self._device)
        if message.quantisation is None:
            return load_folder(folder, message.layers, *place, self._progress)
        return load_packed(folder, message.layers, message.quantisation, place, self._progress)

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self._channel.send_message(LoadProgress(done_bytes, total_bytes))

    # ------------------------------------------------------------ sessions

    def _start(self, message: StartSession) -> None:
        if self._engine is None:
            fault = NoSliceError()
            self._channel.send_message(SessionFailed(message.session_id, message.epoch, fault.code, str(fault)))
        else:
            self._engine.start(message)

    def _end(self, message: EndSession) -> None:
        if self._engine is not None:
            self._engine.end(message)

    def _receive(self, packet: FramePacket) -> None:
        if self._engine is not None:  # without a slice there is no session, so nobody waits for rows
            self._engine.receive(packet.data)
