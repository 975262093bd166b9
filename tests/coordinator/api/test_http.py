"""The application around the routes: ids, headers, unknown addresses, defects of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from coordinator.api import http as http_module
from coordinator.api.http import SECURITY_HEADERS, build_http, page_addresses
from coordinator.api.services import Services
from coordinator.config import Site
from protocol.env import Connection
from tests.fakes.api_driver import CHAT, CLOSED_SITE, OPEN_SITE, question, running_api, speaker
from tests.fakes.virtual_env import VirtualWorld
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
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules.get("script-src", rules["default-src"]) == "'self'"
    assert rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == rules["object-src"] == "'none'"
    assert "unsafe-eval" not in policy
    assert "*" not in policy


@pytest.mark.parametrize(
    ("site", "is_sent"),
    [
        (OPEN_SITE, False),
        (CLOSED_SITE, False),
        (replace(CLOSED_SITE, pin=""), True),
        (replace(OPEN_SITE, pin=""), False),
    ],
)
async def test_browsers_are_bound_to_tls_only_where_an_authority_vouches_for_it(site: Site, is_sent: bool) -> None:
    async with running_api(site=site) as api:
        assert ("strict-transport-security" in (await api.client.get("/healthz")).headers) is is_sent


@pytest.mark.parametrize(
    ("path", "is_kept_out"),
    [
        ("/api/session", True),
        ("/api/operator/overview", True),
        ("/api/nothing", True),
        ("/healthz", False),
        ("/", False),
    ],
)
async def test_what_is_about_accounts_is_kept_out_of_caches(path: str, is_kept_out: bool) -> None:
    async with running_api() as api:
        reply = await api.client.get(path)
        assert (reply.headers.get("cache-control") == "no-store") is is_kept_out


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


async def test_the_operators_page_has_an_address_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operator.html").write_text("<title>operator</title>")
    (tmp_path / "index.html").write_text("<title>chat</title>")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a.js").write_text("1")
    monkeypatch.setattr(http_module, "STATIC_FOLDER", tmp_path)
    assert page_addresses() == {"/", "/index.html", "/operator", "/operator.html", "/assets/a.js"}
    async with running_api(site=CLOSED_SITE) as api:
        assert b"operator" in (await api.client.get("/operator")).body
        assert b"chat" in (await api.client.get("/")).body
        assert (await api.client.get("/assets/a.js")).body == b"1"
        assert (await api.client.request("HEAD", "/operator")).status == 200
        assert (await api.client.get("/assets")).status == 401
        assert (await api.client.get("/assets/b.js")).status == 401
        assert (await api.client.post("/operator", {})).error == (404, "not_found", None)


async def test_the_desk_is_closed_with_the_application() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        steps.append("begins")
        yield
        steps.append("ends")

    class Desk:
        models, weights = {}, {}  # type: ignore[var-annotated]

        async def close(self) -> None:
            steps.append("desk closed")

    services = Services(None, Desk(), None, OPEN_SITE, VirtualWorld().env())  # type: ignore[arg-type]
    http = build_http(services, lifespan, "test")
    async with http.router.lifespan_context(http):
        assert steps == ["begins"]
    assert steps == ["begins", "desk closed", "ends"]


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


class Visited:
    """A hub that notes who comes, and refuses."""

    def __init__(self, has_room: bool = True) -> None:
        self.visits: list[tuple[str, str]] = []
        self.has_room = has_room

    def takes_visitor(self, address: str) -> bool:
        return self.has_room

    async def serve_node(self, connection: Connection, audience: str, address: str) -> None:
        self.visits.append((audience, address))
        await connection.close(4401, "no")


def node_socket(hub: Visited, host: str) -> Any:
    """A node's websocket, as far as the hub lets it come."""
    client = TestClient(http_without_hub(hub, CLOSED_SITE), base_url="https://pool.test:8443", client=("10.0.0.7", 1))
    return client.websocket_connect("/node", headers={"host": host})


@pytest.mark.parametrize("host", ["pool.test:8443", "Pool.TEST:8443"])
def test_a_nodes_hello_is_for_the_host_that_it_asked_for(host: str) -> None:
    hub = Visited()
    with node_socket(hub, host) as socket, pytest.raises(WebSocketDisconnect):
        socket.receive_text()
    assert hub.visits == [("pool.test:8443", "10.0.0.7")]


@pytest.mark.parametrize("host", ["203.0.113.5:8443", "pool.test:8444", "[::1]:8443", "127.0.0.1"])
def test_a_node_that_asked_for_another_address_is_told_so_and_gets_no_challenge(host: str) -> None:
    hub = Visited()
    with node_socket(hub, host) as socket:
        refused = json.loads(socket.receive_text())
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert (refused["type"], refused["code"]) == ("refused", "wrong_address")
    assert f"'{host}'" in refused["message"]
    assert closed.value.code == 4401
    assert hub.visits == []


def test_a_node_for_which_there_is_no_room_may_try_again() -> None:
    with pytest.raises(WebSocketDenialResponse) as denied, node_socket(Visited(has_room=False), "pool.test:8443"):
        pass
    assert denied.value.status_code == 503
    assert denied.value.headers["retry-after"] == "5"


@pytest.fixture
def http_app() -> Any:
    """For what is refused before the hub is asked."""
    return http_without_hub(None, OPEN_SITE)


def http_without_hub(hub: Any, site: Site) -> Any:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield

    class Desk:
        models, weights = {}, {}  # type: ignore[var-annotated]

        async def close(self) -> None:
            return

    services = Services(hub, Desk(), None, site, VirtualWorld().env())  # type: ignore[arg-type]
    return build_http(services, lifespan, "test")
