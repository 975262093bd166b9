"""The node's decisions: an event in, a list of commands out."""

from __future__ import annotations

import msgspec
import pytest

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
from client.agent.device import DID_NOT_ANSWER, MAX_RESTART_S, RAN_OUT_OF_MEMORY, SETTLED_S, Stage
from client.agent.events import (
    Downloaded,
    FetchFailed,
    FrameArrived,
    LookedAtWorkers,
    PeerLost,
    PoolLost,
    PoolSaid,
    RestartDue,
    WorkerDied,
    WorkerSaid,
)
from client.agent.holding import held_slices
from client.agent.watchdog import LOOK_S
from protocol import messages as msg
from protocol.pause import PoolDefaults
from protocol.values import DeviceWork, FinishReason, Hop, LayerRange, StepTiming
from tests.client.agent.node import AWAKE, FOLDER, LOADED, READY, Node, node_at
from tests.client.agent.samples import (
    BENCHMARK,
    CPU,
    GPU,
    GPU_1,
    LAYER_BYTES,
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
READY_MESSAGE = msg.SliceReady("cpu", 1, 1000, True)


def serving(*sessions: msg.OpenSession) -> Node:
    node = node_at(Stage.SERVING)
    for session in sessions:
        node.pool(session)
    return node


# ---------------------------------------------------------------- starting


def test_every_device_gets_a_worker_at_once() -> None:
    assert Node(GPU, GPU_1).commands == [StartWorker(GPU.device_id, 0.0), StartWorker(GPU_1.device_id, 0.0)]


def test_the_node_is_ready_once_no_worker_is_starting_and_offers_those_that_are_up() -> None:
    node = Node(GPU, GPU_1)
    node.worker(READY, GPU)
    assert not node.core.is_ready
    node.handle(WorkerDied(GPU_1.device_id, 1))
    assert node.core.is_ready
    assert node.core.usable_devices == (GPU,)


def test_a_worker_that_says_twice_that_it_is_ready_changes_nothing() -> None:
    node = node_at(Stage.SERVING)
    assert node.worker(READY) == []
    assert node.device().stage is Stage.SERVING


# ---------------------------------------------------------------- measuring


def test_measuring_waits_for_the_manifest_then_asks_the_worker_and_reports() -> None:
    node = node_at(Stage.IDLE)
    job = measure()
    assert node.pool(job) == [FetchManifest(CPU.device_id, job)]
    assert node.manifest() == [TellWorker(CPU.device_id, ipc.MeasureLayers("{}", CPU.variant))]
    answer = node.worker(ipc.LayersMeasured(BENCHMARK))
    assert answer == [TellPool(msg.DeviceMeasured("cpu", model().digest, BENCHMARK))]
    assert node.device().stage is Stage.IDLE


def test_a_known_manifest_is_not_fetched_again() -> None:
    node = node_at(Stage.MEASURING)
    node.worker(ipc.LayersMeasured(BENCHMARK))
    assert [type(message) for message in (node.pool(assign()), node.told)[1]] == [ipc.PlanSlice]


def test_a_measurement_that_fails_is_told_and_leaves_the_device_idle() -> None:
    node = node_at(Stage.MEASURING)
    failed = msg.DeviceFailed("cpu", model().digest, 0, "out_of_memory", "No memory.")
    assert node.worker(ipc.CommandFailed("out_of_memory", "No memory.")) == [TellPool(failed)]
    assert node.device().stage is Stage.IDLE
    assert node.device().message == "No memory."


# ---------------------------------------------------------------- assign -> serve


def test_an_assignment_goes_manifest_plan_download_load_ready() -> None:
    node = node_at(Stage.IDLE)
    job = assign()
    names = tuple(tensor.name for tensor in model().manifest.tensors)
    assert node.pool(job) == [FetchManifest(CPU.device_id, job)]
    assert node.manifest() == [TellWorker(CPU.device_id, ipc.PlanSlice("{}", LayerRange(0, 2), names))]
    wanted = model().tensor_names(0, 1)
    assert node.worker(ipc.SlicePlanned(wanted)) == [Download(CPU.device_id, job, model().manifest, wanted)]
    assert node.handle(Downloaded(CPU.device_id, job, 2, 9)) == [TellPool(msg.SliceProgress("cpu", 1, False, 2, 9))]
    node.downloaded()
    assert node.said == [msg.SliceProgress("cpu", 1, True, 0, 0)]
    (load,) = node.told
    assert isinstance(load, ipc.LoadSlice)
    assert (load.folder, load.layers, load.variant) == (FOLDER, LayerRange(0, 2), CPU.variant)
    assert node.worker(ipc.LoadProgress(3, 4)) == [TellPool(msg.SliceProgress("cpu", 1, True, 3, 4))]
    assert node.worker(LOADED) == [TellPool(READY_MESSAGE)]


def test_kv_room_is_the_devices_memory_less_weights_and_activations() -> None:
    (load,) = node_at(Stage.LOADING).told
    assert isinstance(load, ipc.LoadSlice)
    assert load.max_kv_bytes == int(CPU.memory_bytes * 0.9) - 2 * (LAYER_BYTES // 2) * 4
    assert load.max_sent_bytes == int(CPU.memory_bytes * 0.04), "it is of the activations' share"


def test_kv_room_is_never_negative() -> None:
    tiny = msgspec.structs.replace(CPU, memory_bytes=1000)
    (load,) = node_at(Stage.LOADING, tiny).told
    assert isinstance(load, ipc.LoadSlice)
    assert load.max_kv_bytes == 0


def test_the_same_slice_is_ready_at_once_when_it_is_loaded_already() -> None:
    node = node_at(Stage.SERVING)
    node.handle(PoolLost())
    assert node.pool(assign(generation=7)) == [TellPool(msg.SliceReady("cpu", 7, 1000, True))]


@pytest.mark.parametrize("job", [assign(2, 0, 3), assign(2, 1, 2)], ids=["more", "fewer"])
def test_another_slice_is_planned_and_loaded_anew(job: msg.AssignSlice) -> None:
    node = node_at(Stage.SERVING)
    node.pool(job)
    assert [type(message) for message in node.told] == [ipc.PlanSlice]


def test_a_slice_measured_in_between_is_still_loaded() -> None:
    node = node_at(Stage.SERVING)
    node.pool(measure())
    node.worker(ipc.LayersMeasured(BENCHMARK))
    assert node.pool(assign(2)) == [TellPool(msg.SliceReady("cpu", 2, 1000, True))]


def test_a_load_that_fails_leaves_nothing_loaded() -> None:
    node = node_at(Stage.LOADING)
    node.worker(ipc.CommandFailed("bad_weights", "x" * 900))
    assert node.said == [msg.DeviceFailed("cpu", model().digest, 1, "bad_weights", "x" * 400)]
    node.pool(assign(2))
    assert [type(message) for message in node.told] == [ipc.PlanSlice]


@pytest.mark.parametrize("job", [measure(), assign(5)])
@pytest.mark.parametrize("stage", [Stage.STARTING, Stage.DEAD])
def test_a_job_for_a_device_without_a_worker_is_refused(stage: Stage, job: msg.AssignSlice) -> None:
    node = Node()
    if stage is Stage.DEAD:
        node.handle(WorkerDied(CPU.device_id, 1))
    node.pool(job)
    generation = 5 if isinstance(job, msg.AssignSlice) else 0
    sentence = "The device's worker is not running."
    assert node.said == [msg.DeviceFailed("cpu", model().digest, generation, "no_worker", sentence)]
    assert node.device().job is None


def test_a_job_for_a_device_that_does_not_exist_is_refused() -> None:
    node = node_at(Stage.IDLE)
    node.pool(assign(device=GPU))
    assert [type(message) for message in node.said] == [msg.DeviceFailed]


def test_two_devices_waiting_for_one_manifest_both_begin() -> None:
    node = Node(GPU, GPU_1)
    for spec in (GPU, GPU_1):
        node.worker(READY, spec)
        node.pool(assign(device=spec))
    node.manifest()
    assert [command.device_id for command in node.of(TellWorker)] == ["cuda:0", "cuda:1"]
    assert node.manifest() == []


# ---------------------------------------------------------------- a newer job


@pytest.mark.parametrize("stage", AWAKE)
def test_a_newer_job_replaces_an_older_one_at_every_stage(stage: Stage) -> None:
    node = node_at(stage)
    node.pool(assign(9, 2, 4))
    assert node.device().generation == 9
    assert node.of(StopDownload) == ([StopDownload(CPU.device_id)] if stage is Stage.DOWNLOADING else [])
    assert node.device().owed == (stage in BUSY)


LATE_ANSWERS = {
    Stage.MEASURING: ipc.LayersMeasured(BENCHMARK),
    Stage.PLANNING: ipc.SlicePlanned(("model.layers.0.weight",)),
    Stage.LOADING: LOADED,
}


@pytest.mark.parametrize("stage", BUSY)
@pytest.mark.parametrize("fails", [False, True])
def test_the_workers_late_answer_to_a_replaced_job_is_dropped(stage: Stage, fails: bool) -> None:
    node = node_at(stage)
    node.pool(assign(2, 2, 4))
    late = ipc.CommandFailed("late", "Late.") if fails else LATE_ANSWERS[stage]
    assert node.worker(late) == []
    assert node.device().stage is Stage.PLANNING
    node.worker(ipc.SlicePlanned(model().tensor_names(2, 3)))
    assert [command.tensor_names for command in node.of(Download)] == [model().tensor_names(2, 3)]


def test_progress_of_a_replaced_load_is_dropped_and_still_its_answer_is_owed() -> None:
    node = node_at(Stage.LOADING)
    node.pool(assign(2, 2, 4))
    assert node.worker(ipc.LoadProgress(1, 2)) == []
    assert node.device().owed == 1


def test_two_replaced_jobs_owe_two_answers() -> None:
    node = node_at(Stage.MEASURING)
    node.pool(assign(2, 0, 1))
    node.pool(assign(3, 1, 2))
    assert node.worker(ipc.LayersMeasured(BENCHMARK)) == []
    assert node.worker(ipc.SlicePlanned(("model.layers.0.weight",))) == []
    node.worker(ipc.SlicePlanned(model().tensor_names(1)))
    assert [command.job.generation for command in node.of(Download)] == [3]


def test_late_news_of_a_replaced_download_is_dropped() -> None:
    node = node_at(Stage.DOWNLOADING)
    old = node.device().job
    assert isinstance(old, msg.AssignSlice)
    node.pool(assign(2, 2, 4))
    assert node.handle(Downloaded(CPU.device_id, old, 1, 2)) == []
    assert node.handle(Downloaded(CPU.device_id, old, 2, 2, FOLDER)) == []
    assert node.handle(FetchFailed(CPU.device_id, old, "download_failed", "Late.")) == []
    assert node.device().stage is Stage.PLANNING


def test_a_manifest_that_came_another_way_outweighs_the_failure_to_fetch_it() -> None:
    node = node_at(Stage.FETCHING)
    job = node.device().job
    assert job is not None
    node.manifest()
    assert node.handle(FetchFailed(CPU.device_id, job, "download_failed", "Late.")) == []
    assert node.device().stage is Stage.PLANNING


def test_answers_that_nobody_asked_for_are_dropped() -> None:
    node = node_at(Stage.IDLE)
    for answer in (*LATE_ANSWERS.values(), ipc.CommandFailed("x", "X."), ipc.LoadProgress(1, 2)):
        assert node.worker(answer) == []


@pytest.mark.parametrize("stage", AWAKE[1:])
def test_release_ends_whatever_the_device_does(stage: Stage) -> None:
    node = node_at(stage)
    generation = node.device().generation
    node.pool(msg.ReleaseSlice("cpu", generation))
    assert node.device().stage is Stage.IDLE
    assert node.of(StopDownload) == ([StopDownload(CPU.device_id)] if stage is Stage.DOWNLOADING else [])


def test_release_of_an_older_generation_or_an_idle_device_does_nothing() -> None:
    node = node_at(Stage.SERVING)
    assert node.pool(msg.ReleaseSlice("cpu", 0)) == []
    assert node.device().stage is Stage.SERVING
    assert node_at(Stage.IDLE).pool(msg.ReleaseSlice("cpu", 0)) == []
    assert node.pool(msg.ReleaseSlice("cuda:7", 1)) == []


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("stage", [Stage.FETCHING, Stage.DOWNLOADING])
def test_a_failed_fetch_is_told_with_its_sentence(stage: Stage) -> None:
    node = node_at(stage)
    job = node.device().job
    assert job is not None
    node.handle(FetchFailed(CPU.device_id, job, "disk_full", "The disk is full."))
    assert node.said == [msg.DeviceFailed("cpu", model().digest, 1, "disk_full", "The disk is full.")]
    assert node.device().stage is Stage.IDLE
    assert node.device().message == "The disk is full."


@pytest.mark.parametrize(("share", "max_layers"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1), (None, None)])
def test_a_full_disk_is_told_with_how_many_of_the_layers_would_fit(share: float | None, max_layers: int | None) -> None:
    node = node_at(Stage.DOWNLOADING)
    job = node.device().job
    assert isinstance(job, msg.AssignSlice)
    assert len(job.layers) == 2
    node.handle(FetchFailed(CPU.device_id, job, "disk_full", "Full.", share))
    assert node.said == [msg.DeviceFailed("cpu", model().digest, 1, "disk_full", "Full.", max_layers)]


@pytest.mark.parametrize("stage", AWAKE)
def test_a_workers_death_is_told_and_it_is_started_again(stage: Stage) -> None:
    node = node_at(stage)
    job = node.device().job
    node.handle(WorkerDied(CPU.device_id, -9))
    generation = job.generation if isinstance(job, msg.AssignSlice) else 0
    sentence = "The worker ended with status -9; it is started again."
    failed = msg.DeviceFailed("cpu", model().digest, generation, "worker_died", sentence)
    assert node.said == ([failed] if job else [])
    assert node.of(StopDownload) == ([StopDownload(CPU.device_id)] if stage is Stage.DOWNLOADING else [])
    assert node.commands[-1] == StartWorker(CPU.device_id, 1.0)
    assert node.core.usable_devices == ()


def test_a_death_with_a_reason_is_told_by_it() -> None:
    node = node_at(Stage.SERVING)
    node.handle(WorkerDied(CPU.device_id, 127, "The worker cannot be started (Permission denied)"))
    assert node.device().message == "The worker cannot be started (Permission denied); it is started again."


def test_the_delay_before_a_restart_grows_to_a_limit_and_for_ever() -> None:
    node = Node()
    delays = []
    for _ in range(1100):
        node.handle(WorkerDied(CPU.device_id, 1))
        delays.append(node.of(StartWorker)[0].delay_s)
        node.handle(RestartDue(CPU.device_id))
    assert delays[:4] == [1.0, 2.0, 4.0, 8.0]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_RESTART_S


def silent(node: Node, looks: int, uses: float | None = 7.0) -> list[Command]:
    """What the core wants while its worker says nothing for so many looks."""
    commands = []
    for _ in range(looks):
        node.now_s += LOOK_S
        commands += node.handle(LookedAtWorkers(dict.fromkeys(node.core.watchdog.doubted, uses)))
    return commands


def with_rows() -> Node:
    """It has worked on a session, and has rows of it now."""
    node = serving(open_session())
    node.worker(ipc.SessionStarted(SESSION, 1))
    node.handle(FrameArrived(rows(segment()), LEFT))
    node.worker(ipc.WorkDone(1, 1, 0, 0.1))
    return node


def test_a_worker_that_hangs_with_rows_is_asked_then_given_up_ended_and_started_again() -> None:
    node = with_rows()
    asked, *ended = silent(node, 30)
    assert asked == TellWorker(CPU.device_id, ipc.AreYouThere())
    sentence = "The worker did not answer and is being ended."
    failed = msg.DeviceFailed("cpu", model().digest, 1, "worker_died", sentence)
    assert ended == [TellPool(failed), EndWorker(CPU.device_id, DID_NOT_ANSWER)]
    assert node.core.switch.num_sessions == 0
    assert node.core.usable_devices == ()
    assert node.handle(WorkerDied(CPU.device_id, -9, DID_NOT_ANSWER)) == [StartWorker(CPU.device_id, 1.0)]
    assert node.device().message == "The worker did not answer; it is started again."


@pytest.mark.parametrize(("is_open", "num_looks"), [(False, 15), (True, 70)])
def test_a_worker_that_has_never_worked_has_long_for_first_rows_but_not_to_say_that_it_has_opened_a_session(
    is_open: bool, num_looks: int
) -> None:
    node = serving(open_session())
    if is_open:
        node.worker(ipc.SessionStarted(SESSION, 1))
    node.handle(FrameArrived(rows(segment()), LEFT))  # a head's rows may come before its worker is ready for them
    assert EndWorker(CPU.device_id, DID_NOT_ANSWER) in silent(node, num_looks)


def test_a_worker_may_be_at_its_first_rows_for_long_while_another_session_is_not_opened() -> None:
    node = serving(open_session())
    node.worker(ipc.SessionStarted(SESSION, 1))
    node.handle(FrameArrived(rows(segment()), LEFT))
    node.pool(open_session(session_id="b" * 32))
    assert EndWorker(CPU.device_id, DID_NOT_ANSWER) not in silent(node, 50)


def test_what_happened_to_a_worker_is_told_for_a_while_after_it_is_back() -> None:
    node = with_rows()
    silent(node, 30)
    node.handle(WorkerDied(CPU.device_id, -9, DID_NOT_ANSWER))
    node.handle(RestartDue(CPU.device_id))
    node.worker(READY)
    silent(node, 300)
    assert (node.device().message, node.device().notice) == ("", "The worker did not answer and was restarted.")
    silent(node, 301)
    assert node.device().notice == ""


def test_a_worker_that_hangs_again_and_again_is_started_later_each_time() -> None:
    node, delays = with_rows(), []
    for generation in range(2, 6):
        silent(node, 200)
        delays += [command.delay_s for command in node.handle(WorkerDied(CPU.device_id, -9, DID_NOT_ANSWER))]  # type: ignore[union-attr]
        node.handle(RestartDue(CPU.device_id))
        for message in (READY, assign(generation), ipc.SlicePlanned(()), None, LOADED):
            node.downloaded() if message is None else _say(node, message)
        node.pool(open_session(generation=generation))
    assert delays == [1.0, 2.0, 4.0, 8.0]


def _say(node: Node, message: ipc.WorkerMessage | msg.AssignSlice) -> None:
    node.pool(message) if isinstance(message, msg.AssignSlice) else node.worker(message)


@pytest.mark.parametrize("stage", [Stage.IDLE, Stage.FETCHING, Stage.DOWNLOADING, Stage.SERVING])
def test_a_worker_that_owes_nothing_may_be_silent_for_ever(stage: Stage) -> None:
    assert silent(node_at(stage), 3000) == []


@pytest.mark.parametrize("stage", BUSY)
def test_a_command_that_is_never_answered_is_the_end_of_its_worker(stage: Stage) -> None:
    node = node_at(stage)
    commands = silent(node, 200)
    assert commands[0] == TellWorker(CPU.device_id, ipc.AreYouThere())
    assert commands[-1] == EndWorker(CPU.device_id, DID_NOT_ANSWER)


def test_an_order_to_open_that_is_never_answered_counts_like_rows() -> None:
    node = serving(open_session())
    assert EndWorker(CPU.device_id, DID_NOT_ANSWER) in silent(node, 100)
    node = serving(open_session())
    node.worker(ipc.SessionStarted(SESSION, 1))
    assert silent(node, 100) == []


def test_a_worker_that_computes_or_answers_is_left_alone() -> None:
    node = with_rows()
    for _ in range(20):
        asked = silent(node, 8)
        assert asked in ([], [TellWorker(CPU.device_id, ipc.AreYouThere())])
        node.worker(ipc.Here())
    node = with_rows()
    assert silent(node, 200, None) == [TellWorker(CPU.device_id, ipc.AreYouThere())]


def test_a_device_without_memory_offers_less_room_and_keeps_its_sessions() -> None:
    node = serving(open_session())
    assert node.worker(ipc.NoMemory(800, 1)) == [TellPool(msg.SliceReady("cpu", 1, 592, True))]
    assert node.worker(ipc.NoMemory(400, 2)) == [TellPool(msg.SliceReady("cpu", 1, 288, True))]
    assert node.core.switch.num_sessions == 1
    assert [held.num_kv_tokens for held in held_slices(node.core.devices.values())] == [288]


def test_three_times_in_a_row_without_memory_the_slice_fails_and_is_loaded_with_less_room() -> None:
    node = serving(open_session())
    loads = [load for load in node_at(Stage.LOADING).told if isinstance(load, ipc.LoadSlice)]
    for number in (1, 2):
        node.worker(ipc.NoMemory(10, number))
    sentence = "The worker ran out of the device's memory three times in a row and is being ended."
    failed = msg.DeviceFailed("cpu", model().digest, 1, "out_of_memory", sentence)
    assert node.worker(ipc.NoMemory(10, 3)) == [TellPool(failed), EndWorker(CPU.device_id, RAN_OUT_OF_MEMORY)]
    node.handle(WorkerDied(CPU.device_id, -9, RAN_OUT_OF_MEMORY))
    assert node.device().notice.endswith("If that goes on, offer less memory in the settings.")
    node.handle(RestartDue(CPU.device_id))
    for message in (READY, assign(2), ipc.SlicePlanned(model().tensor_names(0, 1))):
        _say(node, message)
    node.downloaded()
    (load,) = node.told
    assert isinstance(load, ipc.LoadSlice)
    assert 0 < load.max_kv_bytes <= loads[0].max_kv_bytes * 0.13


@pytest.mark.parametrize("stage", [stage for stage in AWAKE if stage is not Stage.SERVING])
def test_late_news_of_a_lack_of_memory_is_dropped(stage: Stage) -> None:
    assert node_at(stage).worker(ipc.NoMemory(10, 3)) == []


@pytest.mark.parametrize(
    ("has_worked", "served_s", "delay_s"), [(True, SETTLED_S, 1.0), (True, SETTLED_S - 1, 32.0), (False, 600.0, 32.0)]
)
def test_only_a_worker_that_did_something_for_a_while_is_restarted_quickly_again(
    has_worked: bool, served_s: float, delay_s: float
) -> None:
    node = Node()
    for _ in range(5):
        node.handle(WorkerDied(CPU.device_id, 1))
        node.handle(RestartDue(CPU.device_id))
    node.worker(READY)
    node.pool(assign())
    node.manifest()
    node.worker(ipc.SlicePlanned(()))
    node.downloaded()
    node.worker(LOADED)
    if has_worked:
        node.worker(ipc.WorkDone(1, 1, 0, 0.1))
    node.core.handle(LookedAtWorkers({}), served_s)
    node.handle(WorkerDied(CPU.device_id, 1))
    assert node.of(StartWorker) == [StartWorker(CPU.device_id, delay_s)]


def test_a_restarted_worker_holds_nothing_and_owes_nothing() -> None:
    node = node_at(Stage.LOADING)
    node.pool(assign(2))
    node.handle(WorkerDied(CPU.device_id, 1))
    node.handle(RestartDue(CPU.device_id))
    node.worker(READY)
    node.pool(assign(3))
    node.worker(ipc.SlicePlanned(model().tensor_names(0, 1)))
    assert len(node.of(Download)) == 1


@pytest.mark.parametrize("stage", AWAKE)
def test_a_lost_pool_ends_every_job_but_not_the_worker_and_what_it_serves(stage: Stage) -> None:
    node = node_at(stage)
    node.handle(PoolLost())
    assert node.device().stage is (Stage.SERVING if stage is Stage.SERVING else Stage.IDLE)
    assert node.of(StopDownload) == ([StopDownload(CPU.device_id)] if stage is Stage.DOWNLOADING else [])
    assert node.device().owed == (stage in BUSY)
    assert node.handle(PoolLost()) == []


def test_a_lost_pool_leaves_starting_and_dead_workers_alone() -> None:
    node = Node(GPU, GPU_1)
    node.handle(WorkerDied(GPU_1.device_id, 1))
    node.handle(PoolLost())
    assert [device.stage for device in node.core.devices.values()] == [Stage.STARTING, Stage.DEAD]


# ---------------------------------------------------------------- sessions and frames


def test_a_session_opens_at_the_worker_and_is_reported_when_it_has() -> None:
    node = serving(open_session())
    (start,) = node.told
    assert isinstance(start, ipc.StartSession)
    assert (start.session_id, start.stage, start.next_link, start.next_stage) == (SESSION, 1, 0, 2)
    assert node.worker(ipc.SessionStarted(SESSION, 1)) == [TellPool(msg.SessionOpened(SESSION, 1, 1))]


def test_what_a_worker_has_from_its_cache_is_told_and_rows_may_begin_behind_it() -> None:
    node = serving(open_session())
    opened = msg.SessionOpened(SESSION, 1, 1, num_cached_tokens=32)
    assert node.worker(ipc.SessionStarted(SESSION, 1, 32)) == [TellPool(opened)]
    frame = rows(segment(position=16))
    assert node.handle(FrameArrived(frame, LEFT)) == [PassFrame(CPU.device_id, frame)]


def test_a_close_names_blocks_for_the_worker() -> None:
    node = serving(open_session())
    names = ("1" * 32, "2" * 32)
    assert node.pool(msg.CloseSession(SESSION, 1, names)) == [
        TellWorker(CPU.device_id, ipc.EndSession(SESSION, 1, names))
    ]


@pytest.mark.parametrize("stage", [stage for stage in AWAKE if stage is not Stage.SERVING])
def test_a_session_is_refused_unless_the_slice_is_served(stage: Stage) -> None:
    node = node_at(stage)
    node.pool(open_session())
    sentence = "The device does not serve this slice any more."
    assert node.said == [msg.SessionBroken(SESSION, 1, 1, "not_serving", sentence)]
    assert node.core.switch.num_sessions == 0


@pytest.mark.parametrize("message", [open_session(generation=2), open_session(device=GPU)])
def test_a_session_for_another_generation_or_device_is_refused(message: msg.OpenSession) -> None:
    node = serving(message)
    assert [type(said) for said in node.said] == [msg.SessionBroken]


def test_a_closed_session_ends_at_its_worker_once() -> None:
    node = serving(open_session())
    close = msg.CloseSession(SESSION, 1)
    assert node.pool(close) == [TellWorker(CPU.device_id, ipc.EndSession(SESSION, 1))]
    assert node.pool(close) == []


def test_closing_an_older_epoch_leaves_the_newer_one() -> None:
    node = serving(open_session(epoch=3))
    assert node.pool(msg.CloseSession(SESSION, 2)) == []
    assert node.core.switch.num_sessions == 1


def test_a_stage_that_moves_to_the_nodes_other_device_ends_on_the_first_when_the_pool_says_so() -> None:
    node = Node(GPU, GPU_1)
    for spec in (GPU, GPU_1):
        node.worker(READY, spec)
        node.pool(assign(device=spec))
        node.manifest()
        node.worker(ipc.SlicePlanned(()), spec)
        node.downloaded(spec)
        node.worker(LOADED, spec)
    node.pool(open_session(epoch=1, device=GPU))
    node.pool(open_session(epoch=2, device=GPU_1))
    assert node.pool(msg.CloseSession(SESSION, 1)) == [TellWorker(GPU.device_id, ipc.EndSession(SESSION, 1))]
    assert node.worker(ipc.SessionStarted(SESSION, 1), GPU) == []
    assert len(node.worker(ipc.SessionStarted(SESSION, 2), GPU_1)) == 1


def test_a_session_that_fails_at_the_worker_is_told_with_its_stage() -> None:
    node = serving(open_session())
    node.worker(ipc.SessionFailed(SESSION, 1, "kv_full", "x" * 500))
    assert node.said == [msg.SessionBroken(SESSION, 1, 1, "kv_full", "x" * 400)]


def test_what_a_worker_says_about_a_closed_session_is_dropped() -> None:
    node = serving(open_session(), msg.CloseSession(SESSION, 1))
    late = (
        ipc.SessionStarted(SESSION, 1),
        ipc.SessionFailed(SESSION, 1, "kv_full", "Full."),
        ipc.Sampled(SESSION, 1, 4, (7,), None, StepTiming()),
    )
    for message in late:
        assert node.worker(message) == []
    assert node.core.num_tokens == 0


def test_sampled_tokens_go_to_the_pool_and_are_counted() -> None:
    node = serving(open_session(stage=2))
    timing = StepTiming(3, 4)
    node.worker(ipc.Sampled(SESSION, 1, 4, (7, 8), FinishReason.STOP, timing))
    assert node.said == [
        msg.TokensSampled(SESSION, 1, 4, (7, 8), finish_reason=FinishReason.STOP, timing=timing),
    ]
    assert node.core.num_tokens == 2


def test_a_good_frame_goes_to_its_worker() -> None:
    node = serving(open_session())
    frame = rows(segment(num_tokens=4))
    assert node.handle(FrameArrived(frame, LEFT)) == [PassFrame(CPU.device_id, frame)]


def test_a_frame_from_the_coordinator_needs_no_sender() -> None:
    node = serving(open_session(stage=0))
    frame = tokens(segment(num_tokens=4, stage=0))
    assert node.handle(FrameArrived(frame, None)) == [PassFrame(CPU.device_id, frame)]


def test_lost_rows_break_the_session_once() -> None:
    node = serving(open_session())
    broken = msg.SessionBroken(SESSION, 1, 1, "rows_lost", "Rows were lost on the way here.")
    assert node.handle(FrameArrived(rows(segment(position=2)), LEFT)) == [TellPool(broken)]
    assert node.handle(FrameArrived(rows(segment(position=3)), LEFT)) == []


def test_a_lost_peer_breaks_the_sessions_whose_rows_went_there() -> None:
    elsewhere = Hop("d" * 32, 2)
    node = serving(open_session(), open_session(OTHER_SESSION, following=elsewhere))
    broken = msg.SessionBroken(SESSION, 1, 1, "link_lost", "The link to the next node broke.")
    assert node.handle(PeerLost(RIGHT)) == [TellPool(broken)]
    assert node.handle(PeerLost(LEFT)) == []


@pytest.mark.parametrize("event", [PoolLost(), PoolSaid(assign(2)), PoolSaid(msg.ReleaseSlice("cpu", 1))])
def test_sessions_end_at_the_worker_with_the_job_they_ran_on(event: PoolSaid | PoolLost) -> None:
    node = serving(open_session(), open_session(OTHER_SESSION, epoch=2))
    node.handle(event)
    ended = [message for message in node.told if isinstance(message, ipc.EndSession)]
    assert ended == [ipc.EndSession(SESSION, 1), ipc.EndSession(OTHER_SESSION, 2)]
    assert node.core.switch.num_sessions == 0


def test_a_dead_workers_sessions_are_forgotten() -> None:
    node = serving(open_session())
    node.handle(WorkerDied(CPU.device_id, 1))
    assert node.core.switch.num_sessions == 0


def test_a_welcome_and_a_refusal_need_no_answer() -> None:
    node = node_at(Stage.IDLE)
    assert node.pool(msg.Welcome(2, "pool", 5.0, "weights-token")) == []
    assert node.pool(msg.Challenge((2,), "5f" * 32, "pool")) == []
    assert node.pool(msg.Refused("no", "No.")) == []


# ---------------------------------------------------------------- the pool's limits, weights in use


def test_a_device_offers_what_the_stricter_of_volunteer_and_pool_allows() -> None:
    own = msgspec.structs.replace(CPU, max_layers=8)
    node = Node(own, GPU)
    node.core.limit(PoolDefaults(max_memory_bytes=GPU.memory_bytes - 1, max_layers=12))
    assert (node.device(own).spec.memory_bytes, node.device(own).spec.max_layers) == (CPU.memory_bytes, 8)
    assert (node.device(GPU).spec.memory_bytes, node.device(GPU).spec.max_layers) == (GPU.memory_bytes - 1, 12)


def test_a_pool_that_loosens_its_limits_gets_what_the_volunteer_offers() -> None:
    node = Node(CPU)
    node.core.limit(PoolDefaults(max_memory_bytes=1, max_layers=1))
    node.core.limit(PoolDefaults())
    assert node.device(CPU).spec == CPU


def test_a_slice_is_loaded_into_the_memory_that_the_pool_allows() -> None:
    def kv_bytes(limits: PoolDefaults) -> int:
        node = node_at(Stage.DOWNLOADING)
        node.core.limit(limits)
        node.downloaded()
        (load,) = [message for message in node.told if isinstance(message, ipc.LoadSlice)]
        return load.max_kv_bytes

    assert kv_bytes(PoolDefaults(max_memory_bytes=CPU.memory_bytes // 2)) < kv_bytes(PoolDefaults())


def test_weights_are_in_use_from_the_assignment_on_and_as_long_as_they_are_held() -> None:
    assert node_at(Stage.IDLE).core.weights_in_use == []
    for stage in (Stage.FETCHING, Stage.DOWNLOADING, Stage.LOADING, Stage.SERVING):
        assert node_at(stage).core.weights_in_use == [model().digest]
    node = node_at(Stage.SERVING)
    other = msgspec.structs.replace(assign(generation=2), manifest_hash="f" * 64)
    node.pool(other)
    assert set(node.core.weights_in_use) == {model().digest, "f" * 64}


def test_two_devices_with_one_model_are_two_uses() -> None:
    node = node_at(Stage.SERVING, CPU, GPU)
    node.worker(READY, GPU)
    node.pool(assign(device=GPU))
    assert node.core.weights_in_use == [model().digest] * 2


# ---------------------------------------------------------------- links and live work


def test_links_are_measured_when_the_pool_asks() -> None:
    node = node_at(Stage.IDLE)
    targets = (Hop(LEFT, 0), Hop(RIGHT, 0, "wss://10.0.0.7:9000"))
    assert node.pool(msg.MeasureLinks(targets)) == [MeasureLinks(targets)]


def test_live_work_is_summed_until_the_pool_is_told() -> None:
    node = node_at(Stage.SERVING)
    node.worker(ipc.WorkDone(3, 5, 100, 0.25))
    assert node.worker(ipc.WorkDone(2, 4, 0, 0.5)) == []
    assert node.core.take_work() == (DeviceWork(CPU.device_id, 1, 5, 9, 100, 0.75),)
    assert node.core.take_work() == ()


def test_work_counts_for_the_assignment_that_did_it() -> None:
    node = node_at(Stage.SERVING)
    node.worker(ipc.WorkDone(1, 1, 0, 0.5))
    node.pool(assign(generation=2))
    node.worker(ipc.WorkDone(2, 2, 0, 0.5))
    assert [(work.generation, work.num_steps) for work in node.core.take_work()] == [(1, 1), (2, 2)]


def test_work_of_a_slice_that_serves_no_more_is_forgotten() -> None:
    node = node_at(Stage.SERVING)
    node.pool(msg.ReleaseSlice(CPU.device_id, 1))
    node.worker(ipc.WorkDone(1, 1, 0, 0.5))
    assert node.core.take_work() == ()


def test_another_pool_hears_nothing_of_the_work_for_the_last_one() -> None:
    node = node_at(Stage.SERVING)
    node.worker(ipc.WorkDone(1, 1, 0, 0.5))
    node.handle(PoolLost())
    assert node.core.take_work() == ()


# ---------------------------------------------------------------- where rows are


def where_in(node: Node, now_s: float, stage: int = 1, epoch: int = 1) -> list[object]:
    return list(node.core.handle(PoolSaid(msg.WhereAreRows(SESSION, epoch, stage)), now_s))


def test_the_agent_says_where_rows_are_without_its_worker() -> None:
    node = serving(open_session())
    node.core.handle(FrameArrived(rows(segment(num_tokens=2)), LEFT), 3.0)
    assert where_in(node, 7.5) == [TellPool(msg.RowsAt(SESSION, 1, 1, 2, 0, 4.5))]


def test_a_tail_that_is_alone_has_answered_with_what_it_sampled() -> None:
    node = serving(open_session(stage=0, num_stages=1, previous=NODE))
    node.core.handle(FrameArrived(tokens(segment(num_tokens=4, stage=0)), None), 1.0)
    assert where_in(node, 2.0, stage=0) == [TellPool(msg.RowsAt(SESSION, 1, 0, 4, 0, 1.0))]
    node.core.handle(WorkerSaid(CPU.device_id, ipc.Sampled(SESSION, 1, 4, (9,), None, StepTiming())), 2.5)
    assert where_in(node, 9.0, stage=0) == [TellPool(msg.RowsAt(SESSION, 1, 0, 4, 5, 0.0))]


def test_a_session_that_is_not_open_here_is_told_as_broken_in_the_epoch_that_was_asked_for() -> None:
    node = serving(open_session(epoch=1))
    [answer] = where_in(node, 0.0, epoch=2)
    assert isinstance(answer, TellPool)
    assert isinstance(answer.message, msg.SessionBroken)
    assert (answer.message.epoch, answer.message.stage, answer.message.code) == (2, 1, "not_open")
