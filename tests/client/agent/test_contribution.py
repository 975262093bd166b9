"""One stay in the pool: a real worker program, a real pool server, a real mirror."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection

from client import ipc
from client.agent import contribution as contribution_module
from client.agent.contribution import MAX_RECONNECT_S, MAX_SOON_S, SOON_S, Contribution, worker_command
from client.agent.events import WorkerSaid
from client.agent.probing import Prober
from client.agent.watchdog import Limits, Owed
from client.config import MAX_DISK_BYTES, Direct, NodeConfig
from client.errors import JoinError
from client.status import AgentState
from protocol import PROTOCOL_VERSION
from protocol.env import Access, NetworkError
from protocol.identity import hello_bytes, node_id_of
from protocol.join_link import JoinLink
from protocol.messages import (
    Challenge,
    CloseSession,
    DeviceFailed,
    DeviceMeasured,
    Heartbeat,
    Hello,
    Leaving,
    LinksMeasured,
    MeasureLinks,
    PeerHello,
    Refused,
    SessionOpened,
    SliceReady,
    encode_message,
)
from protocol.pause import PauseRules, PoolDefaults
from protocol.values import DeviceWork, Hop, LinkTime
from shell import AsyncioEnv
from shell.keys import is_signed_by
from shell.tls import make_certificate
from tests.client.agent.mirror import Mirror, running_mirror
from tests.client.agent.pool_server import CHALLENGE, NONCE, WEIGHTS_TOKEN, WELCOME, Greeter, PoolServer, running_pool
from tests.client.agent.samples import (
    CPU,
    IDENTITY,
    LEFT,
    NODE,
    RIGHT,
    SESSION,
    assign,
    measure,
    open_session,
    rows,
    segment,
)
from tests.client.agent.waiting import is_alive, our_tasks, until, until_dead

MakeWorker = Callable[[str], str]


LONG_S = 60.0


class Stay:
    """A Contribution at work, with the pool and the mirror behind one address."""

    def __init__(self, pool: PoolServer, env: AsyncioEnv, config: NodeConfig, has_joined: bool = False) -> None:
        self.pool = pool
        self.heard: list[PoolDefaults] = []
        self.contribution = Contribution(
            config, IDENTITY, (CPU,), env, lambda: None, self.heard.append, has_joined=has_joined
        )
        self.task = asyncio.create_task(self.contribution.run())

    @property
    def state(self) -> AgentState:
        return self.contribution.status().state

    @property
    def message(self) -> str:
        return self.contribution.status().message

    @property
    def pids(self) -> tuple[int, ...]:
        return self.contribution.status().worker_pids

    async def until(self, state: AgentState) -> None:
        await until(lambda: self.state is state)

    async def serve(self) -> None:
        """Joined, assigned and ready."""
        await self.pool.hears(Hello)
        await self.pool.say(assign())
        await self.pool.hears(SliceReady)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def greet_with(**changes: object) -> Greeter:
    """A welcome that is other than usual."""

    async def greet(connection: ServerConnection, hello: Hello) -> None:
        await connection.send(encode_message(msgspec.structs.replace(WELCOME, **changes)))

    return greet


@pytest.fixture
async def mirror() -> AsyncIterator[Mirror]:
    async with running_mirror() as mirror:
        yield mirror


@pytest.fixture
def staying(
    pool: PoolServer,
    env: AsyncioEnv,
    mirror: Mirror,
    worker_python: MakeWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], object]:
    monkeypatch.setattr(contribution_module, "RECONNECT_BASE_S", 0.02)
    monkeypatch.setattr("client.agent.device.RESTART_BASE_S", 0.02)
    get = env.network.get

    def get_from_mirror(url: str, *span: int, access: Access = Access()) -> AsyncIterator[bytes]:
        return get(url.replace(pool.url, mirror.url), *span[:2], access=span[2] if len(span) > 2 else access)

    monkeypatch.setattr(env.network, "get", get_from_mirror)

    @asynccontextmanager
    async def stay(
        play: str = "good", at: PoolServer = pool, has_joined: bool = False, **changes: object
    ) -> AsyncIterator[Stay]:
        settings = {"join": at.link, "worker_python": worker_python(play), **changes}
        config = NodeConfig(data_dir=tmp_path / "data", name="node", **settings)  # type: ignore[arg-type]
        stay = Stay(at, env, config, has_joined)
        try:
            yield stay
        finally:
            await stay.end()

    return stay


# ---------------------------------------------------------------- joining


async def test_the_hello_proves_who_the_node_is_to_this_pool(pool: PoolServer, staying: Callable) -> None:
    async with staying():
        hello = await pool.hears(Hello)
        said = hello_bytes(NONCE, f"127.0.0.1:{pool.port}", hello.node_id)
        assert hello.node_id == node_id_of(hello.public_key)
        assert is_signed_by(hello.public_key, hello.signature, said)
        assert hello.invite is None


async def test_the_invitation_is_in_the_hello_and_in_nothing_that_is_logged_or_shown(
    pool: PoolServer, staying: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "client")
    async with staying(join=JoinLink(pool.url, invite="secret-invitation")) as stay:
        assert (await pool.hears(Hello)).invite == "secret-invitation"
        await stay.until(AgentState.WAITING)
        workers = [Path(f"/proc/{pid}/cmdline").read_text() for pid in stay.pids]
        logged = [record.getMessage() for record in caplog.records if record.name.startswith("client")]
        shown = [*logged, *workers, repr(stay.contribution.status())]
    assert logged
    assert workers
    for secret in ("secret-invitation", IDENTITY.private_key.hex(), WEIGHTS_TOKEN):
        assert not any(secret in text for text in shown)


async def test_the_pools_limits_count_where_they_are_stricter(pool: PoolServer, staying: Callable) -> None:
    defaults = PoolDefaults(PauseRules(run_on_battery=False), CPU.memory_bytes - 1, 3)
    pool.challenge = Challenge((PROTOCOL_VERSION,), NONCE, "The pool", defaults)
    async with staying() as stay:
        (device,) = (await pool.hears(Hello)).devices
        assert (device.memory_bytes, device.max_layers) == (CPU.memory_bytes - 1, 3)
        assert stay.contribution.pool_defaults == defaults
        assert stay.heard == [defaults]


async def test_the_pools_limits_never_loosen_the_volunteers(pool: PoolServer, staying: Callable) -> None:
    defaults = PoolDefaults(max_memory_bytes=CPU.memory_bytes * 2, max_disk_bytes=10**15)
    pool.challenge = Challenge((PROTOCOL_VERSION,), NONCE, "The pool", defaults)
    async with staying(max_disk_bytes=10**9) as stay:
        assert (await pool.hears(Hello)).devices == (CPU,)
        assert stay.contribution._max_disk_bytes() == 10**9


@pytest.mark.parametrize(
    ("own", "pools", "limit"),
    [(None, None, MAX_DISK_BYTES), (None, 10**9, 10**9), (10**12, None, 10**12), (10**9, 10**12, 10**9)],
)
def test_the_stricter_limit_for_weights_counts(
    env: AsyncioEnv, tmp_path: Path, own: int | None, pools: int | None, limit: int
) -> None:
    config = NodeConfig(JoinLink("http://pool"), tmp_path, "node", max_disk_bytes=own)
    contribution = Contribution(config, IDENTITY, (CPU,), env, lambda: None)
    contribution.pool_defaults = PoolDefaults(max_disk_bytes=pools)
    assert contribution._max_disk_bytes() == limit


async def test_weights_are_asked_for_with_the_token_of_the_welcome(
    pool: PoolServer, mirror: Mirror, staying: Callable
) -> None:
    mirror.token = WEIGHTS_TOKEN
    async with staying() as stay:
        await stay.serve()


def secure_pool() -> AbstractAsyncContextManager[PoolServer]:
    return running_pool(make_certificate(["pool.example"]))


async def test_a_pool_with_its_own_certificate_is_served_like_any_other(staying: Callable) -> None:
    async with secure_pool() as secure, staying(at=secure) as stay:
        hello = await secure.hears(Hello)
        said = hello_bytes(NONCE, f"127.0.0.1:{secure.port}", NODE)
        assert is_signed_by(hello.public_key, hello.signature, said)
        await stay.until(AgentState.WAITING)


async def test_a_server_that_is_not_the_pool_of_the_link_ends_the_stay(pool: PoolServer, staying: Callable) -> None:
    async with secure_pool() as secure, staying(at=secure, join=JoinLink(secure.url, pin="0" * 64)) as stay:
        with pytest.raises(JoinError, match="is not the pool that the join link names"):
            await stay.task


@pytest.mark.expected_logs("not connected to the pool")
async def test_a_pool_that_had_us_before_is_waited_for_behind_what_stands_in_the_way(
    pool: PoolServer, staying: Callable
) -> None:
    wrong = "0" * 64
    async with secure_pool() as secure, staying(at=secure, join=JoinLink(secure.url, wrong), has_joined=True) as stay:
        await until(lambda: "is not the pool that the join link names" in stay.message)
        assert stay.state is AgentState.CONNECTING


# ---------------------------------------------------------------- direct links


async def test_neighbours_on_this_machine_get_a_plain_address(pool: PoolServer, staying: Callable) -> None:
    async with staying():
        hello = await pool.hears(Hello)
        assert hello.peer_address.startswith("ws://127.0.0.1:")
        assert (hello.peer_fingerprint, len(hello.peer_ticket)) == (None, 32)


async def test_without_direct_links_there_is_no_address_and_no_ticket(pool: PoolServer, staying: Callable) -> None:
    async with staying(direct=Direct.OFF):
        hello = await pool.hears(Hello)
        assert (hello.peer_address, hello.peer_ticket, hello.peer_fingerprint) == (None, None, None)


async def test_in_a_local_network_neighbours_get_an_address_with_a_certificate(
    env: AsyncioEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def local_host_towards(url: str) -> str:
        return "192.168.1.7"

    monkeypatch.setattr(env.network, "local_host_towards", local_host_towards)
    contribution = Contribution(
        NodeConfig(JoinLink("https://192.168.1.2:8443"), tmp_path, "node"), IDENTITY, (CPU,), env, lambda: None
    )
    await contribution._open_door()
    hello = contribution._hello(CHALLENGE)
    port = int(hello.peer_address.removeprefix("wss://192.168.1.7:"))
    pin = Access(pin=hello.peer_fingerprint)
    connection = await env.network.connect(f"wss://127.0.0.1:{port}", 2**20, pin)
    await connection.close()
    await contribution._open_door()
    assert contribution._hello(CHALLENGE).peer_fingerprint == hello.peer_fingerprint
    await contribution._peers.close()


@pytest.mark.expected_logs("through the relay only")
async def test_an_address_that_cannot_be_listened_on_leaves_the_relay(
    pool: PoolServer, env: AsyncioEnv, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listen(*arguments: object) -> None:
        raise NetworkError("cannot listen on 127.0.0.1 port 0: Permission denied")

    monkeypatch.setattr(env.network, "listen", listen)
    async with staying():
        assert (await pool.hears(Hello)).peer_address is None


# ---------------------------------------------------------------- the way to serving


async def test_a_node_says_hello_once_its_worker_is_up(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        hello = await pool.hears(Hello)
        assert (hello.node_id, hello.name, hello.devices) == (NODE, "node", (CPU,))
        await stay.until(AgentState.WAITING)
        assert stay.contribution.status().pool_name == "The pool"
        assert all(map(is_alive, stay.pids))


async def test_a_device_is_measured_when_asked(pool: PoolServer, staying: Callable) -> None:
    async with staying():
        await pool.hears(Hello)
        await pool.say(measure())
        assert (await pool.hears(DeviceMeasured)).device_id == "cpu"


async def test_a_slice_is_downloaded_loaded_and_served(pool: PoolServer, staying: Callable, tmp_path: Path) -> None:
    async with staying() as stay:
        await stay.serve()
        await stay.until(AgentState.SERVING)
        await pool.say(open_session())
        assert await pool.hears(SessionOpened) == SessionOpened(open_session().session_id, 1, 1)
        assert stay.contribution.status().num_sessions == 1


async def test_heartbeats_come_as_often_as_the_pool_wants(pool: PoolServer, staying: Callable) -> None:
    pool.greet = greet_with(heartbeat_s=0.02)
    async with staying():
        for _ in range(3):
            heartbeat = await pool.hears(Heartbeat)
            assert msgspec.structs.replace(heartbeat, pool_rtt_s=None) == Heartbeat(0, 0, 0)


async def test_the_way_to_the_pool_is_measured_and_told(pool: PoolServer, staying: Callable) -> None:
    pool.greet = greet_with(heartbeat_s=0.02)
    async with staying():
        told = [(await pool.hears(Heartbeat)).pool_rtt_s for _ in range(20)]
    [rtt_s] = [each for each in told if each is not None]
    assert 0 < rtt_s < 5


async def test_what_the_worker_computes_comes_with_the_heartbeat(pool: PoolServer, staying: Callable) -> None:
    pool.greet = greet_with(heartbeat_s=0.02)
    async with staying() as stay:
        await stay.serve()
        done = ipc.WorkDone(3, 5, 7, 0.25)
        stay.contribution._handle(WorkerSaid(CPU.device_id, done))
        while not (work := (await pool.hears(Heartbeat)).work):
            continue
        assert work == (DeviceWork(CPU.device_id, 1, 3, 5, 7, 0.25),)


async def test_links_are_measured_when_the_pool_asks(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        hello = await pool.hears(Hello)
        own = Hop(NODE, 0, hello.peer_address, hello.peer_ticket, hello.peer_fingerprint)
        await pool.say(MeasureLinks((own, Hop(RIGHT, 0))))
        measured = await pool.hears(LinksMeasured)
        direct, relayed = measured.links
        assert (direct.node_id, direct.is_direct) == (NODE, True)
        assert direct.rtt_s is not None
        assert direct.bytes_per_s is not None
        assert relayed == LinkTime(RIGHT, None, None, is_direct=False)
        assert stay.contribution.core.switch.num_refused == 0


async def test_a_newer_list_of_links_replaces_the_one_that_is_being_measured(
    pool: PoolServer, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[int] = []

    async def measure_links(prober: Prober, targets: tuple[Hop, ...]) -> tuple[LinkTime, ...]:
        lists.append(len(targets))
        await asyncio.sleep(1000 if len(targets) > 1 else 0)
        return tuple(LinkTime(hop.node_id, None, None, is_direct=False) for hop in targets)

    monkeypatch.setattr(Prober, "measure", measure_links)
    async with staying():
        await pool.hears(Hello)
        await pool.say(MeasureLinks((Hop(LEFT, 0), Hop(RIGHT, 0))))
        await pool.say(MeasureLinks((Hop(RIGHT, 0),)))
        assert len((await pool.hears(LinksMeasured)).links) == 1
    assert lists[-1] == 1


async def test_rows_go_from_a_neighbour_through_the_worker_to_the_next_by_the_relay(
    pool: PoolServer, staying: Callable
) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        frame = rows(segment(num_tokens=4))
        await pool.say(frame)
        async with asyncio.timeout(20):
            assert await pool.frames.get() == frame


async def test_rows_come_in_over_a_direct_link(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        hello = await pool.hears(Hello)
        await pool.say(assign())
        await pool.hears(SliceReady)
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        frame = rows(segment(num_tokens=4))
        async with connect(hello.peer_address) as neighbour, asyncio.timeout(20):
            await neighbour.send(encode_message(PeerHello(PROTOCOL_VERSION, LEFT, hello.peer_ticket)))
            await neighbour.send(frame)
            assert await pool.frames.get() == frame
        assert stay.contribution.core.switch.num_refused == 0


async def test_rows_for_this_node_itself_take_no_link(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(NODE, 2)))
        await pool.hears(SessionOpened)
        await pool.say(rows(segment(num_tokens=4)))
        await until(lambda: stay.contribution.core.switch.num_refused == 1)
        assert pool.frames.empty()


# ---------------------------------------------------------------- trouble that is waited out


@pytest.mark.expected_logs("not connected to the pool")
async def test_the_node_comes_back_after_the_coordinator_died(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        pids = stay.pids
        pool.crash()
        await stay.until(AgentState.CONNECTING)
        await pool.hears(Hello)
        await stay.until(AgentState.SERVING)
        await pool.say(assign(generation=2))
        assert (await pool.hears(SliceReady)).generation == 2
        assert stay.pids == pids


@pytest.mark.expected_logs("not connected to the pool")
async def test_the_hello_after_a_lost_connection_tells_what_is_loaded(pool: PoolServer, staying: Callable) -> None:
    async with staying():
        assert (await pool.hears(Hello)).held == ()
        await pool.say(measure())
        measured = await pool.hears(DeviceMeasured)
        await pool.say(assign(generation=3))
        ready = await pool.hears(SliceReady)
        pool.crash()
        (held,) = (await pool.hears(Hello)).held
        assert (held.device_id, held.generation, held.num_kv_tokens) == ("cpu", 3, ready.num_kv_tokens)
        assert (held.layers, held.benchmark) == (assign().layers, measured.benchmark)
        await pool.say(open_session(generation=3))
        await pool.hears(SessionOpened)


@pytest.mark.expected_logs("not connected to the pool", "worker cpu ended with status -9")
async def test_layers_are_not_kept_for_ever_for_a_pool_that_is_away(
    pool: PoolServer, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contribution_module, "KEEP_S", 0.3)
    async with staying() as stay:
        await stay.serve()
        pids = stay.pids
        await pool.stop()
        pool.crash()
        await until(lambda: bool(stay.pids) and stay.pids != pids)
        assert not is_alive(pids[0])
        await pool.start()
        assert (await pool.hears(Hello)).held == ()


@pytest.mark.expected_logs("not connected to the pool")
async def test_a_coordinator_that_is_away_is_tried_again_and_the_volunteer_is_told(
    pool: PoolServer, staying: Callable
) -> None:
    await pool.stop()
    async with staying() as stay:
        await until(lambda: stay.message.endswith("does not answer; trying again."))
        assert stay.state is AgentState.CONNECTING
        await pool.start()
        await pool.hears(Hello)
        await stay.until(AgentState.WAITING)


def test_the_delay_between_tries_grows_to_a_limit_and_for_ever(env: AsyncioEnv, tmp_path: Path) -> None:
    env.random = SimpleNamespace(uniform=lambda low, high: high, token_hex=lambda num_bytes: "0" * 32)  # type: ignore[assignment]
    contribution = Contribution(
        NodeConfig(JoinLink("http://pool"), tmp_path, "node"), IDENTITY, (CPU,), env, lambda: None
    )
    delays = [contribution._backoff_s(num_failures) for num_failures in (0, 1, 2, 10, 2000)]
    assert delays == [0.5, 1.0, 2.0, MAX_RECONNECT_S, MAX_RECONNECT_S]


def test_a_pool_that_was_here_a_moment_ago_is_expected_back_soon(env: AsyncioEnv, tmp_path: Path) -> None:
    now_s = 1000.0
    env.random = SimpleNamespace(uniform=lambda low, high: high, token_hex=lambda num_bytes: "0" * 32)  # type: ignore[assignment]
    env.clock = SimpleNamespace(monotonic=lambda: now_s)  # type: ignore[assignment]
    contribution = Contribution(
        NodeConfig(JoinLink("http://pool"), tmp_path, "node"), IDENTITY, (CPU,), env, lambda: None
    )
    contribution._lost_at_s = now_s
    assert [contribution._backoff_s(number) for number in (1, 20)] == [1.0, MAX_SOON_S]
    now_s += SOON_S
    assert contribution._backoff_s(20) == MAX_RECONNECT_S


@pytest.mark.expected_logs("worker cpu ended with status -9")
async def test_a_worker_that_is_killed_is_told_and_started_again(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        (pid,) = stay.pids
        os.kill(pid, signal.SIGKILL)
        failed = await pool.hears(DeviceFailed)
        assert (failed.code, failed.generation) == ("worker_died", 1)
        await stay.until(AgentState.WAITING)
        assert stay.pids != (pid,)
        await pool.say(assign(generation=2))
        assert (await pool.hears(SliceReady)).generation == 2


@pytest.mark.expected_logs("worker cpu ended with status -9")
async def test_a_worker_that_is_stopped_at_work_is_found_killed_and_replaced(
    pool: PoolServer, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agent.watchdog.LIMITS", dict.fromkeys(Owed, Limits(1.0, 600.0)))
    monkeypatch.setattr("client.agent.watchdog.DOUBT_S", 1.0)
    async with staying() as stay:
        await stay.serve()
        (pid,) = stay.pids
        os.kill(pid, signal.SIGSTOP)
        await pool.say(open_session())
        failed = await pool.hears(DeviceFailed)
        sentence = "The worker did not answer and is being ended."
        assert (failed.code, failed.generation, failed.message) == ("worker_died", 1, sentence)
        await until_dead(pid)
        await stay.until(AgentState.WAITING)
        assert stay.pids != (pid,)
        assert stay.contribution.status().notice == "The worker did not answer and was restarted."
        await pool.say(assign(generation=2))
        assert (await pool.hears(SliceReady)).generation == 2


@pytest.mark.expected_logs("worker cpu ended with status -9", "not connected to the pool")
async def test_a_node_that_lost_pool_and_worker_at_once_says_hello_only_with_a_device(
    pool: PoolServer, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staying() as stay:
        await stay.serve()
        os.kill(stay.pids[0], signal.SIGKILL)
        await pool.hears(DeviceFailed)
        pool.crash()
        assert (await pool.hears(Hello)).devices == (CPU,)


@pytest.mark.expected_logs("worker cpu ended with status 3")
async def test_a_worker_that_never_comes_up_is_told_to_the_volunteer(staying: Callable) -> None:
    async with staying("short") as stay:
        sentence = "The worker ended with status 3; it is started again."
        await until(lambda: stay.message == sentence)
        assert stay.state is AgentState.CONNECTING


@pytest.mark.expected_logs("cannot be started", "ended with status 127")
async def test_an_interpreter_that_does_not_exist_is_told_to_the_volunteer(staying: Callable) -> None:
    async with staying(worker_python="/no/such/python") as stay:
        await until(lambda: "cannot be started (No such file or directory)" in stay.message)


@pytest.mark.expected_logs("worker cpu ended with status 4")
async def test_a_worker_that_dies_while_loading_is_told_with_its_status(pool: PoolServer, staying: Callable) -> None:
    async with staying("die-on-load"):
        await pool.hears(Hello)
        await pool.say(assign())
        failed = await pool.hears(DeviceFailed)
        assert (failed.code, failed.message) == ("worker_died", "The worker ended with status 4; it is started again.")


async def test_a_load_that_fails_is_told_to_pool_and_volunteer(pool: PoolServer, staying: Callable) -> None:
    async with staying("no-load") as stay:
        await pool.hears(Hello)
        await pool.say(assign())
        assert (await pool.hears(DeviceFailed)).message == "The layers do not fit."
        assert (stay.state, stay.message) == (AgentState.WAITING, "The layers do not fit.")


@pytest.mark.expected_logs("download interrupted", "Cannot get the model's weights")
async def test_weights_that_cannot_be_had_are_told_to_the_pool(
    pool: PoolServer, mirror: Mirror, staying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agent.weights.RETRY_BASE_S", 0.001)
    mirror.habit = "corrupt"
    async with staying():
        await pool.hears(Hello)
        await pool.say(assign())
        failed = await pool.hears(DeviceFailed)
        assert (failed.code, failed.generation) == ("bad_weights", 1)


@pytest.mark.expected_logs("Cannot get the model's weights")
async def test_layers_that_the_disk_has_no_room_for_are_told_with_how_many_would_fit(
    pool: PoolServer, staying: Callable
) -> None:
    async with staying(max_disk_bytes=2_500_000) as stay:
        await pool.hears(Hello)
        await pool.say(assign())
        failed = await pool.hears(DeviceFailed)
        assert (failed.code, failed.max_layers) == ("disk_full", 1)
        await pool.say(assign(2, 0, 1))
        await stay.until(AgentState.SERVING)


@pytest.mark.expected_logs("worker cpu: frame for link 7 of 0", "worker cpu ended")
async def test_a_worker_that_names_a_link_it_was_never_given_is_ended(staying: Callable) -> None:
    async with staying("bad-link") as stay:
        await until(lambda: stay.contribution.core.devices["cpu"].num_crashes)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("refusal", [Refused("banned", "This node is banned."), None])
async def test_a_refusal_ends_the_stay_with_its_sentence(
    pool: PoolServer, staying: Callable, refusal: Refused | None
) -> None:
    async with staying() as stay:
        await pool.hears(Hello)
        (pid,) = stay.pids
        await pool.say(refusal or "{}")
        with pytest.raises(JoinError, match="banned" if refusal else "cannot read"):
            await stay.task
        await until(lambda: pool.closed)
        assert not is_alive(pid)


async def test_leaving_tells_the_pool_and_kills_the_worker_for_good(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        (pid,) = stay.pids
        await stay.end()
        assert not is_alive(pid)
        assert await pool.hears(Leaving) == Leaving("quit")
        await until(lambda: pool.closed == [(1000, "leaving")])
        await asyncio.sleep(0.2)  # longer than a restart's delay here
        assert stay.pids == ()
        assert our_tasks() == []


async def test_what_runs_here_is_served_on_until_the_pool_has_moved_it(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        handing = asyncio.create_task(stay.contribution.hand_over(LONG_S))
        assert await pool.hears(Leaving) == Leaving("quit", LONG_S)
        frame = rows(segment(num_tokens=4))
        await pool.say(frame)
        async with asyncio.timeout(20):
            assert await pool.frames.get() == frame
        assert not handing.done()
        await pool.say(CloseSession(SESSION, 1))
        async with asyncio.timeout(20):
            await handing
        assert stay.pids, "the worker is there until the stay ends"


async def test_a_pool_that_moves_nothing_is_not_waited_for_beyond_the_time(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        async with asyncio.timeout(20):
            await stay.contribution.hand_over(0.05)
        assert stay.contribution.core.switch.num_sessions == 1


@pytest.mark.expected_logs("not connected to the pool")
async def test_a_pool_that_goes_away_meanwhile_is_not_waited_for(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        handing = asyncio.create_task(stay.contribution.hand_over(LONG_S))
        await pool.hears(Leaving)
        pool.crash()
        async with asyncio.timeout(20):
            await handing


async def test_while_it_hands_over_it_says_until_when_at_most(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        assert stay.contribution.status().leaves_at_s is None
        before_s = time.time()
        handing = asyncio.create_task(stay.contribution.hand_over(LONG_S))
        await pool.hears(Leaving)
        status = stay.contribution.status()
        assert (status.state, status.num_sessions) == (AgentState.SERVING, 1)
        assert before_s <= status.leaves_at_s - LONG_S <= time.time()
        await pool.say(CloseSession(SESSION, 1))
        async with asyncio.timeout(20):
            await handing
        assert stay.contribution.status().leaves_at_s is None


@pytest.mark.expected_logs("not connected to the pool")
async def test_who_stays_after_all_joins_again_with_what_is_loaded(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        pids = stay.pids
        await pool.say(open_session(following=Hop(RIGHT, 2)))
        await pool.hears(SessionOpened)
        handing = asyncio.create_task(stay.contribution.hand_over(LONG_S))
        assert (await pool.hears(Leaving)).within_s == LONG_S
        stay.contribution.stay()
        hello = await pool.hears(Hello)
        assert [held.layers for held in hello.held] == [assign().layers]
        async with asyncio.timeout(20):
            await handing
        await stay.until(AgentState.SERVING)
        assert stay.pids == pids
        await stay.end()
        assert await pool.hears(Leaving) == Leaving("quit")


async def test_who_never_said_that_it_goes_has_nothing_to_take_back(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        await stay.contribution.hand_over(LONG_S)
        stay.contribution.stay()
        await stay.end()
        assert await pool.hears_next() == Leaving("quit"), "on the same connection"


async def test_without_a_session_there_is_nothing_to_hand_over(pool: PoolServer, staying: Callable) -> None:
    async with staying() as stay:
        await stay.serve()
        async with asyncio.timeout(20):
            await stay.contribution.hand_over(LONG_S)
        await stay.end()
        assert await pool.hears(Leaving) == Leaving("quit"), "nothing was said before"


@pytest.mark.parametrize("num_turns", [0, 1, 2, 5, 20, 100])
async def test_leaving_at_any_moment_leaves_no_worker(pool: PoolServer, staying: Callable, num_turns: int) -> None:
    async with staying() as stay:
        for _ in range(num_turns):
            await asyncio.sleep(0.002)
        pids = stay.pids
        await stay.end()
        assert not any(map(is_alive, pids))
        await asyncio.sleep(0.05)
        assert stay.pids == ()
        assert our_tasks() == []


async def test_leaving_in_the_middle_of_a_download_ends_it(pool: PoolServer, mirror: Mirror, staying: Callable) -> None:
    mirror.habit = "stalls"
    async with staying() as stay:
        await pool.hears(Hello)
        await pool.say(assign())
        async with asyncio.timeout(20):
            await mirror.stalled.wait()
        assert stay.state is AgentState.DOWNLOADING
        await stay.end()
        assert await pool.hears(Leaving)


async def test_leaving_while_the_pool_does_not_welcome_closes_the_connection(
    pool: PoolServer, staying: Callable
) -> None:
    async def say_nothing(connection: object, hello: Hello) -> None:
        return

    pool.greet = say_nothing
    async with staying() as stay:
        await pool.hears(Hello)
        await stay.end()
        await until(lambda: pool.closed)


def test_the_worker_runs_in_this_interpreter_or_the_one_that_is_named(tmp_path: Path) -> None:
    config = NodeConfig(JoinLink("http://pool"), tmp_path, "node", worker_python="/env/bin/python")
    assert worker_command(config) == ("/env/bin/python", "-m", "client.runtime")
    assert worker_command(NodeConfig(JoinLink("http://pool"), tmp_path, "node"))[1:] == ("-m", "client.runtime")
    paced = NodeConfig(JoinLink("http://pool"), tmp_path, "node", pace="2,0.5,0.1")
    assert worker_command(paced)[1:] == ("-m", "client.runtime", "--pace", "2,0.5,0.1")
