"""How long the agent lets what runs here end before it leaves, and what takes a leave back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from client.agent.agent import HARD_LEAVE_S, QUIT_LEAVE_S, listen_to_pauses
from client.agent.contribution import Contribution
from client.status import SOFT_LEAVE_S, AgentState, Pause, Quit, Resume
from client.supervisor_table import QUIT_LIMIT_S
from protocol.messages import Leaving
from protocol.pause import PauseReason
from tests.client.agent.pool_server import PoolServer
from tests.client.agent.waiting import is_alive, until

GAME = {"others_percent": 80, "others_program": "factorio"}


class Handing:
    """In place of Contribution.hand_over: a pool that moves nothing until `ended`. Keeps how long it was given."""

    def __init__(self) -> None:
        self.given_s: list[float] = []
        self.ended = asyncio.Event()

    async def __call__(self, contribution: Contribution, within_s: float) -> None:
        assert contribution.has_joined
        self.given_s.append(within_s)
        if within_s > HARD_LEAVE_S:
            await self.ended.wait()

    async def wait(self, *given_s: float) -> None:
        await until(lambda: self.given_s == [*given_s])


@pytest.fixture
def handing(monkeypatch: pytest.MonkeyPatch) -> Handing:
    handing = Handing()

    async def hand_over(contribution: Contribution, within_s: float) -> None:
        await handing(contribution, within_s)

    monkeypatch.setattr(Contribution, "hand_over", hand_over)
    return handing


async def test_a_game_waits_for_a_moment_only(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.shows(**GAME)
        await run.until(AgentState.PAUSED)
        assert handing.given_s == [HARD_LEAVE_S]


async def test_a_click_on_pause_does_too(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause())
        await run.until(AgentState.PAUSED)
        assert handing.given_s == [HARD_LEAVE_S]


async def test_what_can_wait_is_cut_short_by_what_cannot(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.shows(on_battery=True)
        await handing.wait(SOFT_LEAVE_S)
        assert run.statuses[-1].worker_pids
        run.command(Pause())
        await run.until(AgentState.PAUSED)
        assert handing.given_s == [SOFT_LEAVE_S, HARD_LEAVE_S]


async def test_a_second_quit_is_in_a_hurry(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Quit())
        await handing.wait(QUIT_LEAVE_S)
        run.command(Quit())
        await run.until(AgentState.STOPPED)
        assert handing.given_s == [QUIT_LEAVE_S, HARD_LEAVE_S]


async def test_when_nobody_is_there_to_wait_it_goes_at_once(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Quit(at_once=True))
        await run.until(AgentState.STOPPED)
        assert handing.given_s == [HARD_LEAVE_S]


async def test_an_agent_that_is_cancelled_while_it_waits_leaves_nothing(handing: Handing, running: Callable) -> None:
    async with running() as run:
        workers = (await run.until(AgentState.WAITING)).worker_pids
        run.command(Quit())
        await handing.wait(QUIT_LEAVE_S)
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)
        assert not any(map(is_alive, workers))


def test_who_waits_for_the_agents_end_waits_for_what_it_hands_over() -> None:
    assert QUIT_LEAVE_S < QUIT_LIMIT_S
    assert HARD_LEAVE_S <= 1.0, "with the workers' end, the memory is to be free within two seconds"


# ---------------------------------------------------------------- a pause by hand, after the answers


async def test_a_pause_after_answers_leaves_when_they_have_ended(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await handing.wait(SOFT_LEAVE_S)
        assert run.statuses[-1].worker_pids
        handing.ended.set()
        status = await run.until(AgentState.PAUSED)
        assert status.pause.reasons == (PauseReason.MANUAL,)
        assert handing.given_s == [SOFT_LEAVE_S]


async def test_without_answers_it_is_a_pause_at_once(pool: PoolServer, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await run.until(AgentState.PAUSED)
        assert await pool.hears(Leaving) == Leaving("manual")


@pytest.mark.parametrize("what", ["a click", "a game"])
async def test_whoever_wants_the_gpu_meanwhile_has_it_at_once(handing: Handing, running: Callable, what: str) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await handing.wait(SOFT_LEAVE_S)
        run.command(Pause()) if what == "a click" else run.shows(**GAME)
        reasons = (await run.until(AgentState.PAUSED)).pause.reasons
        assert (
            reasons == (PauseReason.MANUAL,) if what == "a click" else (PauseReason.MANUAL, PauseReason.OTHER_GPU_USE)
        )
        assert handing.given_s == [SOFT_LEAVE_S, HARD_LEAVE_S]


async def test_what_can_wait_as_well_changes_nothing_but_the_reasons(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await handing.wait(SOFT_LEAVE_S)
        run.shows(on_battery=True)
        await run.looked_again()
        handing.ended.set()
        await run.paused_for(PauseReason.MANUAL, PauseReason.BATTERY)
        assert handing.given_s == [SOFT_LEAVE_S]


async def test_quitting_meanwhile_has_no_more_time_than_quitting(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await handing.wait(SOFT_LEAVE_S)
        run.command(Quit())
        await handing.wait(SOFT_LEAVE_S, QUIT_LEAVE_S)
        handing.ended.set()
        await run.until(AgentState.STOPPED)


@pytest.mark.parametrize("what", ["a click", "the end of the pause"])
async def test_what_takes_the_pause_back_ends_nothing(handing: Handing, running: Callable, what: str) -> None:
    async with running() as run:
        workers = (await run.until(AgentState.WAITING)).worker_pids
        for times in (1, 2):
            run.command(Pause(900.0, after_answers=True))
            await handing.wait(*[SOFT_LEAVE_S] * times)
            run.command(Resume()) if what == "a click" else run.clock.jump(900.0)
            await run.looked_again()
            assert run.statuses[-1].worker_pids == workers
            assert all(map(is_alive, workers))
        assert AgentState.PAUSED not in {status.state for status in run.statuses}
        handing.ended.set()


async def test_what_was_taken_back_is_no_obstacle_to_a_game(handing: Handing, running: Callable) -> None:
    async with running() as run:
        await run.until(AgentState.WAITING)
        run.command(Pause(after_answers=True))
        await handing.wait(SOFT_LEAVE_S)
        run.command(Resume())
        await run.looked_again()
        run.shows(**GAME)
        await run.paused_for(PauseReason.OTHER_GPU_USE)
        assert handing.given_s == [SOFT_LEAVE_S, HARD_LEAVE_S]


async def test_a_node_without_a_window_pauses_after_the_answers_and_at_a_second_signal_at_once(
    handing: Handing, running: Callable
) -> None:
    async with running() as run:
        listen_to_pauses(run.agent)
        await run.until(AgentState.WAITING)
        signal.raise_signal(signal.SIGUSR1)
        await handing.wait(SOFT_LEAVE_S)
        signal.raise_signal(signal.SIGUSR1)
        await run.until(AgentState.PAUSED)
        assert handing.given_s == [SOFT_LEAVE_S, HARD_LEAVE_S]
        signal.raise_signal(signal.SIGUSR2)
        await run.until(AgentState.WAITING)
        handing.ended.set()
