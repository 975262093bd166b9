"""Who may do what: every route of a closed pool, keys, weights, forged requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from coordinator.accounts import Caller, Role, StoreError
from coordinator.api.access import MAX_GOOD_KEYS, AccessMiddleware, Gate, Need, NotAllowed, caller_of, operator_of
from coordinator.api.http import page_addresses
from coordinator.throttle import NUM_ATTEMPTS, Throttle
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CHAT, CLOSED_SITE, OPEN_SITE, ApiDriver, question, running_api, speaker
from tests.fakes.asgi_client import JSON, AsgiClient
from tests.fakes.virtual_loop import on_virtual_time

NEEDS_NOTHING = {("GET", "/healthz"), ("WEBSOCKET", "/node")}
NEEDS_NO_SESSION = {("GET", "/api/session"), ("POST", "/api/session"), ("DELETE", "/api/session")}
WRONG_KEY = "sk-12345678-" + "x" * 43


def routes_of(router: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route of an application, those of included routers too."""
    for route in router.routes:
        if isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", route.path
        elif isinstance(route, Route):
            yield from ((method, route.path) for method in sorted(route.methods or ()))
        else:
            yield from routes_of(route.original_router)


def example(path: str) -> str:
    """An address of that route."""
    filled = path.replace("{manifest_hash}", facts.DIGEST).replace("{name:path}", "tiny")
    return filled.replace("{name}", "tiny").replace("{node_id}", facts.node_id(1)).replace("{", "").replace("}", "")


def key_header(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ---------------------------------------------------------------- every route


async def test_every_route_of_a_closed_pool_refuses_strangers_unless_it_is_named_here() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        everything = set(routes_of(api.http))
        assert len(everything) > 20
        assert everything >= NEEDS_NOTHING | NEEDS_NO_SESSION
        for method, path in sorted(everything - NEEDS_NOTHING - NEEDS_NO_SESSION):
            assert method != "WEBSOCKET", path
            reply = await api.client.request(method, example(path), b"{}", JSON)
            assert reply.status in (401, 403), f"{method} {path}: {reply.status}"
            assert reply.error[1] in ("sign_in_needed", "weights_token_needed", "operators_only")


async def test_every_operators_route_refuses_guests_and_keys_on_any_pool() -> None:
    for site in (OPEN_SITE, CLOSED_SITE):
        async with running_api(site=site) as api:
            guest = api.browser()
            await guest.sign_in(api.invitation())
            _, key = api.accounts.make_key("program", None)
            routes = sorted(set(routes_of(api.http)))
            for method, path in [r for r in routes if r[1].startswith("/api/operator/")]:
                send = {"GET": guest.get, "POST": guest.post, "DELETE": guest.delete}[method]
                assert (await send(example(path))).error == (403, "operators_only", None)
                by_key = await api.client.request(method, example(path), b"{}", JSON | key_header(key))
                assert by_key.error == (403, "operators_only", None)
            assert not api.accounts.audit_trail()


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/openapi.json", "/docs", "/api", "/api/sessions", "/.env", "//healthz", "/healthz/x"]
)
async def test_a_closed_pool_does_not_tell_strangers_which_addresses_exist(path: str) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        for method in ("GET", "POST", "OPTIONS"):
            assert (await api.client.request(method, path)).error == (401, "sign_in_needed", None)


@pytest.mark.parametrize("path", ["/api/operator", "/api/operator/", "/api/operator/nothing", "/api/operator/../x"])
async def test_below_the_operators_address_everything_is_the_operators(path: str) -> None:
    async with running_api() as api:
        assert (await api.client.get(path)).error == (403, "operators_only", None)


async def test_health_and_the_pages_are_for_everybody() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        assert (await api.client.get("/healthz")).status == 200
        assert (await api.client.get("/")).status == 200
        for path in sorted(page_addresses() - {"/operator"}):
            assert (await api.client.get(path)).status == 200, path


