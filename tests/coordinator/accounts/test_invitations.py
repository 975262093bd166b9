"""Invitations: made, listed, used, revoked."""

from __future__ import annotations

import pytest

from coordinator.accounts import Accounts, InvitationView
from coordinator.accounts import invitations as module
from tests.coordinator.accounts.wall import START_S, Refused, Wall, for_nodes, invitation, to_chat

KEY = "ab" * 32


def test_an_invitation_is_listed_as_it_was_made(accounts: Accounts) -> None:
    view, token = accounts.invite(" lab ", allows_chat=True, allows_nodes=False, max_uses=3, expires_in_s=60)
    assert view == InvitationView(view.invitation_id, "lab", True, False, 3, 0, START_S, START_S + 60, False)
    assert accounts.invitations() == [view]
    assert token.startswith("in-")
    assert len(token) >= 32
    assert token not in repr(view)


def test_the_newest_is_listed_first(accounts: Accounts, wall: Wall) -> None:
    first, _ = to_chat(accounts)
    wall.now_s += 1
    second, _ = to_chat(accounts)
    assert [view.invitation_id for view in accounts.invitations()] == [second, first]


def test_an_invitation_without_limits_has_none(accounts: Accounts, wall: Wall) -> None:
    invitation_id, token = to_chat(accounts)
    wall.now_s += 9 * 365 * 86_400
    for _ in range(3):
        accounts.sign_in(token)
    view = invitation(accounts, invitation_id)
    assert (view.max_uses, view.expires_s, view.num_uses) == (None, None, 3)


def test_a_use_is_a_chat_sign_in_or_an_enrolled_node(accounts: Accounts) -> None:
    view, token = accounts.invite("all", allows_chat=True, allows_nodes=True, max_uses=2, expires_in_s=None)
    accounts.sign_in(token)
    accounts.admit_node("n1", KEY, "one", token, is_open=False)
    assert invitation(accounts, view.invitation_id).num_uses == 2
    with Refused("invitation_used_up"):
        accounts.sign_in(token)
    with Refused("invitation_used_up"):
        accounts.admit_node("n2", KEY, "two", token, is_open=False)


def test_it_ends_at_its_time(accounts: Accounts, wall: Wall) -> None:
    _, token = to_chat(accounts, expires_in_s=60)
    wall.now_s += 59.9
    accounts.sign_in(token)
    wall.now_s += 0.1
    with Refused("invitation_expired"):
        accounts.sign_in(token)


def test_a_refused_use_is_not_counted(accounts: Accounts, wall: Wall) -> None:
    invitation_id, token = to_chat(accounts, max_uses=1)
    accounts.sign_in(token)
    for _ in range(3):
        with Refused("invitation_used_up"):
            accounts.sign_in(token)
    assert invitation(accounts, invitation_id).num_uses == 1


def test_it_is_good_only_for_what_it_allows(accounts: Accounts) -> None:
    _, chat = to_chat(accounts)
    _, nodes = for_nodes(accounts)
    with Refused("invitation_not_for_nodes"):
        accounts.admit_node("n1", KEY, "one", chat, is_open=False)
    with Refused("invitation_not_for_chat"):
        accounts.sign_in(nodes)
    assert [view.num_uses for view in accounts.invitations()] == [0, 0]


def test_a_revoked_one_lets_nobody_in(accounts: Accounts) -> None:
    invitation_id, token = to_chat(accounts)
    accounts.revoke_invitation(invitation_id)
    assert invitation(accounts, invitation_id).is_revoked
    with Refused("invitation_revoked"):
        accounts.sign_in(token)


def test_revoking_again_changes_nothing(accounts: Accounts) -> None:
    invitation_id, _ = to_chat(accounts)
    accounts.revoke_invitation(invitation_id)
    accounts.revoke_invitation(invitation_id)
    assert invitation(accounts, invitation_id).is_revoked


@pytest.mark.parametrize("invitation_id", ["", "nothing", "' OR 1=1 --", "%", "\x00", "\ud800"])
def test_revoking_what_is_not_there_is_said(accounts: Accounts, invitation_id: str) -> None:
    kept, _ = to_chat(accounts)
    with Refused("not_found"):
        accounts.revoke_invitation(invitation_id)
    assert not invitation(accounts, kept).is_revoked


@pytest.mark.parametrize("token", ["", "in-", "in-" + "0" * 64, "x" * 10_000, "' OR 1=1 --", "\x00", "\ud800"])
def test_an_unknown_token_is_said(accounts: Accounts, token: str) -> None:
    to_chat(accounts)
    with Refused("invitation_unknown"):
        accounts.sign_in(token)


def test_the_stored_hash_is_no_token(accounts: Accounts) -> None:
    """Who steals the database cannot sign in with what is in it."""
    _, token = to_chat(accounts)
    with Refused("invitation_unknown"):
        accounts.sign_in(module.tokens.hash_of(token))


def test_an_invitation_to_nothing_is_refused(accounts: Accounts) -> None:
    with Refused("allows_nothing"):
        accounts.invite("x", allows_chat=False, allows_nodes=False, max_uses=None, expires_in_s=None)


@pytest.mark.parametrize(
    ("label", "max_uses", "expires_in_s", "code"),
    [("", None, None, "bad_label"), ("x", 0, None, "bad_max_uses"), ("x", None, -1.0, "bad_expiry")],
)
def test_terms_that_make_no_sense_are_refused(
    accounts: Accounts, label: str, max_uses: int | None, expires_in_s: float | None, code: str
) -> None:
    with Refused(code):
        accounts.invite(label, allows_chat=True, allows_nodes=True, max_uses=max_uses, expires_in_s=expires_in_s)
    assert accounts.invitations() == []


def test_there_are_only_so_many_live_ones(accounts: Accounts, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_LIVE == 1_000
    monkeypatch.setattr(module, "MAX_LIVE", 3)
    revoked, _ = to_chat(accounts)
    to_chat(accounts, expires_in_s=10)
    _, once = to_chat(accounts, max_uses=1)
    for make_room in (
        lambda: accounts.revoke_invitation(revoked),
        lambda: setattr(wall, "now_s", wall.now_s + 10),
        lambda: accounts.sign_in(once),
    ):
        with Refused("too_many"):
            to_chat(accounts)
        make_room()
        to_chat(accounts)
