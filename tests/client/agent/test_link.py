"""The connection to the coordinator: challenge, welcome, refusal, and its end."""

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
from protocol.join_link import JoinLink
from protocol.messages import (
    Challenge,
    CloseSession,
    CoordinatorMessage,
    Heartbeat,
    Hello,
    Leaving,
    Refused,
    encode_message,
)
from shell import AsyncioEnv
from shell.lanes import STUCK_S
from shell.tls import make_certificate
from tests.client.agent.pool_server import CHALLENGE, NONCE, WELCOME, PoolServer, running_pool
from tests.client.agent.samples import CPU, IDENTITY, NODE, SESSION, rows, segment
from tests.client.agent.waiting import until
from tests.fakes.virtual_loop import on_virtual_time

AUDIENCE = "127.0.0.1"
HELLO = Hello(PROTOCOL_VERSION, NODE, IDENTITY.public_key, IDENTITY.hello_proof(NONCE, AUDIENCE), "1.0", "node", (CPU,))
CLOSE = CloseSession(SESSION, 1)


async def join(pool: PoolServer, env: AsyncioEnv, link: JoinLink | None = None) -> Link:
    url = f"{'ws' if pool.certificate is None else 'wss'}://127.0.0.1:{pool.port}/node"
    return await open_link(url, link or pool.link, lambda challenge: HELLO, env)


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


async def test_the_hello_answers_the_pools_challenge(pool: PoolServer, env: AsyncioEnv) -> None:
    challenges: list[Challenge] = []

    def greet(challenge: Challenge) -> Hello:
        challenges.append(challenge)
        return HELLO

    link = await open_link(f"ws://127.0.0.1:{pool.port}/node", pool.link, greet, env)
    assert challenges == [CHALLENGE]
    await link.leave(Leaving("Good-bye."))


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


@pytest.mark.parametrize("code", [CloseCode.PROTOCOL_VERSION, CloseCode.BAD_MESSAGE, CloseCode.NOT_ALLOWED])
async def test_a_close_that_is_final_is_a_join_error(pool: PoolServer, env: AsyncioEnv, code: int) -> None:
    pool.greet = close(code, "Your version is too old.")
    with pytest.raises(JoinError, match=r"^Your version is too old\.$"):
        await join(pool, env)


