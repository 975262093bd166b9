"""The virtual world itself: what rests on it is only as true as it is."""

from __future__ import annotations

import asyncio
import errno
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from protocol.env import (
    Access,
    Certificate,
    Connection,
    ConnectionClosed,
    Env,
    NetworkError,
    OutgoingConnection,
    WrongCertificate,
)
from tests.fakes.virtual_disk import VirtualDisk
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import Deadlock, on_virtual_time, run_virtual
from tests.fakes.virtual_network import WINDOW
from tests.fakes.virtual_processes import VirtualChannel

URL = "ws://10.0.0.1:8000/node"
LIMIT = 2**20


async def echo(connection: Connection) -> None:
    try:
        while True:
            await connection.send(await connection.recv())
    except ConnectionClosed:
        return


async def connect(world: VirtualWorld, handler: object = echo) -> OutgoingConnection:
    await world.env("server").network.listen("10.0.0.1", 8000, handler, LIMIT)  # type: ignore[arg-type]
    return await world.env("client").network.connect(URL, LIMIT)


@on_virtual_time
async def test_an_hour_passes_at_once() -> None:
    env: Env = VirtualWorld().env()
    before = env.clock.monotonic(), env.clock.wall()
    await env.clock.sleep(3600)
    assert env.clock.monotonic() - before[0] == pytest.approx(3600)
    assert env.clock.wall() - before[1] == pytest.approx(3600)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(wait_for_ever())


def test_a_timer_that_never_ends_is_a_deadlock() -> None:
    async def tick() -> None:
        while True:
            await asyncio.sleep(3600)

    with pytest.raises(Deadlock):
        run_virtual(tick())


@on_virtual_time
async def test_threads_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no threads"):
        await asyncio.to_thread(print)
    assert await VirtualWorld().env().run_blocking(max, 1, 2) == 2


def test_the_same_seed_gives_the_same_run() -> None:
    async def trace(seed: int) -> list[object]:
        world = VirtualWorld(seed, latency_s=(0.01, 0.2))
        connection = await connect(world)
        seen: list[object] = [world.env("client").random.token_hex(4)]
        for number in range(5):
            await connection.send(str(number))
            seen += [await connection.recv(), world.env("client").clock.monotonic()]
        return seen

    assert run_virtual(trace(1)) == run_virtual(trace(1))
    assert run_virtual(trace(1)) != run_virtual(trace(2))


@on_virtual_time
async def test_messages_arrive_in_order_after_the_latency() -> None:
    world = VirtualWorld(latency_s=(0.1, 0.3))
    connection = await connect(world)
    for number in range(20):
        await connection.send(b"%d" % number)
    assert [await connection.recv() for _ in range(20)] == [b"%d" % number for number in range(20)]
    assert world.env().clock.monotonic() >= 0.3


@on_virtual_time
async def test_a_ping_takes_both_ways_latency_and_comes_behind_what_was_sent() -> None:
    world = VirtualWorld(latency_s=(0.1, 0.1))
    connection = await connect(world)
    assert await connection.ping() == pytest.approx(0.2)
    world.network.cut("client")
    with pytest.raises(ConnectionClosed):
        await connection.ping()


@on_virtual_time
async def test_a_connection_that_breaks_ends_the_wait_for_a_ping() -> None:
    world = VirtualWorld(latency_s=(1.0, 1.0))
    connection = await connect(world)
    asyncio.get_running_loop().call_later(0.5, world.network.cut, "client")
    with pytest.raises(ConnectionClosed):
        await connection.ping()


@on_virtual_time
async def test_nobody_listens_and_a_port_is_taken_once() -> None:
    world = VirtualWorld()
    with pytest.raises(NetworkError, match="cannot connect"):
        await world.env("client").network.connect(URL, LIMIT)
    listener = await world.env("server").network.listen("10.0.0.1", 0, echo, LIMIT)
    with pytest.raises(NetworkError, match="in use"):
        await world.env("server").network.listen("10.0.0.1", listener.port, echo, LIMIT)
    await listener.close()
    await world.env("server").network.listen("10.0.0.1", listener.port, echo, LIMIT)


@on_virtual_time
async def test_a_close_code_arrives_behind_what_was_sent() -> None:
    async def refuse(connection: Connection) -> None:
        await connection.send("why")
        await connection.close(4406, "version")

    connection = await connect(VirtualWorld(latency_s=(0.1, 0.1)), refuse)
    assert await connection.recv() == "why"
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    assert (caught.value.code, caught.value.reason) == (4406, "version")
    with pytest.raises(ConnectionClosed):
        await connection.send("more")


@on_virtual_time
async def test_a_message_over_the_limit_closes_the_connection() -> None:
    connection = await connect(VirtualWorld())
    await connection.send(b"x" * (LIMIT + 1))
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    assert caught.value.code == 1009


@on_virtual_time
async def test_sending_waits_for_a_side_that_does_not_read() -> None:
    async def never_read(connection: Connection) -> None:
        await asyncio.sleep(60)
        while True:
            await connection.recv()

    world = VirtualWorld()
    connection = await connect(world, never_read)
    for _ in range(WINDOW + 1):
        await connection.send("x")
    assert world.env().clock.monotonic() == pytest.approx(60)


