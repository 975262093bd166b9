"""The agent on a machine that is used: it leaves the pool, says why, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.agent import agent as agent_module
from client.agent.agent import machine_senses, nvml_of
from client.agent.guard import Guard
from client.agent.policy import QUIET_S
from client.agent.readings import Look
from client.config import NodeConfig
from client.errors import JoinError
from client.status import (
    AgentState,
    Pause,
    Quit,
    Resume,
    SessionReading,
    SetRules,
)
from protocol.messages import Challenge, Hello, Leaving, Refused, encode_message
from protocol.pause import PauseMode, PauseReason, PauseRules, PoolDefaults
from shell import AsyncioEnv
from tests.client.agent.pool_server import CHALLENGE, PoolServer, welcome
from tests.client.agent.waiting import is_alive, until

MakeWorker = Callable[[str], str]
GAME = {"others_percent": 80, "others_program": "factorio"}
AWAY_RULES = PauseRules(mode=PauseMode.WHEN_AWAY)


# ---------------------------------------------------------------- leaving and coming back


async def test_when_a_game_begins_the_pool_is_told_and_no_worker_is_left(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        before = await run.until(AgentState.WAITING)
        run.shows(**GAME)
        status = await run.until(AgentState.PAUSED)
        assert await pool.hears(Leaving) == Leaving("other_gpu_use")
        assert not any(map(is_alive, before.worker_pids))
        assert status.message == "Paused: factorio uses 80 % of the GPU. The GPU's memory is free."
        assert (status.pause.reasons, status.worker_pids) == ((PauseReason.OTHER_GPU_USE,), ())


async def test_no_name_of_a_program_leaves_the_machine(pool: PoolServer, running: Callable) -> None:
    async with running(rules=PauseRules(programs=("factorio",))) as run:
        await run.until(AgentState.WAITING)
        run.shows(programs=frozenset({"factorio"}), **GAME)
        await run.until(AgentState.PAUSED)
        assert (await pool.hears(Leaving)).reason in ("program", "other_gpu_use, program")


async def test_after_the_game_it_comes_back_by_itself_and_the_history_has_both(
    pool: PoolServer, running: Callable
) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        first = await pool.hears(Hello)
        run.shows(**GAME)
        await run.until(AgentState.PAUSED)
        run.shows()
        await until(lambda: run.statuses[-1].pause.resumes_at_s is not None)
        run.clock.jump(QUIET_S)
        await run.until(AgentState.WAITING)
        assert (await pool.hears(Hello)).node_id == first.node_id
        assert [change.reasons for change in run.history.transitions] == [(PauseReason.OTHER_GPU_USE,), ()]


async def test_the_machine_is_watched_while_paused_and_the_end_of_the_wait_is_told(running: Callable) -> None:
    async with running({"on_battery": True}) as run:
        await run.until(AgentState.PAUSED)
        assert run.statuses[-1].pause.resumes_at_s is None
        run.shows()
        await until(lambda: run.statuses[-1].pause.resumes_at_s is not None)
        pause = run.statuses[-1].pause
        assert 0 < pause.resumes_at_s - pause.since_s < 2 * QUIET_S


async def test_a_machine_that_is_busy_at_the_start_never_joins(pool: PoolServer, running: Callable) -> None:
    async with running(GAME) as run:
        await run.until(AgentState.PAUSED)
        await run.looked_again()
        assert pool.messages.empty()
        assert {status.state for status in run.statuses} == {AgentState.CONNECTING, AgentState.PAUSED}
        assert not any(status.worker_pids for status in run.statuses)
        assert [change.reasons for change in run.history.transitions] == [(PauseReason.OTHER_GPU_USE,)]


async def test_a_reason_on_top_is_shown_and_is_no_new_pause(running: Callable) -> None:
    async with running({"on_battery": True}) as run:
        since_s = (await run.paused_for(PauseReason.BATTERY)).pause.since_s
        run.shows(on_battery=True, is_fullscreen=True)
        status = await run.paused_for(PauseReason.FULLSCREEN, PauseReason.BATTERY)
        assert status.pause.since_s == since_s
        assert len(run.history.transitions) == 1


async def test_while_nothing_changes_nothing_is_written(running: Callable) -> None:
    async with running({"on_battery": True}) as run:
        await run.until(AgentState.PAUSED)
        await run.looked_again()
        num_lines = len(run.lines)
        await run.looked_again(10)
        assert len(run.lines) == num_lines


async def test_what_we_do_ourselves_is_known_to_the_senses(running: Callable) -> None:
    async with running() as run:
        pids = (await run.until(AgentState.WAITING)).worker_pids
        await until(lambda: run.machine.looks[-1].gpu.is_idle)
        assert run.machine.looks[-1].gpu.worker_pids == pids
        run.shows(**GAME)
        await run.until(AgentState.PAUSED)
        await run.looked_again()
        assert run.machine.looks[-1].gpu.worker_pids == ()


# ---------------------------------------------------------------- what the volunteer says


async def test_a_pause_for_a_while_ends_by_itself(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(900.0))
        pause = (await run.until(AgentState.PAUSED)).pause
        assert pause.until_s - pause.since_s == pytest.approx(900.0)
        assert await pool.hears(Leaving) == Leaving("manual")
        run.clock.jump(900)
        await run.until(AgentState.WAITING)


async def test_resume_anyway_contributes_though_a_game_runs(running: Callable) -> None:
    async with running(GAME) as run:
        await run.until(AgentState.PAUSED)
        run.command(Resume())
        await run.looked_again()
        assert run.statuses[-1].state is AgentState.PAUSED
        run.command(Resume(anyway=True))
        await run.until(AgentState.WAITING)
        await run.looked_again(10)
        assert run.statuses[-1].state is AgentState.WAITING


async def test_new_rules_act_at_once(running: Callable) -> None:
    async with running(GAME) as run:
        await run.until(AgentState.PAUSED)
        run.command(SetRules(PauseRules(mode=PauseMode.ALWAYS)))
        await run.until(AgentState.WAITING)
        run.command(SetRules(PauseRules(mode=PauseMode.WHEN_AWAY)))
        await run.until(AgentState.PAUSED)


async def test_what_the_desktop_tells_goes_to_the_senses(running: Callable) -> None:
    async with running(rules=AWAY_RULES) as run:
        status = await run.paused_for(PauseReason.USER_ACTIVE)
        assert "idle detection is not available" in status.message
        told = SessionReading(idle_s=600.0)
        run.command(told)
        assert run.machine.told == [told]
        run.shows(idle_s=600.0)
        await run.until(AgentState.WAITING)


async def test_quitting_while_paused_by_a_reason_ends_the_agent(running: Callable) -> None:
    async with running(GAME) as run:
        await run.until(AgentState.PAUSED)
        run.command(Quit())
        async with asyncio.timeout(20):
            await run.task
        assert run.statuses[-1].state is AgentState.STOPPED


# ---------------------------------------------------------------- what the pool wants


def with_rules(rules: PauseRules) -> Challenge:
    return Challenge(CHALLENGE.protocol_versions, CHALLENGE.nonce, CHALLENGE.pool_name, PoolDefaults(rules))


async def test_the_pools_stricter_rules_apply_and_are_kept_while_paused(pool: PoolServer, running: Callable) -> None:
    pool.challenge = with_rules(PauseRules(run_on_battery=False, programs=("steam",)))
    async with running({"on_battery": True}, rules=PauseRules(run_on_battery=True)) as run:
        await run.paused_for(PauseReason.BATTERY)
        await run.looked_again()
        assert run.machine.looks[-1].rules.programs == ("steam",)
        assert run.statuses[-1].state is AgentState.PAUSED


async def test_a_pool_does_not_loosen_the_volunteers_rules(pool: PoolServer, running: Callable) -> None:
    pool.challenge = with_rules(PauseRules(mode=PauseMode.ALWAYS, other_gpu_percent=100))
    async with running(rules=PauseRules(mode=PauseMode.WHEN_FREE, other_gpu_percent=20)) as run:
        await run.until(AgentState.WAITING)
        run.shows(**GAME)
        await run.until(AgentState.PAUSED)


# ---------------------------------------------------------------- trouble


async def refuse(connection: Any, hello: Hello) -> None:
    await connection.send(encode_message(Refused("protocol_version", "This pool speaks version 9.")))


async def test_a_failure_stays_shown_whatever_the_machine_does_until_the_volunteer_acts(
    pool: PoolServer, running: Callable
) -> None:
    pool.greet = refuse
    async with running() as run:
        await run.until(AgentState.FAILED)
        run.shows(on_battery=True)
        await run.looked_again()
        assert run.statuses[-1].state is AgentState.FAILED
        run.command(Resume())
        await run.paused_for(PauseReason.BATTERY)
        pool.greet = welcome
        run.shows()
        await until(lambda: run.statuses[-1].pause.resumes_at_s is not None)
        run.clock.jump(QUIET_S)
        await run.until(AgentState.WAITING)


async def test_without_anybody_to_ask_a_failure_ends_the_agent(pool: PoolServer, running: Callable) -> None:
    pool.greet = refuse
    async with running(attached=False) as run:
        with pytest.raises(JoinError):
            await run.task


@pytest.mark.expected_logs("the machine's readings failed")
async def test_a_defect_in_the_readings_neither_ends_the_contribution_nor_the_watch(running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.machine.fails = ZeroDivisionError()
        await run.looked_again()
        assert run.statuses[-1].state is AgentState.WAITING
        run.machine.fails = None
        run.shows(**GAME)
        await run.until(AgentState.PAUSED)


@pytest.mark.expected_logs("the agent cannot go on")
async def test_an_agent_that_cannot_watch_the_machine_any_more_does_not_serve_on(
    running: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        monkeypatch.setattr(Guard, "see", lambda *arguments: 1 / 0)
        await run.until(AgentState.STOPPED)


# ---------------------------------------------------------------- this machine


async def test_this_machines_own_senses_read_and_close(config: NodeConfig, env: AsyncioEnv) -> None:
    senses = machine_senses(config, env)
    readings = await senses.read(Look(PauseRules(), agent_module.look_of(None, PauseRules()).gpu))
    assert readings.gpus == ()
    assert 0 <= readings.second_of_day < 86_400
    await senses.close()


def test_without_gpus_nvml_is_not_loaded_and_its_module_can_be_named(config: NodeConfig) -> None:
    assert nvml_of(config) is None
    fake = nvml_of(replace(config, use_gpu=True, nvml_module="tests.fakes.fake_nvml"))
    assert fake.__name__ == "tests.fakes.fake_nvml"
    assert nvml_of(replace(config, use_gpu=True, nvml_module="no_such_module")) is None