def test_a_websocket_is_for_nodes_only() -> None:
    gate = Gate(None, None, CLOSED_SITE, None, Throttle())  # type: ignore[arg-type]
    assert gate.need_of("/node") is Need.NOTHING
    http = FastAPI()
    http.add_middleware(AccessMiddleware, gate=gate)
    with pytest.raises(WebSocketDisconnect) as caught, TestClient(http).websocket_connect("/v1/live"):
        pass
    assert caught.value.code == 4404


# ---------------------------------------------------------------- signed in, or with a key


@on_virtual_time
async def test_on_a_closed_pool_a_guest_and_a_program_with_a_key_may_chat() -> None:
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        refused = await api.client.post(CHAT, question())
        assert refused.error == (401, "sign_in_needed", None)
        assert refused.headers["www-authenticate"] == "Bearer"
        guest = api.browser()
        await guest.sign_in(api.invitation())
        assert (await guest.post(CHAT, question())).status == 200
        _, key = api.accounts.make_key("program", None)
        assert (await api.client.post(CHAT, question(), key_header(key))).status == 200
        assert (await api.client.get("/pool", key_header(key))).status == 200
        assert (await (await api.operator()).post(CHAT, question())).status == 200


@on_virtual_time
async def test_an_open_pool_answers_everybody_whatever_word_stands_for_a_key() -> None:
    """OpenAI's library wants a key even where none is needed."""
    async with running_api(speaker()) as api:
        for headers in ({}, key_header("none needed"), {"authorization": "Basic eDp5"}, {"cookie": "decentllm=old"}):
            assert (await api.client.post(CHAT, question(), headers)).status == 200


@pytest.mark.parametrize("site", [OPEN_SITE, CLOSED_SITE])
@on_virtual_time
async def test_a_wrong_key_is_refused_on_every_pool(site: Any) -> None:
    async with running_api(speaker(), site=site) as api:
        reply = await api.client.post(CHAT, question(), key_header(WRONG_KEY))
        assert reply.error == (401, "bad_key", None)
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("word", ["none needed", "sk-", "sk-x", "x" * 5000, "sk-" + "\xff" * 300, "'; drop table keys"])
async def test_a_closed_pool_takes_no_word_for_a_key(word: str) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        assert (await api.client.get("/v1/models", key_header(word))).error == (401, "bad_key", None)


@on_virtual_time
async def test_a_key_that_was_revoked_or_has_expired_opens_nothing() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        view, key = api.accounts.make_key("program", None)
        _, brief = api.accounts.make_key("for a minute", 60.0)
        for each in (key, brief):
            assert (await api.client.get("/v1/models", key_header(each))).status == 200
        api.accounts.revoke_key(view.key_id)
        assert (await api.client.get("/v1/models", key_header(key))).error == (401, "bad_key", None)
        await api.services.env.clock.sleep(61)
        assert (await api.client.get("/v1/models", key_header(brief))).error == (401, "key_expired", None)


async def test_a_session_that_ended_is_nobodys() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        [invitation] = api.accounts.invitations()
        api.accounts.revoke_invitation(invitation.invitation_id)
        assert (await guest.get("/pool")).error == (401, "sign_in_needed", None)


async def test_a_key_is_no_cookie_and_a_cookie_is_no_key() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        [cookie] = guest.cookies.values()
        _, key = api.accounts.make_key("program", None)
        assert (await api.client.get("/pool", key_header(cookie))).status == 401
        assert (await api.client.get("/pool", {"cookie": f"__Host-decentllm={key}"})).status == 401
        assert (await api.client.get("/pool", {"cookie": f"decentllm={cookie}"})).status == 401
        assert (await api.client.get("/pool", {"cookie": f"__Host-decentllm={cookie}"})).status == 200


# ---------------------------------------------------------------- guesses


