"""Signing in and out; how long a session lasts."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from coordinator.accounts import Accounts, Caller, Role, Store
from coordinator.accounts import sign_in as module
from coordinator.store.tables import sessions
from tests.coordinator.accounts.wall import DAY_S, Refused, Wall, to_chat

HOUR_S = 3600.0
NOBODY = Caller(role=None)


def last_used(store: Store) -> list[float]:
    with store.read() as connection:
        return list(connection.scalars(select(sessions.c.last_used_s)))


# ---------------------------------------------------------------- operators


def test_an_operators_link_signs_in_once(accounts: Accounts) -> None:
    token = accounts.make_operator_link()
    cookie, role = accounts.sign_in(token)
    assert role is Role.OPERATOR
    assert accounts.caller_of_cookie(cookie).role is Role.OPERATOR
    with Refused("link_unknown"):
        accounts.sign_in(token)


def test_links_are_independent(accounts: Accounts) -> None:
    first, second = accounts.make_operator_link(), accounts.make_operator_link()
    accounts.sign_in(first)
    assert accounts.sign_in(second)[1] is Role.OPERATOR


def test_a_link_is_good_for_a_day(accounts: Accounts, wall: Wall) -> None:
    used, late = accounts.make_operator_link(), accounts.make_operator_link()
    wall.now_s += DAY_S - 0.1
    accounts.sign_in(used)
    wall.now_s += 0.1
    with Refused("link_expired"):
        accounts.sign_in(late)


@pytest.mark.parametrize("token", ["op-", "op-" + "0" * 64, "op-\ud800"])
def test_a_link_that_was_never_made_is_unknown(accounts: Accounts, token: str) -> None:
    accounts.make_operator_link()
    with Refused("link_unknown"):
        accounts.sign_in(token)


def test_an_operators_session_ends_after_twelve_hours(accounts: Accounts, wall: Wall) -> None:
    cookie, _ = accounts.sign_in(accounts.make_operator_link())
    for _ in range(11):
        wall.now_s += HOUR_S
        assert accounts.caller_of_cookie(cookie).role is Role.OPERATOR
    wall.now_s += HOUR_S
    assert accounts.caller_of_cookie(cookie) == NOBODY


def test_whether_an_operator_is_signed_in_is_known(accounts: Accounts, wall: Wall) -> None:
    accounts.sign_in(to_chat(accounts)[1])
    link = accounts.make_operator_link()
    assert not accounts.has_operator()
    accounts.sign_out(accounts.sign_in(link)[0])
    assert not accounts.has_operator()
    accounts.sign_in(accounts.make_operator_link())
    assert accounts.has_operator()
    wall.now_s += 12 * HOUR_S
    assert not accounts.has_operator()


# ---------------------------------------------------------------- the chat


def test_an_invitation_signs_in_to_the_chat(accounts: Accounts) -> None:
    _, token = to_chat(accounts)
    cookie, role = accounts.sign_in(token)
    caller = accounts.caller_of_cookie(cookie)
    assert role is caller.role is Role.CHAT
    assert (caller.label, caller.key_id) == ("friends", "")
    assert caller.session_id
    assert cookie not in repr(caller)


def test_every_sign_in_is_a_session_of_its_own(accounts: Accounts) -> None:
    _, token = to_chat(accounts)
    first, second = accounts.sign_in(token)[0], accounts.sign_in(token)[0]
    assert accounts.caller_of_cookie(first).session_id != accounts.caller_of_cookie(second).session_id
    accounts.sign_out(first)
    assert accounts.caller_of_cookie(first) == NOBODY
    assert accounts.caller_of_cookie(second).role is Role.CHAT


def test_a_chat_session_ends_after_thirty_days(accounts: Accounts, wall: Wall) -> None:
    cookie, _ = accounts.sign_in(to_chat(accounts)[1])
    wall.now_s += 30 * DAY_S - 0.1
    assert accounts.caller_of_cookie(cookie).role is Role.CHAT
    wall.now_s += 0.1
    assert accounts.caller_of_cookie(cookie) == NOBODY


def test_a_session_outlives_its_invitations_last_use_and_expiry(accounts: Accounts, wall: Wall) -> None:
    """The invitation says who may come in, and until when; not how long they stay."""
    cookie, _ = accounts.sign_in(to_chat(accounts, max_uses=1, expires_in_s=60)[1])
    wall.now_s += DAY_S
    assert accounts.caller_of_cookie(cookie).role is Role.CHAT


def test_revoking_an_invitation_ends_its_sessions_only(accounts: Accounts) -> None:
    revoked_id, revoked = to_chat(accounts)
    _, kept = to_chat(accounts)
    ended = [accounts.sign_in(revoked)[0] for _ in range(2)]
    stay = [accounts.sign_in(kept)[0], accounts.sign_in(accounts.make_operator_link())[0]]
    accounts.revoke_invitation(revoked_id)
    assert [accounts.caller_of_cookie(cookie) for cookie in ended] == [NOBODY, NOBODY]
    assert [accounts.caller_of_cookie(cookie).role for cookie in stay] == [Role.CHAT, Role.OPERATOR]


def test_an_invitation_without_limit_does_not_fill_the_disk(
    accounts: Accounts, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.MAX_SESSIONS_PER_INVITATION == 1_000
    monkeypatch.setattr(module, "MAX_SESSIONS_PER_INVITATION", 3)
    other, _ = accounts.sign_in(to_chat(accounts)[1])
    _, token = to_chat(accounts)
    cookies = []
    for _ in range(3):
        wall.now_s += 60
        cookies.append(accounts.sign_in(token)[0])
    wall.now_s += 60
    accounts.caller_of_cookie(cookies[0])
    cookies.append(accounts.sign_in(token)[0])
    roles = [accounts.caller_of_cookie(cookie).role for cookie in cookies]
    assert roles == [Role.CHAT, None, Role.CHAT, Role.CHAT], "the one longest unused ended"
    assert accounts.caller_of_cookie(other).role is Role.CHAT


# ---------------------------------------------------------------- cookies


@pytest.mark.parametrize("cookie", ["", "0" * 64, "x" * 100_000, "' OR 1=1 --", "\x00", "\ud800"])
def test_an_unknown_cookie_is_nobody(accounts: Accounts, cookie: str) -> None:
    accounts.sign_in(to_chat(accounts)[1])
    assert accounts.caller_of_cookie(cookie) == NOBODY
    accounts.sign_out(cookie)


def test_tokens_are_no_cookies(accounts: Accounts) -> None:
    _, token = to_chat(accounts)
    link = accounts.make_operator_link()
    cookie, _ = accounts.sign_in(token)
    assert accounts.caller_of_cookie(token) == accounts.caller_of_cookie(link) == NOBODY
    with Refused("invitation_unknown"):
        accounts.sign_in(cookie)


def test_use_is_noted_once_a_minute(accounts: Accounts, store: Store, wall: Wall) -> None:
    start_s = wall.now_s
    cookie, _ = accounts.sign_in(to_chat(accounts)[1])
    wall.now_s += 59
    accounts.caller_of_cookie(cookie)
    assert last_used(store) == [start_s]
    wall.now_s += 1
    accounts.caller_of_cookie(cookie)
    assert last_used(store) == [start_s + 60]


def test_a_look_within_the_minute_writes_nothing(accounts: Accounts, store: Store) -> None:
    cookie, _ = accounts.sign_in(to_chat(accounts)[1])
    with store.write():  # the one writer there may be
        assert accounts.caller_of_cookie(cookie).role is Role.CHAT


def test_a_command_is_an_operator_only_as_long_as_it_asks(accounts: Accounts, wall: Wall) -> None:
    with accounts.command_session() as cookie:
        assert accounts.caller_of_cookie(cookie).role is Role.OPERATOR
        assert not accounts.has_operator(), "no person is signed in"
        wall.now_s += module.COMMAND_SESSION_S
        assert accounts.caller_of_cookie(cookie) == NOBODY, "one that was killed leaves nothing"
    with accounts.command_session() as cookie:
        pass
    assert accounts.caller_of_cookie(cookie) == NOBODY
