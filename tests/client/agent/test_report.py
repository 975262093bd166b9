"""What people are shown is derived from the core, and true."""

from __future__ import annotations

import pytest

from client import ipc
from client.agent.device import Stage
from client.agent.events import FetchFailed, RestartDue, WorkerDied
from client.agent.report import STATE_OF_STAGE, joined_status, offline_status, paused_status
from client.status import AgentState, PauseInfo, Status, decode_report, encode_line
from protocol.pause import PauseReason
from protocol.values import DeviceId, LayerRange
from tests.client.agent.node import Node, node_at
from tests.client.agent.samples import CPU, GPU, GPU_1, open_session

PIDS = {DeviceId("cpu"): 4711}


def status_of(node: Node) -> Status:
    status = joined_status(node.core, "The pool", PIDS)
    assert decode_report(encode_line(status)) == status
    return status


def test_every_stage_has_a_state() -> None:
    assert set(STATE_OF_STAGE) == set(Stage)


@pytest.mark.parametrize(
    ("stage", "state"),
    [
        (Stage.STARTING, AgentState.CONNECTING),
        (Stage.IDLE, AgentState.WAITING),
        (Stage.MEASURING, AgentState.MEASURING),
        (Stage.FETCHING, AgentState.DOWNLOADING),
        (Stage.PLANNING, AgentState.DOWNLOADING),
        (Stage.DOWNLOADING, AgentState.DOWNLOADING),
        (Stage.LOADING, AgentState.LOADING),
        (Stage.SERVING, AgentState.SERVING),
    ],
)
def test_a_node_with_one_device_shows_that_devices_state(stage: Stage, state: AgentState) -> None:
    status = status_of(node_at(stage))
    assert (status.state, status.pool_name, status.worker_pids) == (state, "The pool", (4711,))


def test_the_device_that_has_come_furthest_gives_the_nodes_state() -> None:
    node = node_at(Stage.SERVING, GPU, GPU_1)
    assert status_of(node).state is AgentState.SERVING
    assert [device.state for device in status_of(node).devices] == [AgentState.SERVING, AgentState.CONNECTING]


def test_a_serving_device_shows_its_layers_sessions_and_tokens() -> None:
    node = node_at(Stage.SERVING)
    node.pool(open_session())
    status = status_of(node)
    (device,) = status.devices
    assert (device.model_name, device.layers, device.num_layers) == ("tiny", LayerRange(0, 2), 4)
    assert (status.num_sessions, status.num_tokens) == (1, 0)


def test_a_load_begins_at_nothing_and_not_at_the_downloads_end() -> None:
    (device,) = status_of(node_at(Stage.LOADING)).devices
    assert (device.done_bytes, device.total_bytes) == (0, 0)


def test_an_idle_node_says_what_it_waits_for() -> None:
    assert status_of(node_at(Stage.IDLE)).message == "The pool has no layers for this machine yet."


def test_a_failure_is_shown_until_the_next_job() -> None:
    node = node_at(Stage.FETCHING)
    job = node.device().job
    assert job is not None
    node.handle(FetchFailed(CPU.device_id, job, "disk_full", "The disk is full."))
    assert (status_of(node).state, status_of(node).message) == (AgentState.WAITING, "The disk is full.")
    node.pool(job)
    assert status_of(node).message == ""


def test_a_dead_worker_that_is_started_again_is_no_failure_of_the_node() -> None:
    node = node_at(Stage.SERVING)
    node.handle(WorkerDied(CPU.device_id, 1))
    status = status_of(node)
    assert status.state is AgentState.CONNECTING
    assert status.message == "The worker ended with status 1; it is started again."
    assert status.devices[0].state is AgentState.FAILED


def test_what_happened_to_a_worker_is_a_notice_also_while_it_serves_again() -> None:
    node = node_at(Stage.SERVING)
    assert status_of(node).notice == ""
    node.device().notice = "The worker did not answer and was restarted."
    for status in (status_of(node), offline_status(node.core, "", PIDS, "Connecting.")):
        assert status.notice == "The worker did not answer and was restarted."
    assert status_of(node).state is AgentState.SERVING


def test_offline_the_node_says_what_it_waits_for() -> None:
    status = offline_status(node_at(Stage.IDLE).core, "", PIDS, "Connecting to http://pool.")
    assert (status.state, status.message) == (AgentState.CONNECTING, "Connecting to http://pool.")


def test_offline_without_a_worker_the_worker_is_the_reason() -> None:
    node = Node()
    assert offline_status(node.core, "", {}, "Connecting.").message == "Starting the worker."
    node.handle(WorkerDied(CPU.device_id, 1))
    sentence = "The worker ended with status 1; it is started again."
    assert offline_status(node.core, "", {}, "Connecting.").message == sentence
    node.handle(RestartDue(CPU.device_id))
    assert offline_status(node.core, "", {}, "Connecting.").message == sentence
    node.worker(ipc.WorkerReady(ipc.IPC_VERSION, "", "cpu", 1))
    assert offline_status(node.core, "", {}, "Connecting.").message == "Connecting."


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ("", "Paused. The GPU's memory is free."),
        ("factorio uses 80 % of the GPU", "Paused: factorio uses 80 % of the GPU. The GPU's memory is free."),
    ],
)
def test_a_paused_node_says_what_was_seen(detail: str, message: str) -> None:
    info = PauseInfo((PauseReason.MANUAL,), 5.0, detail, resumes_at_s=60.0)
    status = paused_status(info)
    assert (status.state, status.message, status.pause) == (AgentState.PAUSED, message, info)
    assert decode_report(encode_line(status)) == status