@on_virtual_time
async def test_the_eleventh_wrong_key_within_a_minute_has_to_wait() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        statuses = [(await api.client.get("/pool", key_header(f"{WRONG_KEY}{n}"))).status for n in range(NUM_ATTEMPTS)]
        assert statuses == [401] * NUM_ATTEMPTS
        reply = await api.client.get("/pool", key_header(WRONG_KEY))
        assert reply.error == (429, "too_many_attempts", None)
        assert reply.headers["retry-after"] == "6"
        await api.services.env.clock.sleep(6)
        assert (await api.client.get("/pool", key_header(WRONG_KEY))).status == 401


@on_virtual_time
async def test_guesses_hold_up_neither_other_addresses_nor_keys_that_were_good_before_nor_cookies() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        (_, known), (_, fresh) = (api.accounts.make_key(label, None) for label in ("known", "fresh"))
        assert (await api.client.get("/pool", key_header(known))).status == 200
        while (await api.client.get("/pool", key_header(WRONG_KEY))).status != 429:
            pass
        assert (await api.client.get("/pool", key_header(known))).status == 200
        assert (await guest.get("/pool")).status == 200
        assert (await api.client.get("/pool", key_header(fresh))).status == 429
        elsewhere = AsgiClient(api.http, CLOSED_SITE.base_url, "192.0.2.9")
        assert (await elsewhere.get("/pool", key_header(fresh))).status == 200


async def test_no_more_good_keys_than_the_limit_are_remembered() -> None:
    gate = Gate(None, None, CLOSED_SITE, None, Throttle())  # type: ignore[arg-type]
    for number in range(MAX_GOOD_KEYS + 10):
        gate._remember(str(number))
    assert len(gate.good_keys) == MAX_GOOD_KEYS
    assert "9" not in gate.good_keys


# ---------------------------------------------------------------- weights


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return {"model.safetensors": tmp_path / "model.safetensors"}


async def test_weights_of_a_closed_pool_are_for_its_nodes_while_they_are_in_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_api(site=CLOSED_SITE, files=files) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        _, key = api.accounts.make_key("program", None)
        monkeypatch.setattr(api.pool.hub, "is_weights_token", lambda token: token == "good")
        address = f"/weights/{facts.DIGEST}/files/model.safetensors"
        for headers in ({}, key_header("other"), key_header(key), key_header(""), key_header("x" * 5000)):
            assert (await api.client.get(address, headers)).error == (401, "weights_token_needed", None)
        assert (await guest.get(address)).error == (401, "weights_token_needed", None)
        assert (await api.client.get(address, key_header("good"))).body == b"weights"
        assert (await api.client.get("/pool", key_header("good"))).status == 401


@on_virtual_time
async def test_a_nodes_token_is_no_weights_token_any_more_when_it_has_left() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        _, welcome = await api.pool.welcomed(facts.hello(1))
        token = welcome.weights_token
        manifest = f"/weights/{facts.DIGEST}/manifest"
        assert (await api.client.get(manifest, key_header(token))).status == 200
        api.pool.hub.remove_node(facts.node_id(1), "test")
        assert (await api.client.get(manifest, key_header(token))).status == 401


# ---------------------------------------------------------------- forged requests


FOREIGN = [
    {"origin": "https://evil.test"},
    {"origin": "null"},
    {"origin": "http://pool.test:8443"},
    {"origin": "https://pool.test:8443", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", [{}, *FOREIGN])
async def test_an_operators_cookie_alone_changes_nothing(headers: dict[str, str]) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in operator.cookies.items())}
        num_lines = len(api.accounts.audit_trail())
        for method, path in sorted(set(routes_of(api.http))):
            if path.startswith("/api/operator/") and method != "GET":
                reply = await api.client.request(method, example(path), b"{}", JSON | cookie | headers)
                assert reply.error == (403, "cross_site", None), f"{method} {path}"
        assert len(api.accounts.audit_trail()) == num_lines
        assert not api.accounts.invitations()
        assert not api.accounts.keys()


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_what_a_form_could_send_changes_nothing(kind: str) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        body = b'{"label": "x", "expires_in_s": null}'
        reply = await operator._send("POST", "/api/operator/keys", body, {"content-type": kind})
        assert reply.error == (415, "unsupported_media_type", None)
        assert not api.accounts.keys()


