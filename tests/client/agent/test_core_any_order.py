"""The node's decisions under any order of events: nothing raises, and what must hold holds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from client import ipc
from client.agent.commands import Download, EndWorker, StopDownload, TellPool, TellWorker
from client.agent.core import AgentCore
from client.agent.device import Stage
from client.agent.events import (
    Downloaded,
    FetchFailed,
    FrameArrived,
    LookedAtWorkers,
    ManifestArrived,
    PeerLost,
    PoolLost,
    PoolSaid,
    RestartDue,
    WorkerDied,
    WorkerSaid,
)
from protocol import messages as msg
from protocol.values import DeviceSpec, NodeId, StepTiming
from tests.client.agent.node import FOLDER, LOADED, READY
from tests.client.agent.samples import (
    BENCHMARK,
    GPU,
    GPU_1,
    LEFT,
    NODE,
    OTHER_SESSION,
    RIGHT,
    SESSION,
    assign,
    measure,
    model,
    open_session,
    rows,
    segment,
    tokens,
)

BUSY = (Stage.MEASURING, Stage.PLANNING, Stage.LOADING)


class AnyOrder(RuleBasedStateMachine):
    """Events in any order: pool and network say anything at any time; a worker answers only what it was told.

    The shell's own promises are kept: a worker dies only while it lives, a restart is due only when it was asked for,
    and a download reports only until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.core = AgentCore(NODE, (GPU, GPU_1))
        self.living = {GPU.device_id: True, GPU_1.device_id: True}
        self.asked: dict[str, list[ipc.AgentMessage]] = {"cuda:0": [], "cuda:1": []}
        self.downloads: dict[str, Download] = {}
        self.ending: set[str] = set()
        """Workers that are killed: they are told nothing, and die in the end."""
        self.generation = 0
        self.now_s = 0.0

    device = st.sampled_from([GPU, GPU_1])
    session = st.sampled_from([SESSION, OTHER_SESSION])

    def do(self, event: object) -> None:
        for command in self.core.handle(event, self.now_s):  # type: ignore[arg-type]
            match command:
                case TellPool(message):
                    msg.decode_node_message(msg.encode_message(message))
                case TellWorker(device_id, message):
                    assert self.living[device_id], "a dead worker is told nothing"
                    assert device_id not in self.ending, "nor one that was given up"
                    if isinstance(message, ipc.MeasureLayers | ipc.PlanSlice | ipc.LoadSlice):
                        self.asked[device_id].append(message)
                case EndWorker(device_id):
                    self.ending.add(device_id)
                    self.asked[device_id] = []
                case Download(device_id):
                    assert device_id not in self.downloads, "one download per device"
                    self.downloads[device_id] = command
                case StopDownload(device_id):
                    del self.downloads[device_id]

    @rule(spec=device)
    def worker_comes_up(self, spec: DeviceSpec) -> None:
        if self.core.devices[spec.device_id].stage is Stage.STARTING:
            self.do(WorkerSaid(spec.device_id, READY))

    @rule(spec=device, fails=st.booleans())
    def worker_answers(self, spec: DeviceSpec, fails: bool) -> None:
        if not self.asked[spec.device_id]:
            return
        match self.asked[spec.device_id].pop(0):
            case ipc.MeasureLayers():
                answer: ipc.WorkerMessage = ipc.LayersMeasured(BENCHMARK)
            case ipc.PlanSlice(layers=layers):
                answer = ipc.SlicePlanned(model().tensor_names(*range(layers.start, layers.stop)))
            case _:
                answer = LOADED
        self.do(WorkerSaid(spec.device_id, ipc.CommandFailed("no", "No.") if fails else answer))

    @rule(spec=device, message=st.sampled_from([
        ipc.LoadProgress(1, 2), ipc.SessionStarted(SESSION, 1), ipc.SessionFailed(SESSION, 2, "kv_full", "Full."),
        ipc.Sampled(SESSION, 1, 3, (1,), None, StepTiming()), ipc.WorkDone(1, 2, 3, 0.5),
        ipc.NoMemory(64, 1), ipc.NoMemory(64, 3),
    ]))  # fmt: skip
    def worker_says(self, spec: DeviceSpec, message: ipc.WorkerMessage) -> None:
        self.do(WorkerSaid(spec.device_id, message))

    @rule(spec=device)
    def worker_dies(self, spec: DeviceSpec) -> None:
        if not self.living[spec.device_id]:
            return
        self.living[spec.device_id] = False
        self.ending.discard(spec.device_id)
        self.asked[spec.device_id] = []
        self.do(WorkerDied(spec.device_id, 1))

    @rule(num_looks=st.integers(1, 200), uses=st.sampled_from([None, 7.0]))
    def agent_looks(self, num_looks: int, uses: float | None) -> None:
        for _ in range(num_looks):
            self.now_s += 1.0
            self.do(LookedAtWorkers(dict.fromkeys(self.core.watchdog.doubted, uses)))

    @rule(spec=device)
    def restart_is_due(self, spec: DeviceSpec) -> None:
        if not self.living[spec.device_id]:
            self.living[spec.device_id] = True
            self.do(RestartDue(spec.device_id))

    @rule(spec=device, start=st.integers(0, 3))
    def pool_assigns(self, spec: DeviceSpec, start: int) -> None:
        self.generation += 1
        self.do(PoolSaid(assign(self.generation, start, 4, spec)))

    @rule(spec=device)
    def pool_measures(self, spec: DeviceSpec) -> None:
        self.do(PoolSaid(measure(spec)))

    @rule(spec=device, age=st.integers(0, 1))
    def pool_releases(self, spec: DeviceSpec, age: int) -> None:
        generation = self.core.devices[spec.device_id].generation
        self.do(PoolSaid(msg.ReleaseSlice(spec.device_id, max(0, generation - age))))

    @rule(
        spec=device,
        session_id=st.sampled_from([SESSION, OTHER_SESSION]),
        epoch=st.integers(1, 3),
        stage=st.integers(0, 1),
    )
    def pool_opens(self, spec: DeviceSpec, session_id: str, epoch: int, stage: int) -> None:
        generation = self.core.devices[spec.device_id].generation
        message = open_session(session_id, epoch, stage, device=spec, generation=generation)
        self.do(PoolSaid(message))

    @rule(session_id=session, epoch=st.integers(1, 3))
    def pool_closes(self, session_id: str, epoch: int) -> None:
        self.do(PoolSaid(msg.CloseSession(session_id, epoch)))

    @rule()
    def the_pool_is_told_of_the_work(self) -> None:
        work = self.core.take_work()
        assert len({(each.device_id, each.generation) for each in work}) == len(work)
        assert all(0 < each.generation <= self.generation for each in work)
        msg.decode_node_message(msg.encode_message(msg.Heartbeat(0, 0, 0, work)))

    @rule()
    def pool_is_lost(self) -> None:
        self.do(PoolLost())

    @rule()
    def manifest_arrives(self) -> None:
        self.do(ManifestArrived(model().digest, model().manifest))

    @rule(spec=device)
    def manifest_cannot_be_had(self, spec: DeviceSpec) -> None:
        device = self.core.devices[spec.device_id]
        if device.stage is Stage.FETCHING and device.job is not None:
            self.do(FetchFailed(spec.device_id, device.job, "download_failed", "No."))

    @rule(spec=device, end=st.sampled_from(["more", "done", "failed"]))
    def download_goes_on(self, spec: DeviceSpec, end: str) -> None:
        download = self.downloads.get(spec.device_id)
        if download is None:
            return
        if end == "more":
            self.do(Downloaded(spec.device_id, download.job, 1, 2))
            return
        del self.downloads[spec.device_id]
        done = Downloaded(spec.device_id, download.job, 2, 2, FOLDER)
        failed = FetchFailed(spec.device_id, download.job, "disk_full", "Full.")
        self.do(done if end == "done" else failed)

    @rule(
        position=st.integers(0, 3),
        epoch=st.integers(1, 3),
        stage=st.integers(0, 1),
        sender=st.sampled_from([LEFT, RIGHT, None]),
    )
    def frame_arrives(self, position: int, epoch: int, stage: int, sender: NodeId | None) -> None:
        part = segment(position=position, epoch=epoch, stage=stage)
        self.do(FrameArrived(rows(part) if stage else tokens(part), sender))

    @rule(node_id=st.sampled_from([LEFT, RIGHT]))
    def peer_is_lost(self, node_id: NodeId) -> None:
        self.do(PeerLost(node_id))

    @invariant()
    def all_invariants_hold(self) -> None:
        self.core.validate()

    @invariant()
    def what_is_owed_is_what_was_asked_before_the_present_job(self) -> None:
        for device_id, device in self.core.devices.items():
            expected = device.owed + (device.stage in BUSY)
            assert len(self.asked[device_id]) == expected


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
