"""Websockets and downloads over real loopback sockets; ports come from the system."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from protocol.env import (
    Access,
    Certificate,
    Connection,
    ConnectionClosed,
    NetworkError,
    NotAWebsocket,
    OutgoingConnection,
    WrongCertificate,
)
from shell.network import WebNetwork
from shell.tls import make_certificate, server_context

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
async def connected(
    network: WebNetwork, handler: Callable[[Connection], object] = echo
) -> AsyncIterator[OutgoingConnection]:
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


async def test_a_ping_takes_a_round_trip(network: WebNetwork) -> None:
    async with connected(network) as connection:
        assert 0 < await connection.ping() < 10
        await connection.send("after it")
        assert await connection.recv() == "after it"


async def test_a_ping_into_a_closed_connection_tells_so(network: WebNetwork) -> None:
    async def leave(connection: Connection) -> None:
        await connection.close(4406, "another version")

    async with connected(network, leave) as connection:
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        with pytest.raises(ConnectionClosed) as caught:
            await connection.ping()
        assert caught.value.code == 4406


async def test_a_ping_that_is_given_up_leaves_the_connection_whole(network: WebNetwork) -> None:
    async with connected(network) as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await connection.ping()
        assert await connection.ping() > 0


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


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(200, True), (301, True), (404, True), (426, True), (408, False), (429, False), (502, False), (503, False)],
)
async def test_an_answer_that_is_no_websocket_is_told_from_one_that_may_pass(
    network: WebNetwork, status: int, is_final: bool
) -> None:
    async with http_server(answer(status, b"", "Location: ws://127.0.0.1:1/")) as url:
        with pytest.raises(NetworkError, match=f"status {status}") as caught:
            await network.connect(url.replace("http", "ws"), LIMIT)
        assert isinstance(caught.value, NotAWebsocket) is is_final


async def test_no_redirect_is_followed_with_the_token(network: WebNetwork) -> None:
    asked: list[str] = []

    def remember(request: str) -> bytes:
        asked.append(request)
        return answer(404, b"")(request)

    async with http_server(remember) as there:
        location = f"Location: {there.replace('http', 'ws')}"
        async with http_server(answer(302, b"", location)) as here:
            with pytest.raises(NotAWebsocket):
                await network.connect(here.replace("http", "ws"), LIMIT, Access(token="secret-token"))
            with pytest.raises(NetworkError, match="status 302"):
                await download(network, here)
    assert asked == []


# ---------------------------------------------------------------- TLS

WRONG_PIN = "0" * 64


@asynccontextmanager
async def secure_echo(network: WebNetwork, certificate: Certificate) -> AsyncIterator[str]:
    listener = await network.listen(HOST, 0, echo, LIMIT, certificate)
    try:
        yield f"wss://{HOST}:{listener.port}/node"
    finally:
        await listener.close()


async def test_a_server_that_signs_itself_is_reached_by_its_pin(network: WebNetwork) -> None:
    made = make_certificate(["another.example"])
    async with secure_echo(network, made) as url:
        connection = await network.connect(url, LIMIT, Access(pin=made.fingerprint))
        await connection.send(b"frame")
        assert await connection.recv() == b"frame"
        await connection.close()


@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_another_certificate_than_the_pinned_one_is_refused(network: WebNetwork, scheme: str) -> None:
    async with secure_echo(network, make_certificate([HOST])) as url:
        with pytest.raises(WrongCertificate, match="another certificate"):
            await reach(network, url.replace("wss", scheme), Access(pin=WRONG_PIN))


@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_a_server_that_signs_itself_is_refused_without_a_pin(network: WebNetwork, scheme: str) -> None:
    async with secure_echo(network, make_certificate([HOST])) as url:
        with pytest.raises(WrongCertificate, match="self-signed certificate"):
            await reach(network, url.replace("wss", scheme), Access())


@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_a_certificate_out_of_date_is_refused(network: WebNetwork, scheme: str) -> None:
    made = make_certificate([HOST], days=0)
    async with secure_echo(network, made) as url:
        with pytest.raises(WrongCertificate, match="expired"):
            await reach(network, url.replace("wss", scheme), Access(pin=made.fingerprint))


@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_a_server_that_takes_over_the_address_is_refused(network: WebNetwork, scheme: str) -> None:
    made = make_certificate([HOST])
    async with secure_echo(network, made) as url:
        connection = await network.connect(url, LIMIT, Access(pin=made.fingerprint))
        await connection.close()
    async with secure_echo(network, make_certificate([HOST])) as url:
        with pytest.raises(WrongCertificate):
            await reach(network, url.replace("wss", scheme), Access(pin=made.fingerprint))


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_a_pin_without_tls_is_refused(network: WebNetwork, scheme: str) -> None:
    with pytest.raises(NetworkError, match="a certificate is expected"):
        await reach(network, f"{scheme}://{HOST}:1/", Access(pin=WRONG_PIN))


async def test_a_plain_connection_to_a_server_with_tls_is_told_from_one_that_may_pass(network: WebNetwork) -> None:
    async with secure_echo(network, make_certificate([HOST])) as url:
        with pytest.raises(WrongCertificate, match="takes secure connections only"):
            await network.connect(url.replace("wss", "ws"), LIMIT)
    async with http_server(lambda _: b"") as url:
        with pytest.raises(NetworkError) as caught:
            await network.connect(url.replace("http", "ws"), LIMIT)
        assert type(caught.value) is NetworkError


async def test_a_pinned_server_that_is_away_is_a_network_error_that_may_pass(network: WebNetwork) -> None:
    async with secure_echo(network, make_certificate([HOST])) as url:
        pass
    for address in (url, url.replace("wss", "https")):
        with pytest.raises(NetworkError, match="cannot connect") as caught:
            await reach(network, address, Access(pin=WRONG_PIN))
        assert type(caught.value) is NetworkError


async def test_a_download_from_a_pinned_server_comes_whole(network: WebNetwork) -> None:
    made = make_certificate(["another.example"])
    async with http_server(honest, made) as url:
        access = Access(pin=made.fingerprint)
        assert b"".join([piece async for piece in network.get(url, 100, 300, access)]) == BODY[100:300]


async def test_the_token_goes_with_downloads_and_websockets(network: WebNetwork) -> None:
    asked: list[str] = []

    def remember(request: str) -> bytes:
        asked.append(request.lower())
        return answer(200, BODY)(request)

    async with http_server(remember) as url:
        for address in (url, url.replace("http", "ws")):
            with contextlib.suppress(NotAWebsocket):
                await reach(network, address, Access(token="secret-token"))
        await reach(network, url, Access())
    assert ["authorization: bearer secret-token\r\n" in request for request in asked] == [True, True, False]


async def test_a_wrong_token_is_a_network_error_that_does_not_repeat_it(network: WebNetwork) -> None:
    async with http_server(answer(401, b"", "WWW-Authenticate: Bearer")) as url:
        with pytest.raises(NetworkError, match="status 401") as caught:
            await reach(network, url, Access(token="secret-token"))
    assert "secret-token" not in str(caught.value)


async def reach(network: WebNetwork, url: str, access: Access) -> None:
    """Connect or download, by the URL's scheme."""
    if url.startswith("ws"):
        await (await network.connect(url, LIMIT, access)).close()
    else:
        _ = [piece async for piece in network.get(url, access=access)]


async def test_the_address_towards_a_server_is_one_of_this_machine(network: WebNetwork) -> None:
    assert await network.local_host_towards(f"http://{HOST}:8000") == HOST
    assert await network.local_host_towards("https://[::1]") == "::1"


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://127.0.0.1:99999", "http://no.such.host.invalid"])
async def test_without_an_address_there_is_no_way_there(network: WebNetwork, url: str) -> None:
    with pytest.raises(NetworkError, match="no way from this machine"):
        await network.local_host_towards(url)


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
async def http_server(reply: Answer, certificate: Certificate | None = None) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(request.decode()))
        writer.close()
        await writer.wait_closed()

    context = server_context(certificate) if certificate is not None else None
    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    async with server:
        yield f"{'http' if context is None else 'https'}://{HOST}:{server.sockets[0].getsockname()[1]}/file"


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