async def test_a_final_close_without_a_reason_still_has_a_sentence(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.greet = close(CloseCode.BAD_MESSAGE)
    with pytest.raises(JoinError, match="without a reason"):
        await join(pool, env)
    pool.greet = close(CloseCode.NOT_ALLOWED)
    with pytest.raises(JoinError, match="does not accept this node") as caught:
        await join(pool, env)
    assert caught.value.code == "not_allowed"


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


async def test_a_first_message_that_is_no_challenge_is_a_join_error_and_no_hello_is_said(
    pool: PoolServer, env: AsyncioEnv
) -> None:
    pool.challenge = WELCOME
    with pytest.raises(JoinError, match="not a DecentLLM coordinator"):
        await join(pool, env)
    await until(lambda: pool.closed)
    assert pool.messages.empty()


@pytest.mark.parametrize(
    ("versions", "advice"),
    [((9,), "update DecentLLM"), ((1,), "its operator must update it"), ((1, 9), "update DecentLLM")],
)
async def test_a_pool_of_other_versions_is_a_join_error_that_says_who_must_update(
    pool: PoolServer, env: AsyncioEnv, versions: tuple[int, ...], advice: str
) -> None:
    pool.challenge = Challenge(versions, NONCE, "The pool")
    with pytest.raises(JoinError, match=advice) as caught:
        await join(pool, env)
    assert caught.value.code == "protocol_version"
    await until(lambda: pool.closed)
    assert pool.messages.empty()


async def test_a_refusal_instead_of_a_challenge_is_a_join_error(pool: PoolServer, env: AsyncioEnv) -> None:
    pool.challenge = Refused("too_many", "The pool is full.")
    with pytest.raises(JoinError, match=r"^The pool is full\.$"):
        await join(pool, env)


# ---------------------------------------------------------------- the door


async def test_a_pool_with_its_own_certificate_is_joined_by_its_full_link(env: AsyncioEnv) -> None:
    async with running_pool(make_certificate(["pool.example"])) as pool:
        link = await join(pool, env)
        assert link.welcome == WELCOME
        await link.leave(Leaving("Good-bye."))


async def test_another_certificate_than_the_links_is_a_join_error_and_no_hello_is_said(env: AsyncioEnv) -> None:
    async with running_pool(make_certificate(["pool.example"])) as pool:
        with pytest.raises(JoinError, match="is not the pool that the join link names") as caught:
            await join(pool, env, JoinLink(pool.url, pin="0" * 64))
        assert caught.value.code == "wrong_certificate"
        assert pool.messages.empty()


async def test_a_certificate_of_no_public_authority_is_a_join_error_that_asks_for_the_full_link(
    env: AsyncioEnv,
) -> None:
    async with running_pool(make_certificate(["127.0.0.1"])) as pool:
        with pytest.raises(JoinError, match="use the pool's full join link, which begins with decentllm://") as caught:
            await join(pool, env, JoinLink(pool.url))
        assert caught.value.code == "wrong_certificate"
        assert pool.messages.empty()


async def test_a_plain_address_of_a_secure_pool_is_a_join_error_that_asks_for_the_full_link(env: AsyncioEnv) -> None:
    async with running_pool(make_certificate(["127.0.0.1"])) as pool:
        plain = JoinLink(pool.url.replace("https", "http"))
        with pytest.raises(JoinError, match="takes secure connections only: use the pool's full join link"):
            await open_link(f"ws://127.0.0.1:{pool.port}/node", plain, lambda challenge: HELLO, env)
        assert pool.messages.empty()


async def test_a_server_that_is_no_coordinator_is_a_join_error(pool: PoolServer, env: AsyncioEnv) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/node"
        with pytest.raises(JoinError, match="not a DecentLLM coordinator") as caught:
            await open_link(url, pool.link, lambda challenge: HELLO, env)
    assert caught.value.code == "not_a_pool"


# ---------------------------------------------------------------- trouble that may pass


async def test_no_answer_is_worth_another_try_and_the_connection_is_closed(
    pool: PoolServer, env: AsyncioEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "WELCOME_TIMEOUT_S", 0.1)
    pool.greet = answer()
    for challenge in (CHALLENGE, None):
        pool.challenge = challenge
        with pytest.raises(NetworkError, match="does not answer"):
            await join(pool, env)
    await until(lambda: len(pool.closed) == 2)


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


async def test_a_node_that_the_operator_removes_does_not_come_back(pool: PoolServer, env: AsyncioEnv) -> None:
    link = await join(pool, env)
    await pool.hears(Hello)
    await pool.connections[0].close(CloseCode.NOT_ALLOWED, "The operator removed this node.")
    with pytest.raises(JoinError, match=r"^The operator removed this node\.$") as caught:
        await link.run(ignore, ignore)
    assert caught.value.code == "not_allowed"


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
    answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
    answers[0].set_result(encode_message(CHALLENGE))
    receive = iter(answers)
    connection = SimpleNamespace(send=AsyncMock(), recv=lambda: next(receive), close=AsyncMock())
    env.network = SimpleNamespace(connect=AsyncMock(return_value=connection), close=AsyncMock())  # type: ignore[assignment]
    task = asyncio.create_task(open_link("ws://pool/node", JoinLink("http://pool"), lambda challenge: HELLO, env))
    await until(lambda: connection.send.await_count)
    await asyncio.sleep(0)
    answers[1].set_result(encode_message(WELCOME))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    connection.close.assert_awaited_once()


# ---------------------------------------------------------------- a narrow pipe


class Pipe:
    """A connection of so many bytes per second (0: its other side takes nothing), and what came out when."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.arrived: list[tuple[float, str | bytes]] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def send(self, data: str | bytes) -> None:
        await asyncio.sleep(len(data) / self.bytes_per_s if self.bytes_per_s else 10_000)
        self.arrived.append((asyncio.get_running_loop().time(), data))

    async def recv(self) -> str | bytes:
        raise ConnectionClosed(await self.ended, "")

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self.ended.done():
            self.ended.set_result(code)

    async def ping(self) -> float:
        return 0.0


def running(pipe: Pipe) -> tuple[Link, asyncio.Task[None]]:
    link = Link(pipe, WELCOME)
    return link, asyncio.create_task(link.run(ignore, ignore))


@on_virtual_time
async def test_a_pipe_full_of_rows_does_not_hold_up_a_heartbeat() -> None:
    """On one megabit per second, with 64 MB of rows before it: every heartbeat comes within half a lease."""
    pipe = Pipe(125_000)
    link, task = running(pipe)
    frame = rows(segment(num_tokens=1000), row_width=2048)
    for _ in range(8):
        assert link.relay(frame)
    for number in range(20):
        link.tell(Heartbeat(number, 0, 0))
        said_s = asyncio.get_running_loop().time()
        while not any(data == encode_message(Heartbeat(number, 0, 0)) for _, data in pipe.arrived):
            await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - said_s < 2.5
    task.cancel()


@on_virtual_time
async def test_rows_beyond_the_bound_are_refused_and_messages_are_not() -> None:
    pipe = Pipe(125_000)
    link, task = running(pipe)
    frame = rows(segment(num_tokens=1000), row_width=2048)
    taken = [link.relay(frame) for _ in range(20)]
    num_taken = taken.index(False)
    assert num_taken == link_module.MAX_RELAY_BYTES // len(frame)
    link.tell(Heartbeat(1, 0, 0))
    await asyncio.sleep(5)
    assert [data for _, data in pipe.arrived if isinstance(data, str)] == [encode_message(Heartbeat(1, 0, 0))]
    task.cancel()


@pytest.mark.expected_logs("does not take our messages")
@on_virtual_time
async def test_a_coordinator_that_takes_nothing_is_left_for_another_try() -> None:
    link, task = running(Pipe(0))
    link.tell(Heartbeat(0, 0, 0))
    await asyncio.sleep(STUCK_S - 1)
    assert not task.done()
    await asyncio.sleep(2)
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.code == link_module.TRY_AGAIN_LATER


@pytest.mark.expected_logs("does not take our messages")
@on_virtual_time
async def test_too_many_messages_for_a_coordinator_end_the_link_at_once() -> None:
    link, task = running(Pipe(0))
    message = encode_message(Heartbeat(0, 0, 0))
    for _ in range(link_module.MAX_CONTROL_BYTES // len(message) + 2):
        link.tell(Heartbeat(0, 0, 0))
    with pytest.raises(ConnectionClosed):
        await task
