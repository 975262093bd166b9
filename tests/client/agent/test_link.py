"""The connection to the coordinator: welcome, refusal, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from websockets.asyncio.server import ServerConnection

from client.agent import link as link_module
from client.agent.link import Link, open_link
from client.errors import JoinError
from protocol import PROTOCOL_VERSION
from protocol.env import ConnectionClosed, NetworkError
from protocol.errors import CloseCode
from protocol.messages import CloseSession, CoordinatorMessage, Heartbeat, Hello, Leaving, Refused, encode_message
from shell import AsyncioEnv
from tests.client.agent.pool_server import WELCOME, PoolServer
from tests.client.agent.samples import CPU, NODE, SESSION
from tests.client.agent.waiting import until

HELLO = Hello(PROTOCOL_VERSION, NODE, "1.0", "node", (CPU,))
CLOSE = CloseSession(SESSION, 1)


async def join(pool: PoolServer, env: AsyncioEnv) -> Link:
    return await open_link(f"ws://127.0.0.1:{pool.port}/node", HELLO, env)


def ignore(message: object) -> None:
    """For what a test does not look at."""


def answer(*data: str | bytes) -> Callable[[ServerConnection, Hello], Awaitable[None]]:
    async def greet(connection: ServerConnection, hello: Hello) -> None:
        for item in data:
            await connection.send(item)

    return greet


def close(code: int, reason: str = "") -> Callable[[ServerConnection, Hello], Awaitable[None]]:
    async def greet(connection: ServerConnection, hello: Hello) -> None:
        await connection.close(code, reason)

    return greet


async def test_a_welcome_makes_a_link(pool: PoolServer, env: AsyncioEnv) -> None:
    link = await join(pool, env)
    assert link.welcome == WELCOME
    assert await pool.hears(Hello) == HELLO
    await link.leave(Leaving("Good-bye."))
    assert await pool.hears_next() == Leaving("Good-bye.")
    await until(lambda: pool.closed == [(1000, "leaving")])


async def test_messages_and_frames_go_both_ways_in_order(pool: PoolServer, env: AsyncioEnv) -> None:
    link = await join(pool, env)
    await pool.hears(Hello)
    messages: list[CoordinatorMessage] = []
    frames: list[bytes] = []
    task = asyncio.create_task(link.run(messages.append, frames.append))
    for number in range(5):
        link.tell(Heartbeat(number, 0, 0))
        link.relay(bytes([number]))
        await pool.say(CloseSession(SESSION, number))
        await pool.say(bytes([number]))
    await until(lambda: len(frames) == 5 and pool.frames.qsize() == 5)
    assert [message.epoch for message in messages if isinstance(message, CloseSession)] == list(range(5))
    assert frames == [pool.frames.get_nowait() for _ in range(5)] == [bytes([number]) for number in range(5)]
    assert [(await pool.hears(Heartbeat)).num_sessions for _ in range(5)] == list(range(5))
    task.cancel()
    await link.leave(Leaving("Good-bye."))


async def test_a_refusal_is_a_join_error_with_its_sentence(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.greet = answer(encode_message(Refused("protocol_version", "This pool speaks version 9.")))
    with pytest.raises(JoinError, match=r"^This pool speaks version 9\.$") as caught:
        await join(pool, env)
    assert caught.value.code == "protocol_version"
    await until(lambda: pool.closed)


@pytest.mark.parametrize("code", [CloseCode.PROTOCOL_VERSION, CloseCode.BAD_MESSAGE])
async def test_a_close_that_is_final_is_a_join_error(pool: PoolServer, env: AsyncioEnv, code: int) -> None:
    pool.greet = close(code, "Your version is too old.")
    with pytest.raises(JoinError, match=r"^Your version is too old\.$"):
        await join(pool, env)


async def test_a_final_close_without_a_reason_still_has_a_sentence(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.greet = close(CloseCode.BAD_MESSAGE)
    with pytest.raises(JoinError, match="without a reason"):
        await join(pool, env)


@pytest.mark.parametrize("code", [1000, 1011, 1012])
async def test_another_close_is_worth_another_try(pool: PoolServer, env: AsyncioEnv, code: int) -> None:
    pool.greet = close(code, "restarting")
    with pytest.raises(NetworkError, match="restarting"):
        await join(pool, env)


@pytest.mark.parametrize("data", ["{}", "hello", '{"type":"welcome"}', b"\x00\xff", encode_message(HELLO)])
async def test_an_answer_that_cannot_be_read_is_a_join_error(
    pool: PoolServer, env: AsyncioEnv, data: str | bytes
) -> None:
    pool.greet = answer(data)
    with pytest.raises(JoinError, match="cannot read"):
        await join(pool, env)
    await until(lambda: pool.closed)


async def test_an_answer_that_is_no_welcome_is_a_join_error(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.greet = answer(encode_message(CLOSE))
    with pytest.raises(JoinError, match="not a DecentLLM coordinator"):
        await join(pool, env)


async def test_no_answer_is_worth_another_try_and_the_connection_is_closed(
    pool: PoolServer, env: AsyncioEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "WELCOME_TIMEOUT_S", 0.1)
    pool.greet = answer()
    with pytest.raises(NetworkError, match="does not answer"):
        await join(pool, env)
    await until(lambda: pool.closed)


async def test_a_join_that_is_cancelled_closes_its_connection(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.greet = answer()
    task = asyncio.create_task(join(pool, env))
    await pool.hears(Hello)
    task.cancel()
    await until(lambda: pool.closed)


async def test_nobody_listening_is_worth_another_try(pool: PoolServer, env: AsyncioEnv) -> None:
    await pool.stop()
    with pytest.raises(NetworkError, match="cannot connect"):
        await join(pool, env)


async def test_a_refusal_in_the_middle_ends_the_link(pool: PoolServer, env: AsyncioEnv) -> None:
    link = await join(pool, env)
    await pool.hears(Hello)
    await pool.say(Refused("banned", "This node is banned."))
    with pytest.raises(JoinError, match=r"This node is banned\."):
        await link.run(ignore, ignore)
    await link.leave(Leaving("Good-bye."))


async def test_a_node_replaced_by_another_of_its_identity_does_not_fight_for_its_place(
    pool: PoolServer, env: AsyncioEnv
) -> None:
    link = await join(pool, env)
    await pool.hears(Hello)
    await pool.connections[0].close(CloseCode.REPLACED, "the node connected again")
    with pytest.raises(JoinError, match="Another agent") as caught:
        await link.run(ignore, ignore)
    assert caught.value.code == "replaced"


async def test_a_crash_of_the_coordinator_ends_the_link(pool: PoolServer, env: AsyncioEnv) -> None:
    link = await join(pool, env)
    await pool.hears(Hello)
    pool.crash()
    with pytest.raises(ConnectionClosed):
        await link.run(ignore, ignore)
    await link.leave(Leaving("Good-bye."))


async def test_a_coordinator_that_reads_nothing_cannot_hold_up_a_leaving_node() -> None:
    class Stalled:
        """A connection whose peer takes nothing."""

        closed = False

        async def send(self, data: str | bytes) -> None:
            await asyncio.sleep(600)

        async def recv(self) -> str | bytes:
            raise AssertionError("not read any more")

        async def close(self, code: int = 1000, reason: str = "") -> None:
            self.closed = True

    connection = Stalled()
    async with asyncio.timeout(10):
        await Link(connection, WELCOME).leave(Leaving("Good-bye."))
    assert connection.closed


async def test_a_cancellation_that_comes_together_with_the_welcome_is_not_lost(env: AsyncioEnv) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    connection = SimpleNamespace(send=AsyncMock(), recv=lambda: answer, close=AsyncMock())
    env.network = SimpleNamespace(connect=AsyncMock(return_value=connection), close=AsyncMock())  # type: ignore[assignment]
    task = asyncio.create_task(open_link("ws://pool/node", HELLO, env))
    await until(lambda: connection.send.await_count)
    await asyncio.sleep(0)
    answer.set_result(encode_message(WELCOME))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    connection.close.assert_awaited_once()
