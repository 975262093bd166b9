"""What the pool and the workers are told, as messages. Pure."""

from __future__ import annotations

from client import ipc
from client.agent.commands import TellPool, TellWorker
from client.agent.device import Device, Job, Loaded
from client.agent.switch import Gap
from protocol import messages as msg
from protocol.values import DeviceId


def device_failed(job: Job, code: str, message: str, share: float | None = None) -> msg.DeviceFailed:
    """`share`: what part of its weights the disk has room for. The bytes of layers differ little."""
    if not isinstance(job, msg.AssignSlice):
        return msg.DeviceFailed(job.device_id, job.manifest_hash, 0, code, message[:400])
    max_layers = None if share is None else int(share * len(job.layers))
    return msg.DeviceFailed(job.device_id, job.manifest_hash, job.generation, code, message[:400], max_layers)


def ask(device_id: DeviceId) -> TellWorker:
    return TellWorker(device_id, ipc.AreYouThere())


def session_broken(message: msg.OpenSession, code: str, sentence: str) -> msg.SessionBroken:
    return msg.SessionBroken(message.session_id, message.epoch, message.stage, code, sentence)


def rows_lost(gap: Gap) -> msg.SessionBroken:
    return msg.SessionBroken(gap.session_id, gap.epoch, gap.stage, "rows_lost", "Rows were lost on the way here.")


def slice_progress(device: Device, *, loading: bool) -> TellPool:
    message = msg.SliceProgress(
        device.spec.device_id, device.generation, loading, device.done_bytes, device.total_bytes
    )
    return TellPool(message)


def slice_ready(job: msg.AssignSlice, loaded: Loaded) -> TellPool:
    traits = loaded.can_truncate, loaded.has_prefix_cache
    return TellPool(msg.SliceReady(job.device_id, job.generation, loaded.num_kv_tokens, *traits))
