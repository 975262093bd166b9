"""The application around the routes: ids, headers, unknown addresses, defects of ours."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from coordinator.api.http import SECURITY_HEADERS
from tests.fakes.api_driver import CHAT, question, running_api, speaker
from tests.fakes.virtual_loop import on_virtual_time


@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("GET", "/nothing"), ("GET", CHAT), ("POST", CHAT)])
async def test_every_response_has_its_own_id_and_the_security_headers(method: str, path: str) -> None:
    async with running_api() as api:
        replies = [await api.client.request(method, path) for _ in range(2)]
        for reply in replies:
            assert {name.lower(): value for name, value in SECURITY_HEADERS.items()}.items() <= reply.headers.items()
        assert replies[0].headers["x-request-id"] != replies[1].headers["x-request-id"]


def test_the_policy_allows_only_our_own_scripts() -> None:
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/nothing", "/static/../../pyproject.toml", "/%2e%2e/pyproject.toml", "/.env"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_address_is_404(method: str, path: str) -> None:
    async with running_api() as api:
        assert (await api.client.request(method, path)).error == (404, "not_found", None)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("TRACE", CHAT, "POST"),
        ("POST", "/healthz", "GET"),
        ("PUT", "/pool", "GET"),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_is_right(method: str, path: str, allow: str) -> None:
    async with running_api() as api:
        reply = await api.client.request(method, path)
        assert reply.error == (405, "method_not_allowed", None)
        assert reply.headers["allow"] == allow


async def test_the_chat_page_is_at_the_root() -> None:
    async with running_api() as api:
        reply = await api.client.get("/")
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/html")


@pytest.mark.expected_logs("failed")
@on_virtual_time
async def test_a_defect_of_ours_is_one_sentence_and_the_id_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_api(speaker()) as api:

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("secret detail")

        with monkeypatch.context() as patch:
            patch.setattr("coordinator.api.routes.parse_chat_request", broken)
            async with api.client.exchange("POST", CHAT, [b"{}"], {"content-type": "application/json"}) as exchange:
                with pytest.raises(ZeroDivisionError):  # starlette raises it again, for the server's log
                    await exchange.finished()
                reply = exchange.reply
        assert reply.error == (500, "internal_error", None)
        assert b"secret" not in reply.body
        assert b"ZeroDivision" not in reply.body
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        await api.still_works()


@on_virtual_time
async def test_a_question_works_beside_all_that() -> None:
    async with running_api(speaker()) as api:
        assert (await api.client.post(CHAT, question())).status == 200


def test_a_websocket_to_an_unknown_address_is_closed(http_app: Any) -> None:
    with pytest.raises(WebSocketDisconnect), TestClient(http_app).websocket_connect("/nothing"):
        pass


def test_a_web_page_cannot_pose_as_a_node(http_app: Any) -> None:
    origin = {"origin": "http://evil.test", "host": "127.0.0.1:8000"}
    with (
        pytest.raises(WebSocketDisconnect) as caught,
        TestClient(http_app).websocket_connect("/node", headers=origin),
    ):
        pass
    assert caught.value.code == 4403


@pytest.fixture
def http_app() -> Any:
    """An application without a running hub: for what is refused before the hub is asked."""
    from contextlib import asynccontextmanager
    from types import SimpleNamespace

    from coordinator.api.http import build_http

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        yield

    return build_http(_routes(), SimpleNamespace(token_hex=lambda n: "00" * n), lifespan, "test")  # type: ignore[arg-type]


def _routes() -> Any:
    from coordinator.api.routes import Routes

    return Routes(*[None] * 4)  # type: ignore[arg-type]
