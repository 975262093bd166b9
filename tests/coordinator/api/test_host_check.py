"""Only requests that were sent to a loopback name are answered."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from coordinator.api.host_check import HostMiddleware, is_loopback_name
from tests.fakes.api_driver import running_api


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8000"])
def test_loopback_names_are_ours(host: str) -> None:
    assert is_loopback_name(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.test", "evil.test:80", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "[::2]:80", ":80"],
)
def test_other_names_are_not(host: str) -> None:
    assert not is_loopback_name(host)


async def test_a_request_to_another_name_is_refused_and_the_next_good_one_works() -> None:
    async with running_api() as api:
        refused = await api.client.get("/v1/models", headers={"host": "evil.test"})
        assert refused.error == (421, "wrong_host", None)
        assert "'evil.test'" in refused.json()["error"]["message"]
        assert "x-request-id" in refused.headers
        assert (await api.client.get("/v1/models")).status == 200


def test_a_websocket_to_another_name_is_closed() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application was reached")

    client = TestClient(HostMiddleware(never), base_url="http://evil.test")
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/node"):
        pass
    assert caught.value.code == 4421
