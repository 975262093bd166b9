"""What is over is cleared away in passing, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Table, func, select

from coordinator.accounts import Accounts, Role, Store
from coordinator.accounts.sign_in import SESSION_S
from coordinator.accounts.sweep import KEPT_S
from coordinator.store.tables import operator_links, sessions
from tests.coordinator.accounts.wall import DAY_S, Refused, Wall, to_chat


def count(store: Store, table: Table) -> int:
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


@pytest.mark.parametrize(
    "pass_by",
    [
        lambda accounts: accounts.sign_in(to_chat(accounts)[1]),
        lambda accounts: accounts.make_operator_link(),
        lambda accounts: accounts.make_key("x", None),
        lambda accounts: to_chat(accounts),
    ],
)
def test_sessions_that_are_over_go_when_something_is_made(
    accounts: Accounts, store: Store, wall: Wall, pass_by: Callable[[Accounts], object]
) -> None:
    for _ in range(3):
        accounts.sign_in(accounts.make_operator_link())
    wall.now_s += DAY_S
    cookie, _ = accounts.sign_in(to_chat(accounts)[1])
    before = count(store, sessions)
    pass_by(accounts)
    assert before == 1
    assert count(store, sessions) in (1, 2)
    assert accounts.caller_of_cookie(cookie).role is Role.CHAT


def test_links_are_forgotten_a_month_after_their_end(accounts: Accounts, store: Store, wall: Wall) -> None:
    token = accounts.make_operator_link()
    wall.now_s += DAY_S + KEPT_S - 1
    to_chat(accounts)
    with Refused("link_expired"):
        accounts.sign_in(token)
    wall.now_s += 1
    to_chat(accounts)
    assert count(store, operator_links) == 0
    with Refused("link_unknown"):
        accounts.sign_in(token)


def test_invitations_and_keys_are_listed_for_a_month_after_their_end(accounts: Accounts, wall: Wall) -> None:
    revoked, _ = to_chat(accounts)
    accounts.revoke_invitation(revoked)
    view, _ = accounts.make_key("x", None)
    accounts.revoke_key(view.key_id)
    to_chat(accounts, expires_in_s=60)
    accounts.make_key("x", 60)
    wall.now_s += KEPT_S - 1
    kept, _ = to_chat(accounts)
    assert (len(accounts.invitations()), len(accounts.keys())) == (3, 2)
    wall.now_s += 61
    lasting, _ = accounts.make_key("y", None)
    assert [view.invitation_id for view in accounts.invitations()] == [kept]
    assert accounts.keys() == [lasting]


def test_no_session_is_cut_short_with_an_expired_invitation(accounts: Accounts, wall: Wall) -> None:
    assert max(SESSION_S.values()) <= KEPT_S
    _, token = to_chat(accounts, expires_in_s=60)
    wall.now_s += 59
    cookie, _ = accounts.sign_in(token)
    wall.now_s += SESSION_S[Role.CHAT] - 1
    accounts.make_operator_link()
    assert accounts.caller_of_cookie(cookie).role is Role.CHAT


def test_a_used_up_invitation_stays_so_that_it_can_be_revoked(accounts: Accounts, wall: Wall) -> None:
    invitation_id, token = to_chat(accounts, max_uses=1)
    accounts.sign_in(token)
    wall.now_s += 2 * KEPT_S
    accounts.make_operator_link()
    assert [view.invitation_id for view in accounts.invitations()] == [invitation_id]
