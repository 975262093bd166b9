"""Websockets and downloads over real loopback sockets; ports come from the system."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from protocol.env import Connection, ConnectionClosed, NetworkError
from shell.network import WebNetwork

HOST = "127.0.0.1"
LIMIT = 2**20
BODY = bytes(range(256)) * 64


@pytest.fixture
async def network() -> AsyncIterator[WebNetwork]:
    made = WebNetwork()
    yield made
    await made.close()


async def echo(connection: Connection) -> None:
    try:
        while True:
            await connection.send(await connection.recv())
    except ConnectionClosed:
        return


@asynccontextmanager
async def connected(network: WebNetwork, handler: Callable[[Connection], object] = echo) -> AsyncIterator[Connection]:
    listener = await network.listen(HOST, 0, handler, LIMIT)  # type: ignore[arg-type]
    connection = await network.connect(f"ws://{HOST}:{listener.port}/node", LIMIT)
    try:
        yield connection
    finally:
        await connection.close()
        await listener.close()


# ---------------------------------------------------------------- websockets


async def test_text_and_bytes_come_back_as_what_they_were(network: WebNetwork) -> None:
    async with connected(network) as connection:
        for data in ("text ✓", b"\x00\xff", "", b"", b"x" * LIMIT):
            await connection.send(data)
            assert await connection.recv() == data


async def test_the_close_code_and_reason_arrive(network: WebNetwork) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.close(4406, "another version")

    async with connected(network, refuse) as connection:
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert (caught.value.code, caught.value.reason) == (4406, "another version")
        with pytest.raises(ConnectionClosed):
            await connection.send("x")


async def test_a_message_over_the_limit_ends_the_connection(network: WebNetwork) -> None:
    async with connected(network) as connection:
        await connection.send(b"x" * (LIMIT + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert caught.value.code == 1009


async def test_a_refused_connection_is_one_sentence_with_the_address(network: WebNetwork) -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        url = f"ws://{HOST}:{closed.getsockname()[1]}/node"
    with pytest.raises(NetworkError, match="cannot connect") as caught:
        await network.connect(url, LIMIT)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1/", "ws://", "ws://127.0.0.1:99999/", "ws://[::1/"])
async def test_an_address_that_is_none_is_a_network_error(network: WebNetwork, url: str) -> None:
    with pytest.raises(NetworkError):
        await network.connect(url, LIMIT)


async def test_something_that_is_no_websocket_is_a_network_error(network: WebNetwork) -> None:
    async with http_server(answer(200, BODY)) as url:
        with pytest.raises(NetworkError, match="cannot connect"):
            await network.connect(url.replace("http", "ws"), LIMIT)


async def test_a_port_that_is_taken_is_a_network_error(network: WebNetwork) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(NetworkError, match="cannot listen") as caught:
            await network.listen(HOST, taken.getsockname()[1], echo, LIMIT)
        assert str(taken.getsockname()[1]) in str(caught.value)


# ---------------------------------------------------------------- downloads

Answer = Callable[[str], bytes]


def answer(status: int, body: bytes, *headers: str, length: int | None = None) -> Answer:
    size = len(body) if length is None else length
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {size}", "Connection: close", *headers])
    return lambda _: head.encode() + b"\r\n\r\n" + body


def honest(request: str) -> bytes:
    """A server that honours Range."""
    start, stop = (int(part) for part in request.split("bytes=")[1].split("\r\n")[0].split("-"))
    return answer(206, BODY[start : stop + 1], f"Content-Range: bytes {start}-{stop}/{len(BODY)}")(request)


@asynccontextmanager
async def http_server(reply: Answer) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(request.decode()))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}/file"


async def download(network: WebNetwork, url: str, *span: int) -> bytes:
    return b"".join([piece async for piece in network.get(url, *span)])


async def test_a_body_comes_whole(network: WebNetwork) -> None:
    async with http_server(answer(200, BODY)) as url:
        assert await download(network, url) == BODY


async def test_a_range_comes_as_asked_for(network: WebNetwork) -> None:
    async with http_server(honest) as url:
        assert await download(network, url, 100, 300) == BODY[100:300]
        assert await download(network, url, 0, 1) == BODY[:1]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(404, b"no"), "status 404"),
        (answer(500, b"no"), "status 500"),
        (answer(416, b"no"), "status 416"),
        (answer(302, b"", "Location: http://127.0.0.1:1/"), "status 302"),
        (answer(200, BODY), "status 200, expected 206"),
        (answer(206, BODY[:200]), "another range"),
        (answer(206, BODY[:200], "Content-Range: bytes 0-199/16384"), "another range"),
        (answer(206, BODY[:50], "Content-Range: bytes 100-299/16384", length=200), "failed"),
        (lambda _: b"nonsense\r\n\r\n", "failed"),
        (lambda _: b"", "failed"),
    ],
)
async def test_a_server_that_lies_or_fails_is_a_network_error(network: WebNetwork, reply: Answer, words: str) -> None:
    async with http_server(reply) as url:
        with pytest.raises(NetworkError, match=words) as caught:
            await download(network, url, 100, 300)
        assert url in str(caught.value)


async def test_a_server_that_is_not_there_is_a_network_error(network: WebNetwork) -> None:
    async with http_server(honest) as url:
        pass
    with pytest.raises(NetworkError, match="failed"):
        await download(network, url)


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://127.0.0.1:99999/", "http://[::1/", "ftp://127.0.0.1/"])
async def test_an_address_that_is_none_cannot_be_downloaded(network: WebNetwork, url: str) -> None:
    with pytest.raises(NetworkError):
        await download(network, url)