@pytest.mark.parametrize("headers", FOREIGN)
@on_virtual_time
async def test_another_page_cannot_chat_with_a_visitors_cookie(headers: dict[str, str]) -> None:
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in guest.cookies.items())}
        assert (await api.client.post(CHAT, question(), cookie | headers)).error == (403, "cross_site", None)
        assert (await api.client.post(CHAT, question(), cookie)).status == 200


async def test_the_own_page_is_known_by_its_origin_or_by_fetch_metadata() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in operator.cookies.items())}
        for n, own in enumerate(({"origin": CLOSED_SITE.base_url}, {"sec-fetch-site": "same-origin"})):
            body = {"label": f"key {n}", "expires_in_s": None}
            assert (await api.client.post("/api/operator/keys", body, cookie | own)).status == 200


# ---------------------------------------------------------------- what stays inside


@pytest.mark.allowed_logs("")
@on_virtual_time
async def test_no_secret_is_ever_in_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        guest, invitation = api.browser(), api.invitation()
        bodies = [(await guest.sign_in(invitation)).body, (await guest.sign_in("in-wrong-secret")).body]
        [cookie] = guest.cookies.values()
        _, key = api.accounts.make_key("program", None)
        canaries = [invitation, "in-wrong-secret", cookie, key, WRONG_KEY, "a secret prompt"]
        for headers in (key_header(key), key_header(WRONG_KEY), {"cookie": f"__Host-decentllm={cookie}"}, {}):
            asked = question(messages=[{"role": "user", "content": "a secret prompt"}], temperature=9)
            bodies.append((await api.client.post(CHAT, asked, headers)).body)
            bodies.append((await api.client.get(f"/nothing?{cookie}", headers)).body)
        for canary in canaries:
            assert canary not in caplog.text
            assert not any(canary.encode() in body for body in bodies)


def test_the_operators_second_lock_holds_without_the_first() -> None:
    with pytest.raises(NotAllowed):
        operator_of(Request({"type": "http"}))
    guest = Request({"type": "http", "state": {"caller": Caller(Role.CHAT, session_id="1")}})
    with pytest.raises(NotAllowed):
        operator_of(guest)
    assert caller_of(guest).role is Role.CHAT


@pytest.mark.expected_logs("failed: pool.sqlite3")
async def test_a_database_that_cannot_be_used_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cookie: str) -> Caller:
        raise StoreError("store_busy", "pool.sqlite3")

    async with running_api(site=CLOSED_SITE) as api:
        with monkeypatch.context() as patch:
            patch.setattr(api.accounts, "caller_of_cookie", broken)
            reply = await api.client.get("/pool", {"cookie": "__Host-decentllm=x"})
        assert reply.error == (503, "store_busy", None)
        assert (await api.client.get("/healthz")).status == 200


async def test_a_pool_that_is_opened_forgets_no_lock_of_the_operator() -> None:
    async with running_api(site=replace(CLOSED_SITE, is_open=True)) as api:
        assert (await api.client.get("/pool")).status == 200
        assert (await api.client.get("/api/operator/overview")).status == 403


async def test_it_is_the_drivers_own_browser_that_is_let_in() -> None:
    """What the refusals above are compared with."""
    async with running_api(site=CLOSED_SITE) as api:
        assert isinstance(api, ApiDriver)
        operator = await api.operator()
        assert (await operator.get("/api/operator/overview")).status == 200
        assert (await operator.post("/api/operator/keys", {"label": "a", "expires_in_s": None})).status == 200
