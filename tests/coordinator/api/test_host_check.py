"""Only requests that were sent to one of the pool's names, or to an address in numbers, are answered."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from coordinator.api.host_check import HostMiddleware, is_address, is_ours_alone, name_of
from coordinator.config import Site
from tests.fakes.api_driver import CLOSED_SITE, running_api
from tests.fakes.asgi_client import AsgiClient

OURS = [
    "127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8000", "10.0.0.1:8000", "[fe80::1]",
    "pool.test", "pool.test:8443", "Pool.Test:443",
]  # fmt: skip
FOREIGN = [
    "", "evil.test", "evil.test:80", "127.0.0.1.evil.test", "localhost.evil.test", "pool.test.evil.test", "apool.test",
    "pool.test:80:90", "pool.test@evil.test", "pool.test, evil.test", "0.0.0.0", "0.0.0.0:8000", "[::]:80", ":80",
    "2130706433", "0x7f.1", "127.1", "[::ffff:0.0.0.0]", "224.0.0.1", "pool.test.", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
async def test_the_pools_names_and_addresses_are_answered(host: str) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        assert (await api.client.get("/healthz", headers={"host": host})).status == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_page_whose_name_was_pointed_here_is_refused_and_the_next_good_request_works(host: str) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        refused = await api.client.get("/healthz", headers={"host": host})
        assert refused.error == (421, "wrong_host", None)
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert len(refused.body) < 1000
        assert (await api.client.get("/healthz")).status == 200


async def test_the_refusal_says_which_name_it_was() -> None:
    async with running_api() as api:
        reply = await api.client.get("/v1/models", headers={"host": "evil.test"})
        assert "'evil.test'" in reply.json()["error"]["message"]


async def test_two_host_headers_or_none_are_refused() -> None:
    async with running_api() as api:
        for count in (0, 2):

            async def with_hosts(scope: Scope, receive: Receive, send: Send, count: int = count) -> None:
                await api.http({**scope, "headers": [(b"host", b"127.0.0.1")] * count}, receive, send)

            assert (await AsgiClient(with_hosts).get("/healthz")).error == (421, "wrong_host", None)


@pytest.mark.parametrize(
    ("header", "name"), [("[::1]:80", "::1"), ("[::1]", "::1"), ("A.b:1", "a.b"), ("a", "a"), ("a:b", "a:b"), ("", "")]
)
def test_a_host_header_without_its_port(header: str, name: str) -> None:
    assert name_of(header) == name


@pytest.mark.parametrize(("name", "is_one"), [("192.0.2.1", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)])
def test_what_is_an_address(name: str, is_one: bool) -> None:
    assert is_address(name) is is_one


def test_a_websocket_to_another_name_is_closed() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application was reached")

    client = TestClient(HostMiddleware(never, {"pool.test"}), base_url="http://evil.test")
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/node"):
        pass
    assert caught.value.code == 4421


WIDE_NAMES = frozenset({"localhost", "127.0.0.1", "192.0.2.2", "ada"})
WIDE = Site(
    "https://192.0.2.2:8443", "ab" * 32, True, frozenset({"localhost", "127.0.0.1", "192.0.2.2", "ada"}), True, "x"
)
PROXIED = Site("https://pool.test", "", True, frozenset({"localhost", "127.0.0.1", "pool.test"}), True, "x")


@pytest.mark.parametrize(
    ("site", "scheme", "server", "host", "is_it"),
    [
        (WIDE, "wss", ("192.0.2.2", 8443), "192.0.2.2:8443", True),
        (WIDE, "wss", ("127.0.0.1", 8443), "localhost:8443", True),
        (WIDE, "wss", ("10.1.1.1", 8443), "ADA:8443", True),
        (WIDE, "wss", ("10.1.1.1", 8443), "10.1.1.1:8443", True),  # a network that it did not know of at its start
        (WIDE, "wss", ("::ffff:10.1.1.1", 8443), "10.1.1.1:8443", True),
        (WIDE, "wss", ("fe80::1", 8443), "[fe80::1]:8443", True),
        (WIDE, "wss", ("10.1.1.1", 8443), "203.0.113.5:8443", False),  # another pool's address
        (WIDE, "wss", ("192.0.2.2", 8443), "192.0.2.2:9000", False),  # another pool on this machine
        (WIDE, "wss", ("192.0.2.2", 8443), "192.0.2.2", False),
        (WIDE, "wss", None, "ada:8443", False),
        (WIDE, "wss", ("192.0.2.2", 443), "ada", True),
        (PROXIED, "ws", ("127.0.0.1", 8000), "pool.test", True),
        (PROXIED, "wss", ("127.0.0.1", 8000), "pool.test:443", True),
        (PROXIED, "ws", ("127.0.0.1", 8000), "127.0.0.1:8000", True),
        (PROXIED, "ws", ("127.0.0.1", 8000), "other.test", False),
        (PROXIED, "ws", ("127.0.0.1", 8000), "pool.test:" + "9" * 5000, False),
        (PROXIED, "ws", ("127.0.0.1", 8000), "", False),
    ],
)
def test_a_hello_is_taken_only_for_an_address_that_leads_nowhere_else(
    site: Site, scheme: str, server: tuple[str, int] | None, host: str, is_it: bool
) -> None:
    assert is_ours_alone({"type": "websocket", "scheme": scheme, "server": server}, host, site) is is_it
