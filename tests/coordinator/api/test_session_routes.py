"""Signing in by a link, and out."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.accounts import Caller, Role
from coordinator.api.session_routes import name_of
from coordinator.config import Site
from coordinator.throttle import NUM_ATTEMPTS
from tests.fakes.api_driver import CLOSED_SITE, OPEN_SITE, running_api
from tests.fakes.asgi_client import JSON
from tests.fakes.virtual_loop import on_virtual_time

SESSION = "/api/session"
NOBODY = {"pool_name": "test pool", "role": None, "label": ""}


def attributes(set_cookie: str) -> set[str]:
    return {part.strip().lower() for part in set_cookie.split(";")[1:]}


# ---------------------------------------------------------------- who is there


@pytest.mark.parametrize("site", [OPEN_SITE, CLOSED_SITE])
async def test_a_stranger_learns_the_pools_name_and_whether_he_may_chat(site: Site) -> None:
    async with running_api(site=site) as api:
        reply = await api.client.get(SESSION)
        assert reply.status == 200
        assert reply.json() == NOBODY | {"is_open": site.is_open, "can_chat": site.is_open}
        assert reply.headers["cache-control"] == "no-store"
        assert "set-cookie" not in reply.headers


async def test_an_invitation_lets_a_guest_chat_under_its_name() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        expected = NOBODY | {"is_open": False, "role": "chat", "label": "friends", "can_chat": True}
        assert (await guest.sign_in(api.invitation())).json() == expected
        assert (await guest.get(SESSION)).json() == expected
        assert (await api.browser().get(SESSION)).json()["role"] is None


async def test_an_operators_link_is_good_once_and_leaves_a_line() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        token = api.accounts.make_operator_link()
        first, second = api.browser(), api.browser()
        assert (await first.sign_in(token)).json()["role"] == "operator"
        assert (await second.sign_in(token)).error == (403, "link_unknown", None)
        assert (await second.get(SESSION)).json()["role"] is None
        [line] = api.accounts.audit_trail()
        assert line.what == "signed in"
        assert line.who.startswith("operator ")
        assert token not in line.who + line.what


# ---------------------------------------------------------------- the cookie


async def test_over_tls_the_cookie_is_for_this_host_and_its_pages_alone() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        reply = await api.browser().sign_in(api.invitation())
        header = reply.headers["set-cookie"]
        assert header.startswith("__Host-decentllm=")
        assert attributes(header) == {"httponly", "samesite=strict", "path=/", "secure", "max-age=2592000"}


async def test_on_loopback_without_tls_the_cookie_is_the_same_but_for_what_needs_tls() -> None:
    async with running_api() as api:
        header = (await api.browser().sign_in(api.invitation())).headers["set-cookie"]
        assert header.startswith("decentllm=")
        assert attributes(header) == {"httponly", "samesite=strict", "path=/", "max-age=2592000"}


async def test_an_operators_cookie_lives_for_hours_and_no_secret_is_in_the_answer() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = api.browser()
        reply = await operator.sign_in(api.accounts.make_operator_link())
        assert "max-age=43200" in attributes(reply.headers["set-cookie"])
        assert not any(cookie.encode() in reply.body for cookie in operator.cookies.values())


# ---------------------------------------------------------------- going


@pytest.mark.parametrize("site", [OPEN_SITE, CLOSED_SITE])
async def test_signing_out_ends_the_session_and_takes_the_cookie_back(site: Site) -> None:
    async with running_api(site=site) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        stolen = dict(guest.cookies)
        reply = await guest.delete(SESSION)
        assert reply.json()["role"] is None
        assert "max-age=0" in attributes(reply.headers["set-cookie"])
        assert ("secure" in attributes(reply.headers["set-cookie"])) is site.is_secure
        guest.cookies = stolen
        assert (await guest.get(SESSION)).json()["role"] is None


async def test_signing_out_without_a_session_is_harmless() -> None:
    async with running_api() as api:
        assert (await api.client.request("DELETE", SESSION)).status == 200


async def test_one_guest_signing_out_signs_no_other_out() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        token = api.invitation()
        one, other = api.browser(), api.browser()
        await one.sign_in(token)
        await other.sign_in(token)
        await one.delete(SESSION)
        assert (await other.get(SESSION)).json()["role"] == "chat"


# ---------------------------------------------------------------- coming again


async def test_signing_in_again_ends_the_session_before() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        before = dict(guest.cookies)
        await guest.sign_in(api.accounts.make_operator_link())
        assert (await guest.get(SESSION)).json()["role"] == "operator"
        guest.cookies = before
        assert (await guest.get(SESSION)).json()["role"] is None


async def test_an_operator_who_tries_an_invitation_stays_an_operator() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        reply = await operator.sign_in(api.invitation())
        assert reply.json()["role"] == "operator"
        assert "set-cookie" not in reply.headers
        assert (await operator.get(SESSION)).json()["role"] == "operator"


async def test_a_link_that_is_no_good_leaves_the_session_as_it_is() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        assert (await guest.sign_in("in-unknown")).status == 403
        assert (await guest.get(SESSION)).json()["role"] == "chat"


# ---------------------------------------------------------------- what is refused


@on_virtual_time
async def test_each_link_that_is_no_good_is_told_why() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        accounts = api.accounts

        def invite(**terms: Any) -> str:
            given = {"allows_chat": True, "allows_nodes": False, "max_uses": None, "expires_in_s": None} | terms
            return str(accounts.invite("a", **given)[1])

        brief, once, nodes = invite(expires_in_s=60.0), invite(max_uses=1), invite(allows_chat=False, allows_nodes=True)
        view, revoked = accounts.invite("b", allows_chat=True, allows_nodes=True, max_uses=None, expires_in_s=None)
        accounts.revoke_invitation(view.invitation_id)
        link = accounts.make_operator_link()
        assert (await api.browser().sign_in(once)).status == 200
        await api.services.env.clock.sleep(86_401)
        reasons = {
            brief: "invitation_expired",
            once: "invitation_used_up",
            nodes: "invitation_not_for_chat",
            revoked: "invitation_revoked",
            link: "link_expired",
            "in-unknown": "invitation_unknown",
            "op-unknown": "link_unknown",
            "\u0000' or 1=1 --": "invitation_unknown",
        }
        told = {token: (await api.browser().sign_in(token)).error[1] for token in reasons}
        assert told == reasons


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{}", "missing_field", "token"),
        (b'{"token": null}', "invalid_value", "token"),
        (b'{"token": 5}', "invalid_value", "token"),
        (b'{"token": ["a"]}', "invalid_value", "token"),
        (b'{"token": "\\ud800"}', "invalid_value", "token"),
        (b'{"token": ""}', "invalid_value", "token"),
        (b'{"token": "' + b"x" * 257 + b'"}', "invalid_value", "token"),
        (b'{"token": "a", "role": "operator"}', "unknown_field", "role"),
        (b'{"token": "a", "token": "b"}', "duplicate_key", "token"),
    ],
)
async def test_a_bad_body_is_refused_and_counts_as_no_attempt(body: bytes, code: str, param: str | None) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        for _ in range(NUM_ATTEMPTS + 2):
            assert (await api.client.request("POST", SESSION, body, JSON)).error == (400, code, param)
        assert (await api.browser().sign_in(api.invitation())).status == 200


async def test_a_huge_body_is_refused() -> None:
    async with running_api() as api:
        reply = await api.client.request("POST", SESSION, b'{"token": "' + b"x" * 20_000, JSON)
        assert reply.error == (413, "body_too_large", None)


@pytest.mark.parametrize("headers", [{"origin": "https://evil.test"}, {"sec-fetch-site": "cross-site"}])
async def test_another_page_signs_nobody_in_or_out(headers: dict[str, str]) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        refused = await api.client.post(SESSION, {"token": api.invitation()}, headers)
        assert refused.error == (403, "cross_site", None)
        assert "set-cookie" not in refused.headers
        assert (await api.client.request("DELETE", SESSION, b"{}", JSON | headers)).status == 403


@on_virtual_time
async def test_the_eleventh_bad_link_within_a_minute_has_to_wait_and_a_good_one_too() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        guest = api.browser()
        for number in range(NUM_ATTEMPTS):
            assert (await guest.sign_in(f"in-guess-{number}")).status == 403
        token = api.invitation()
        reply = await guest.sign_in(token)
        assert reply.error == (429, "too_many_attempts", None)
        assert reply.headers["retry-after"] == "6"
        assert "6 s" in reply.json()["error"]["message"]
        assert (await api.browser("192.0.2.7").sign_in(token)).status == 200
        await api.services.env.clock.sleep(6)
        assert (await guest.sign_in(token)).status == 200


@on_virtual_time
async def test_good_links_are_not_counted() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        token = api.invitation()
        for _ in range(NUM_ATTEMPTS * 2):
            assert (await api.browser().sign_in(token)).status == 200


def test_two_operators_are_told_apart_by_their_sessions() -> None:
    assert name_of(Caller(Role.OPERATOR, session_id="0123456789abcdef", label="operator")) == "operator 01234567"
    assert name_of(Caller(Role.OPERATOR, session_id="0123456789abcdef")) == "operator 01234567"
