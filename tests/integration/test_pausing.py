"""A volunteer takes the GPU back: by a click in the middle of answers, and by starting a game."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.attached_agent import AttachedAgent, wait_ended
from client.status import AgentState, Pause, Resume
from demo.local_pool import is_running, local_pool
from protocol.pause import PauseReason
from tests.fakes.fake_nvml import SCRIPT_VARIABLE, FakeGpu, FakeProcess, write_script
from tests.integration.conftest import READY_S, Served
from tests.integration.streams import Stream

VOLUNTEER, REPLICA = "volunteer", "replica"
NUM_STREAMS = 6
NUM_TOKENS = 100
FAST, SLOW = ("--pace", "3,0.1,0.1"), ("--pace", "15,0.5,0.1")
"""Milliseconds a layer: the volunteer is the faster one, however busy the machine is while they measure themselves."""
QUIET_GPU = FakeGpu(is_offered=False)
"""It is watched; what is contributed is the CPU, as this test has no other device."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What NVML says of the volunteer's GPU."""
    path = tmp_path_factory.mktemp("nvml") / "gpus.json"
    write_script(path, QUIET_GPU)
    return path


@pytest.fixture(scope="module")
def pool_and_agent(
    endless_folder: Path, script: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, AttachedAgent]]:
    """Two nodes, each with the whole model; one of them is driven as the tray app drives it."""
    folder = tmp_path_factory.mktemp("pausing")
    options = ("--name", VOLUNTEER, "--nvml-module", "tests.fakes.fake_nvml", *FAST)
    with pytest.MonkeyPatch.context() as patch, local_pool(folder, [str(endless_folder)]) as pool:
        patch.setenv(SCRIPT_VARIABLE, str(script))
        with AttachedAgent(pool.url, folder / VOLUNTEER, *options) as agent:
            pool.add_node(REPLICA, "--cpu", *SLOW)
            served = Served(pool, endless_folder.name)
            wait_serving(served, {VOLUNTEER, REPLICA})
            yield served, agent


def wait_serving(served: Served, names: set[str]) -> None:
    served.pool.wait_until(lambda state: serving_in(state) == names, READY_S)


def serving_in(state: dict[str, list[dict[str, str]]]) -> set[str]:
    return {node["name"] for node in state["nodes"] if node["state"] == "serving"}


@pytest.mark.parametrize("after_answers", [False, True])
def test_a_pause_in_the_middle_of_answers_breaks_and_changes_none(
    pool_and_agent: tuple[Served, AttachedAgent], after_answers: bool
) -> None:
    served, agent = pool_and_agent
    wait_serving(served, {VOLUNTEER, REPLICA})
    questions = [f"story number {number}" for number in range(NUM_STREAMS)]
    undisturbed = [served.tokens(question, NUM_TOKENS) for question in questions]
    streams = [Stream(served, question, NUM_TOKENS) for question in questions]
    for stream in streams:
        stream.wait_begun()
    workers = agent.last.worker_pids
    at_s = agent.send(Pause(after_answers=after_answers))
    wait_ended(workers)
    assert [stream.wait() for stream in streams] == undisturbed
    moved = [stream.chains for stream in streams if len(stream.chains) > 1]
    assert moved, "some of them ran on the volunteer's machine"
    assert all(chains == [[VOLUNTEER], [REPLICA]] for chains in moved)
    paused = agent.wait_for(AgentState.PAUSED, since_s=at_s).status
    assert paused.pause is not None
    assert paused.pause.reasons == (PauseReason.MANUAL,)
    assert paused.worker_pids == ()
    agent.wait_for(AgentState.SERVING, since_s=agent.send(Resume()))


def test_a_game_takes_the_gpu_and_gives_it_back(pool_and_agent: tuple[Served, AttachedAgent], script: Path) -> None:
    served, agent = pool_and_agent
    wait_serving(served, {VOLUNTEER, REPLICA})
    workers, num_transitions = agent.last.worker_pids, len(agent.transitions)
    game = FakeProcess(os.getpid(), sm=80, memory_bytes=3 * 10**9)
    write_script(script, FakeGpu(is_offered=False, processes=[game]))
    paused = agent.wait(lambda status: status.state is AgentState.PAUSED and status.pause is not None, since(agent))
    assert paused.status.pause is not None
    assert paused.status.pause.reasons == (PauseReason.OTHER_GPU_USE,)
    assert "uses 80 % of the GPU" in paused.status.pause.detail
    assert not any(map(is_running, workers))
    wait_serving(served, {REPLICA})

    write_script(script, QUIET_GPU)
    quiet = agent.wait(lambda status: status.pause is not None and status.pause.resumes_at_s is not None, paused.at_s)
    assert quiet.status.state is AgentState.PAUSED, "it waits for quiet before it goes on by itself"
    agent.wait_for(AgentState.SERVING, since_s=agent.send(Resume()))
    wait_serving(served, {VOLUNTEER, REPLICA})
    went, came = agent.transitions[num_transitions:]
    assert (went.reasons, came.reasons) == ((PauseReason.OTHER_GPU_USE,), ())
    assert went.at_s < came.at_s


def since(agent: AttachedAgent) -> float:
    """Now, as far as its statuses go."""
    return agent.seen[-1].at_s