@on_virtual_time
async def test_a_held_host_hangs_and_a_cut_one_is_gone() -> None:
    world = VirtualWorld()
    connection = await connect(world)
    world.network.hold("server")
    await connection.send("late")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.recv(), 100)
    world.network.release("server")
    assert await connection.recv() == "late"
    world.network.cut("server")
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    assert caught.value.code == 1006


@on_virtual_time
async def test_http_bodies_come_whole_or_in_part() -> None:
    world = VirtualWorld()
    world.network.pages["http://pool/file"] = bytes(range(256)) * 1024
    network = world.env().network
    whole = b"".join([piece async for piece in network.get("http://pool/file")])
    part = b"".join([piece async for piece in network.get("http://pool/file", 100, 300)])
    assert whole == world.network.pages["http://pool/file"]
    assert part == whole[100:300]
    with pytest.raises(NetworkError, match="404"):
        [piece async for piece in network.get("http://pool/nothing")]


@on_virtual_time
async def test_a_page_with_a_token_opens_with_it_alone() -> None:
    world = VirtualWorld()
    world.network.pages["https://pool/weights/a"] = b"weights"
    world.network.required_tokens["https://pool/weights/"] = "right-token"
    network = world.env().network
    access = Access(token="right-token")
    assert [piece async for piece in network.get("https://pool/weights/a", access=access)] == [b"weights"]
    for wrong in (Access(), Access(token="wrong-token")):
        with pytest.raises(NetworkError, match="401"):
            [piece async for piece in network.get("https://pool/weights/a", access=wrong)]


@on_virtual_time
async def test_a_listener_with_a_certificate_is_reached_by_its_pin_alone() -> None:
    world = VirtualWorld()
    certificate = Certificate(b"", b"", "1" * 64)
    listener = await world.env("server").network.listen("0.0.0.0", 0, echo, LIMIT, certificate)
    network = world.env("client").network
    secure, plain = f"wss://server:{listener.port}", f"ws://server:{listener.port}"
    connection = await network.connect(secure, LIMIT, Access(pin="1" * 64))
    await connection.send("x")
    assert await connection.recv() == "x"
    for pin in ("", "2" * 64):
        with pytest.raises(WrongCertificate):
            await network.connect(secure, LIMIT, Access(pin=pin))
    with pytest.raises(NetworkError, match="one side speaks TLS"):
        await network.connect(plain, LIMIT)


@on_virtual_time
async def test_a_hosts_address_is_its_name() -> None:
    assert await VirtualWorld().env("laptop").network.local_host_towards("https://pool") == "laptop"


def test_files_are_listed_by_folder_and_removed_with_it() -> None:
    disk = VirtualDisk(random.Random(0))
    for name in ("b/one", "b/deep/two", "c"):
        disk.write_atomic(Path("/a") / name, b"xyz")
    disk.write_private(Path("/a/key"), b"secret")
    found = disk.list_files(Path("/a"))
    assert {name: facts.used_bytes for name, facts in found.items()} == {"b/one": 3, "b/deep/two": 3, "c": 3, "key": 6}
    assert found["b/one"].written_s < found["b/deep/two"].written_s < found["c"].written_s
    assert disk.private == {Path("/a/key")}
    disk.remove_folder(Path("/a/b"))
    assert set(disk.list_files(Path("/a"))) == {"c", "key"}


def test_a_full_disk_refuses_what_does_not_fit() -> None:
    disk = VirtualDisk(random.Random(0), capacity_bytes=100)
    disk.write_atomic(Path("/a"), b"x" * 60)
    for write in (lambda: disk.write_atomic(Path("/b"), b"x" * 41), lambda: disk.reserve(Path("/b"), 41)):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
    assert disk.free_bytes(Path("/")) == 40
    disk.remove(Path("/a"))
    assert disk.free_bytes(Path("/")) == 100


def test_a_crash_keeps_what_was_synced_and_may_tear_the_rest() -> None:
    torn = set()
    for seed in range(40):
        disk = VirtualDisk(random.Random(seed))
        disk.reserve(Path("/f"), 8)
        disk.write_at(Path("/f"), 0, b"abcd")
        disk.sync(Path("/f"))
        disk.write_at(Path("/f"), 4, b"wxyz")
        disk.crash()
        data = disk.read(Path("/f"))
        assert data is not None
        assert data[:4] == b"abcd"
        assert b"wxyz".startswith(data[4:].rstrip(b"\0"))
        torn.add(data[4:])
    assert len(torn) > 2


async def adder(argv: Sequence[str], environment: Mapping[str, str], channel: VirtualChannel) -> int:
    try:
        while True:
            data = await channel.read()
            await channel.write(b"%d" % (int(data) + int(environment["STEP"])))
    except ConnectionClosed:
        return int(argv[1])


@on_virtual_time
async def test_a_scripted_process_talks_ends_and_is_killed() -> None:
    processes = VirtualWorld().env(program=adder).processes
    child = await processes.spawn(["adder", "3"], {"STEP": "5"})
    await child.channel.write(b"37")
    assert await child.channel.read() == b"42"
    child.channel.close()
    assert await child.wait() == 3

    other = await processes.spawn(["adder", "3"], {"STEP": "5"})
    other.kill()
    assert await other.wait() == -signal.SIGKILL
    with pytest.raises(ConnectionClosed):
        await other.channel.read()
    other.kill()
