"""All decisions of one node, pure: events in, commands out. The shell (agent.py) owns sockets, processes and files.

What the coordinator asks, what workers answer and what downloads report comes in through `handle`; the list that it
returns is to be carried out in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs

from client import ipc
from client.agent.commands import (
    Command,
    Download,
    EndWorker,
    FetchManifest,
    MeasureLinks,
    PassFrame,
    StartWorker,
    StopDownload,
    TellPool,
    TellWorker,
)
from client.agent.device import DID_NOT_ANSWER, RAN_OUT_OF_MEMORY, Device, Job, Loaded, Stage, Step, sent_bytes
from client.agent.events import (
    Downloaded,
    Event,
    FetchFailed,
    FrameArrived,
    KeptTooLong,
    LookedAtWorkers,
    ManifestArrived,
    PeerLost,
    PoolLost,
    PoolSaid,
    RestartDue,
    RowsRefused,
    WorkerDied,
    WorkerSaid,
)
from client.agent.refused import broken_by
from client.agent.switch import DTYPE_OF_VARIANT, Shape, Switch
from client.agent.telling import ask, device_failed, rows_lost, session_broken, slice_progress, slice_ready
from client.agent.watchdog import Finding, Owed, Watchdog
from protocol import messages as msg
from protocol.frames import FrameLimits
from protocol.manifest import Manifest
from protocol.pause import PoolDefaults
from protocol.quantisation import packed_sum
from protocol.values import MEMORY_FOR_ACTIVATIONS, DeviceId, DeviceSpec, DeviceWork, NodeId, SessionId

MAX_SHORTAGES = 3
"""Steps in a row without memory, each with less in use than the one before."""
_AT_WORK = (Stage.MEASURING, Stage.PLANNING, Stage.LOADING)
"""Stages in which the worker owes an answer."""
_ANSWERS = (ipc.LayersMeasured, ipc.SlicePlanned, ipc.SliceLoaded, ipc.CommandFailed, ipc.LoadProgress)


class AgentCore:
    """One node: its devices, its part in sessions."""

    def __init__(self, node_id: NodeId, devices: tuple[DeviceSpec, ...]) -> None:
        self.devices = {spec.device_id: Device(spec) for spec in devices}
        self._offered = devices
        self.switch = Switch(node_id, FrameLimits())
        self.watchdog = Watchdog()
        self.num_tokens = 0
        self._now_s = 0.0
        self._manifests: dict[str, Manifest] = {}
        self._work: dict[tuple[DeviceId, int], DeviceWork] = {}
        """By device and generation, since the pool was told last."""
        self._handlers: dict[type, Callable[[Any], list[Command]]] = {
            WorkerSaid: self._worker_said,
            WorkerDied: self._worker_died,
            RestartDue: self._restart_due,
            LookedAtWorkers: self._looked_at_workers,
            PoolSaid: lambda event: self._pool_handlers[type(event.message)](event.message),
            PoolLost: self._pool_lost,
            KeptTooLong: self._kept_too_long,
            ManifestArrived: self._manifest_arrived,
            FetchFailed: self._fetch_failed,
            Downloaded: self._downloaded,
            FrameArrived: self._frame_arrived,
            PeerLost: self._peer_lost,
            RowsRefused: lambda event: [TellPool(broken) for broken in broken_by(self.switch, event)],
        }
        self._pool_handlers: dict[type, Callable[[Any], list[Command]]] = {
            msg.Challenge: lambda message: [],
            msg.Welcome: lambda message: [],
            msg.Refused: lambda message: [],
            msg.MeasureDevice: self._take_job,
            msg.MeasureLinks: lambda message: [MeasureLinks(message.targets)],
            msg.AssignSlice: self._take_job,
            msg.ReleaseSlice: self._release,
            msg.WhereAreRows: self._where_are_rows,
            msg.OpenSession: self._open_session,
            msg.CloseSession: self._close_session,
        }
        self._worker_handlers: dict[type, Callable[[Device, Any], list[Command]]] = {
            ipc.WorkerReady: self._worker_ready,
            ipc.Here: lambda device, message: [],
            ipc.NoMemory: self._no_memory,
            ipc.LayersMeasured: self._layers_measured,
            ipc.SlicePlanned: self._slice_planned,
            ipc.LoadProgress: self._load_progress,
            ipc.SliceLoaded: self._slice_loaded,
            ipc.CommandFailed: self._command_failed,
            ipc.SessionStarted: self._session_started,
            ipc.SessionFailed: self._session_failed,
            ipc.Sampled: self._sampled,
            ipc.WorkDone: self._work_done,
        }

    def handle(self, event: Event, now_s: float = 0.0) -> list[Command]:
        """Take one event and say what is to be done about it. `now_s`, of any clock that does not go back, only
        matters for how long rows have been here."""
        self._now_s = now_s
        return self._handlers[type(event)](event)

    def validate(self) -> None:
        """Re-derive what must hold after every event; AssertionError says what does not."""
        self.switch.validate()
        for device in self.devices.values():
            device.validate()
        serving = {d.spec.device_id for d in self.devices.values() if d.stage is Stage.SERVING}
        assert self.switch.devices <= serving, "only a serving device has a part in sessions"

    def start(self) -> list[Command]:
        """The first commands: every device needs a worker."""
        return [StartWorker(device_id, 0.0) for device_id in self.devices]

    def limit(self, limits: PoolDefaults) -> None:
        """Offer no more than the pool's operator wants of any machine; what the volunteer offers is never exceeded."""
        for spec in self._offered:
            self.devices[spec.device_id].spec = structs.replace(
                spec,
                memory_bytes=_least(spec.memory_bytes, limits.max_memory_bytes) or 0,
                max_layers=_least(spec.max_layers, limits.max_layers),
            )

    @property
    def weights_in_use(self) -> list[str]:
        """The models that devices serve, are to serve or hold, each once per device."""
        return [digest for device in self.devices.values() for digest in _models_of(device)]

    @property
    def is_ready(self) -> bool:
        """True once every device's worker has come up (or died trying): the node can say hello."""
        return all(device.stage is not Stage.STARTING for device in self.devices.values())

    @property
    def usable_devices(self) -> tuple[DeviceSpec, ...]:
        """The devices whose workers are up."""
        return tuple(d.spec for d in self.devices.values() if d.stage not in (Stage.STARTING, Stage.DEAD))

    def take_work(self) -> tuple[DeviceWork, ...]:
        """What devices have computed since this was asked last."""
        work, self._work = tuple(self._work.values()), {}
        return work

    # ------------------------------------------------------------ the pool

    def _take_job(self, job: Job) -> list[Command]:
        device = self.devices.get(job.device_id)
        if device is None or device.stage in (Stage.STARTING, Stage.DEAD):
            return [TellPool(device_failed(job, "no_worker", "The device's worker is not running."))]
        stopped = self._interrupt(device)
        device.job, device.message = job, ""
        device.done_bytes = device.total_bytes = 0
        device.move(Step.TAKE_JOB)
        if job.manifest_hash in self._manifests:
            return [*stopped, *self._begin(device, self._manifests[job.manifest_hash])]
        return [*stopped, FetchManifest(job.device_id, job)]

    def _release(self, message: msg.ReleaseSlice) -> list[Command]:
        device = self.devices.get(message.device_id)
        if device is None or device.generation != message.generation or device.job is None:
            return []
        stopped = self._interrupt(device)
        device.job = None
        device.move(Step.DONE)
        return stopped

    def _interrupt(self, device: Device) -> list[Command]:
        """Whatever the device was doing ends: sessions, a download, a command that its worker still works on."""
        ended = self.switch.close_all(device.spec.device_id)
        commands: list[Command] = [TellWorker(device_id, end) for device_id, end in ended]
        if device.stage is Stage.DOWNLOADING:
            commands.append(StopDownload(device.spec.device_id))
        if device.stage in _AT_WORK:
            device.owed += 1
        return commands

    def _open_session(self, message: msg.OpenSession) -> list[Command]:
        device = self.devices.get(message.device_id)
        job = device.job if device is not None and device.stage is Stage.SERVING else None
        if device is None or not isinstance(job, msg.AssignSlice) or job.generation != message.generation:
            return [TellPool(session_broken(message, "not_serving", "The device does not serve this slice any more."))]
        manifest = self._manifests[job.manifest_hash]
        shape = Shape(manifest.hidden_size, DTYPE_OF_VARIANT[job.variant])
        return [TellWorker(message.device_id, self.switch.open(message, shape))]

    def _where_are_rows(self, message: msg.WhereAreRows) -> list[Command]:
        """The worker is not asked: it may be what hangs."""
        rows_at = self.switch.where(message, self._now_s, self.watchdog.silent_s)
        if rows_at is not None:
            return [TellPool(rows_at)]
        sentence = "The session is not open here."
        broken = msg.SessionBroken(message.session_id, message.epoch, message.stage, "not_open", sentence)
        return [TellPool(broken)]

    def _close_session(self, message: msg.CloseSession) -> list[Command]:
        ended = self.switch.close(SessionId(message.session_id), message.epoch, message.prefix_hashes)
        return [TellWorker(device_id, end) for device_id, end in ended]

    def _pool_lost(self, event: PoolLost) -> list[Command]:
        """Sessions and orders end with the connection. What is loaded stays and is told with the next hello."""
        self._work.clear()  # its generations mean nothing to the next pool
        commands: list[Command] = []
        for device in self.devices.values():
            commands += self._interrupt(device)
            if device.stage not in (Stage.STARTING, Stage.DEAD, Stage.SERVING):
                device.job = None
                device.move(Step.DONE)
        return commands

    def _kept_too_long(self, event: KeptTooLong) -> list[Command]:
        """Only the end of its worker surely gives a GPU's memory back."""
        sentence = "The pool has been away for long, so its layers were let go"
        return [EndWorker(d.spec.device_id, sentence) for d in self.devices.values() if d.loaded is not None]

    # ------------------------------------------------------------ manifests and weights

    def _manifest_arrived(self, event: ManifestArrived) -> list[Command]:
        self._manifests[event.manifest_hash] = event.manifest
        commands: list[Command] = []
        for device in self.devices.values():
            waits = device.stage is Stage.FETCHING and device.job is not None
            if waits and device.job and device.job.manifest_hash == event.manifest_hash:
                commands += self._begin(device, event.manifest)
        return commands

    def _begin(self, device: Device, manifest: Manifest) -> list[Command]:
        """The manifest is here: measure, plan, or serve at once what is loaded already."""
        device_id, job = device.spec.device_id, device.job
        if isinstance(job, msg.MeasureDevice):
            device.move(Step.MEASURE)
            return [
                TellWorker(
                    device_id, ipc.MeasureLayers(manifest.config_json, job.variant, quantisation=manifest.quantisation)
                )
            ]
        assert isinstance(job, msg.AssignSlice), "a fetching device has a job"
        held = device.loaded
        if held and (held.manifest_hash, held.variant, held.layers) == (job.manifest_hash, job.variant, job.layers):
            device.move(Step.SERVE)
            return [slice_ready(job, held)]
        device.move(Step.PLAN)
        names = tuple(tensor.name for tensor in manifest.tensors)
        return [TellWorker(device_id, ipc.PlanSlice(manifest.config_json, job.layers, names))]

    def _fetch_failed(self, event: FetchFailed) -> list[Command]:
        device = self.devices[event.device_id]
        waits = device.job is event.job and device.stage in (Stage.FETCHING, Stage.DOWNLOADING)
        return self._give_up(device, event.code, event.message, event.share) if waits else []

    def _downloaded(self, event: Downloaded) -> list[Command]:
        device = self.devices[event.device_id]
        waits = device.job is event.job and device.stage is Stage.DOWNLOADING
        if not waits or not isinstance(device.job, msg.AssignSlice):
            return []
        device.done_bytes, device.total_bytes = event.done_bytes, event.total_bytes
        if event.folder is None:
            return [slice_progress(device, loading=False)]
        device.move(Step.LOAD)
        self.watchdog.begins(event.device_id)
        device.loaded = None
        device.done_bytes = device.total_bytes = 0
        job = device.job
        quantisation = self._manifests[job.manifest_hash].quantisation
        room = {"max_kv_bytes": self._kv_bytes(device, job), "max_sent_bytes": sent_bytes(device.spec)}
        load = ipc.LoadSlice(event.folder, job.layers, job.variant, **room, quantisation=quantisation)
        return [slice_progress(device, loading=True), TellWorker(event.device_id, load)]

    def _kv_bytes(self, device: Device, job: msg.AssignSlice) -> int:
        """KV room: the device's memory less the slice's weights and the activations' share, and less of that for a
        slice with which it ran out of memory."""
        usable = int(device.spec.memory_bytes * (1 - MEMORY_FOR_ACTIVATIONS))
        loose_bytes = (device.slice_numel - device.packed.numel) * DTYPE_OF_VARIANT[job.variant].itemsize
        left = max(0, usable - loose_bytes - device.packed.num_bytes)
        return int(left * device.room_share(job.manifest_hash, job.variant, job.layers))

    # ------------------------------------------------------------ workers

    def _worker_said(self, event: WorkerSaid) -> list[Command]:
        device = self.devices[event.device_id]
        self.watchdog.heard(event.device_id, worked=isinstance(event.message, ipc.Sampled | ipc.WorkDone))
        if device.owed and isinstance(event.message, _ANSWERS):
            device.owed -= not isinstance(event.message, ipc.LoadProgress)
            return []
        return self._worker_handlers[type(event.message)](device, event.message)

    def _worker_ready(self, device: Device, message: ipc.WorkerReady) -> list[Command]:
        if device.stage is Stage.STARTING:
            device.move(Step.WORKER_UP)
            self.watchdog.begins(device.spec.device_id)
            device.message = ""
        return []

    def _worker_died(self, event: WorkerDied) -> list[Command]:
        """Started again in any case; of one that was given up before its end all else has been said."""
        device = self.devices[event.device_id]
        reason = event.reason or f"The worker ended with status {event.status}"
        message = f"{reason}; it is started again."
        commands = [] if device.stage is Stage.DEAD else self._lose_worker(device, message)
        device.message = message
        return [*commands, StartWorker(event.device_id, device.count_crash(reason, self._now_s))]

    def _lose_worker(self, device: Device, message: str, code: str = "worker_died") -> list[Command]:
        """Its worker does nothing any more, and what it held is gone: the coordinator moves the sessions when it hears
        of it, and has the layers loaded anew."""
        device_id, job = device.spec.device_id, device.job
        self.switch.close_all(device_id)
        commands: list[Command] = [StopDownload(device_id)] if device.stage is Stage.DOWNLOADING else []
        device.move(Step.WORKER_DOWN)
        device.job = device.loaded = None
        device.owed = 0
        device.message = message
        return [*commands, *([TellPool(device_failed(job, code, message))] if job is not None else [])]

    def _looked_at_workers(self, event: LookedAtWorkers) -> list[Command]:
        commands: list[Command] = []
        for device_id, finding in self.watchdog.look(self._owes, event.cpu_s, self._now_s):
            hangs, device = finding is Finding.HANGS, self.devices[device_id]
            commands += self._end_worker(device, DID_NOT_ANSWER, "worker_died") if hangs else [ask(device_id)]
        for device in self.devices.values():
            device.pass_time(self.watchdog.has_worked(device.spec.device_id), self._now_s)
        return commands

    def _owes(self, device_id: DeviceId) -> Owed:
        device = self.devices[device_id]
        if device.stage in _AT_WORK or device.owed:
            return Owed.COMMAND
        if not self.switch.waits_for(device_id):
            return Owed.NOTHING
        is_first = not self.watchdog.has_worked(device_id) and self.switch.computes_on(device_id)
        return Owed.FIRST_STEP if is_first else Owed.STEP

    def _end_worker(self, device: Device, reason: str, code: str) -> list[Command]:
        """The pool hears of it before the worker has ended: a driver that hangs may keep it from ending at all."""
        lost = self._lose_worker(device, f"{reason} and is being ended.", code)
        return [*lost, EndWorker(device.spec.device_id, reason)]

    def _no_memory(self, device: Device, message: ipc.NoMemory) -> list[Command]:
        """The pool is to reserve less; who has no memory with less and less in use is begun anew, with less."""
        if device.stage is not Stage.SERVING or not isinstance(device.job, msg.AssignSlice):
            return []
        held = device.lower_room(message.num_used_tokens)
        if message.num_in_a_row >= MAX_SHORTAGES:
            return self._end_worker(device, RAN_OUT_OF_MEMORY, "out_of_memory")
        return [slice_ready(device.job, held)]

    def _restart_due(self, event: RestartDue) -> list[Command]:
        self.devices[event.device_id].move(Step.RESTART)
        return []

    def _layers_measured(self, device: Device, message: ipc.LayersMeasured) -> list[Command]:
        job = device.job
        if not isinstance(job, msg.MeasureDevice) or device.stage is not Stage.MEASURING:
            return []
        device.move(Step.DONE)
        device.job = None
        device.benchmarks[job.manifest_hash] = message.benchmark
        return [TellPool(msg.DeviceMeasured(job.device_id, job.manifest_hash, message.benchmark))]

    def _slice_planned(self, device: Device, message: ipc.SlicePlanned) -> list[Command]:
        job = device.job
        if not isinstance(job, msg.AssignSlice) or device.stage is not Stage.PLANNING:
            return []
        manifest, names = self._manifests[job.manifest_hash], set(message.tensor_names)
        device.slice_numel = sum(tensor.numel for tensor in manifest.tensors if tensor.name in names)
        device.packed = packed_sum(manifest, names)
        device.move(Step.DOWNLOAD)
        return [Download(job.device_id, job, manifest, message.tensor_names)]

    def _load_progress(self, device: Device, message: ipc.LoadProgress) -> list[Command]:
        if device.stage is not Stage.LOADING:
            return []
        device.done_bytes, device.total_bytes = message.done_bytes, message.total_bytes
        return [slice_progress(device, loading=True)]

    def _slice_loaded(self, device: Device, message: ipc.SliceLoaded) -> list[Command]:
        job = device.job
        if not isinstance(job, msg.AssignSlice) or device.stage is not Stage.LOADING:
            return []
        traits = message.num_kv_tokens, message.can_truncate, message.has_prefix_cache
        device.loaded = Loaded(job.manifest_hash, job.variant, job.layers, *traits)
        device.loaded_as = device.spec
        device.loaded_at_s = self._now_s
        device.move(Step.SERVE)
        return [slice_ready(job, device.loaded)]

    def _command_failed(self, device: Device, message: ipc.CommandFailed) -> list[Command]:
        return self._give_up(device, message.code, message.message) if device.stage in _AT_WORK else []

    def _give_up(self, device: Device, code: str, message: str, share: float | None = None) -> list[Command]:
        job = device.job
        device.move(Step.DONE)
        device.job, device.message = None, message
        return [TellPool(device_failed(job, code, message, share))] if job is not None else []

    # ------------------------------------------------------------ sessions

    def _session_started(self, device: Device, message: ipc.SessionStarted) -> list[Command]:
        leg = self.switch.leg(SessionId(message.session_id), message.epoch, device.spec.device_id)
        if leg is None:
            return []
        leg.is_open, leg.num_cached = True, message.num_cached_tokens
        opened = msg.SessionOpened(message.session_id, message.epoch, leg.stage, message.num_cached_tokens)
        return [TellPool(opened)]

    def _session_failed(self, device: Device, message: ipc.SessionFailed) -> list[Command]:
        session_id = SessionId(message.session_id)
        leg = self.switch.leg(session_id, message.epoch, device.spec.device_id)
        if leg is None:
            return []
        broken = msg.SessionBroken(message.session_id, message.epoch, leg.stage, message.code, message.message[:400])
        return [TellPool(broken)]

    def _sampled(self, device: Device, message: ipc.Sampled) -> list[Command]:
        leg = self.switch.leg(SessionId(message.session_id), message.epoch, device.spec.device_id)
        if leg is None:
            return []  # the session was closed, or moved on to another epoch, while the worker sampled
        leg.flow.went_on(message.position + len(message.tokens), self._now_s)
        self.num_tokens += len(message.tokens)
        sampled = msg.TokensSampled(
            message.session_id,
            message.epoch,
            message.position,
            message.tokens,
            message.logprobs,
            message.finish_reason,
            message.timing,
        )
        return [TellPool(sampled)]

    def _work_done(self, device: Device, message: ipc.WorkDone) -> list[Command]:
        """Only of a slice that serves: what comes late is of one that does no more."""
        if device.stage is Stage.SERVING:
            key = device.spec.device_id, device.generation
            before = self._work.get(key, DeviceWork(*key, 0, 0, 0, 0.0))
            self._work[key] = DeviceWork(
                *key,
                before.num_steps + message.num_steps,
                before.num_decode_rows + message.num_decode_rows,
                before.num_prompt_tokens + message.num_prompt_tokens,
                before.compute_s + message.compute_s,
            )
        return []

    def _frame_arrived(self, event: FrameArrived) -> list[Command]:
        deliveries, gaps = self.switch.admit(event.data, event.sender, self._now_s)
        passed = [PassFrame(delivery.device_id, delivery.frame) for delivery in deliveries]
        return [*passed, *(TellPool(rows_lost(gap)) for gap in gaps)]

    def _peer_lost(self, event: PeerLost) -> list[Command]:
        legs = self.switch.legs_towards(event.node_id)
        sentence = "The link to the next node broke."
        return [
            TellPool(msg.SessionBroken(session_id, leg.epoch, leg.stage, "link_lost", sentence))
            for session_id, leg in legs
        ]


def _least(*limits: int | None) -> int | None:
    """None: no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


def _models_of(device: Device) -> set[str]:
    holds = [device.loaded.manifest_hash] if device.loaded is not None else []
    return {*holds, *([device.job.manifest_hash] if device.job is not None else [])}
