"""The operator's commands, on the database that a running pool reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator import administration
from coordinator.accounts import AccountError, Accounts, Role
from coordinator.administration import Invitation
from coordinator.config import DATABASE_NAME, ConfigError, Site
from coordinator.site_file import write_site
from coordinator.store import Store
from protocol.join_link import parse_join_link
from shell.clock import SystemClock
from shell.randomness import SystemRandom

OPEN = Site("https://10.0.0.1:8443", "0a" * 32, True, frozenset(), True, "Lab")
CLOSED = Site("https://10.0.0.1:8443", "0a" * 32, True, frozenset(), False, "Lab")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path / DATABASE_NAME)) as opened:
        yield opened


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store, SystemRandom(), SystemClock().wall)


def first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match[1]


# ---------------------------------------------------------------- opening


def test_commands_share_the_running_pools_database(tmp_path: Path, accounts: Accounts) -> None:
    write_site(tmp_path, CLOSED)
    with administration.opened(tmp_path) as (theirs, site):
        assert site == CLOSED
        text = administration.make_key(theirs, "laptop", None)
    assert accounts.caller_of_key(text.splitlines()[1]).role is Role.CHAT


def test_where_no_pool_has_run_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No pool has run"), administration.opened(tmp_path):
        pass
    write_site(tmp_path, CLOSED)
    with pytest.raises(ConfigError, match=r"pool\.sqlite3 is missing"), administration.opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["site.json"]


# ---------------------------------------------------------------- at the start of the pool


def test_a_start_gives_an_operator_link_until_an_operator_is_signed_in(accounts: Accounts, store: Store) -> None:
    token = administration.start_tokens(accounts, OPEN, with_operator_link=False).operator
    assert accounts.sign_in(token)[1] is Role.OPERATOR
    assert administration.start_tokens(accounts, OPEN, with_operator_link=False).operator == ""
    assert administration.start_tokens(accounts, OPEN, with_operator_link=True).operator != ""


def test_a_chat_session_is_no_operators(accounts: Accounts, store: Store) -> None:
    invite = administration.start_tokens(accounts, CLOSED, with_operator_link=False).invite
    assert accounts.sign_in(invite)[1] is Role.CHAT
    assert administration.start_tokens(accounts, CLOSED, with_operator_link=False).operator != ""


def test_only_the_first_start_of_a_closed_pool_gives_an_invitation(accounts: Accounts, store: Store) -> None:
    assert administration.start_tokens(accounts, OPEN, with_operator_link=False).invite == ""
    invite = administration.start_tokens(accounts, CLOSED, with_operator_link=False).invite
    accounts.admit_node("a" * 32, "b" * 64, "ada", invite, is_open=False)
    assert administration.start_tokens(accounts, CLOSED, with_operator_link=False).invite == ""


# ---------------------------------------------------------------- commands


def test_an_operator_link_signs_in_once(accounts: Accounts) -> None:
    text = administration.operator_link(accounts, CLOSED)
    token = first(r"https://10\.0\.0\.1:8443/operator#token=(\S+)$", text)
    assert accounts.sign_in(token)[1] is Role.OPERATOR
    with pytest.raises(AccountError):
        accounts.sign_in(token)


def test_an_invitation_is_shown_in_both_forms(accounts: Accounts) -> None:
    text = administration.invite(accounts, CLOSED, Invitation("friends", max_uses=2))
    join, browser = first(r"^Join link: (\S+)$", text), first(r"^Chat page: (\S+)$", text)
    assert parse_join_link(join).pin == CLOSED.pin
    assert parse_join_link(join).invite == parse_join_link(browser).invite
    assert f"decentllm node run --join '{join}'" in text
    accounts.admit_node("a" * 32, "b" * 64, "ada", parse_join_link(join).invite, is_open=False)
    assert accounts.sign_in(parse_join_link(browser).invite)[1] is Role.CHAT


@pytest.mark.parametrize(
    ("wanted", "shown", "hidden"),
    [
        (Invitation(allows_nodes=False), "Chat page: ", "Join link: "),
        (Invitation(allows_chat=False), "Join link: ", "Chat page: "),
    ],
)
def test_an_invitation_shows_only_the_link_that_it_allows(
    accounts: Accounts, wanted: Invitation, shown: str, hidden: str
) -> None:
    text = administration.invite(accounts, CLOSED, wanted)
    assert shown in text
    assert hidden not in text


def test_an_invitation_to_nothing_is_refused(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="must allow"):
        administration.invite(accounts, CLOSED, Invitation(allows_chat=False, allows_nodes=False))


def test_lists_show_what_there_is_and_no_secret(accounts: Accounts) -> None:
    secret = administration.make_key(accounts, "laptop", 1.0).splitlines()[1]
    link = first(r"^Join link: (\S+)$", administration.invite(accounts, CLOSED, Invitation("friends", max_uses=2)))
    key_list, invitation_list = administration.keys(accounts), administration.invitations(accounts)
    assert "laptop" in key_list
    assert re.search(r"friends +chat and contribute +0 of 2 +until \d{4}-\d\d-\d\d \d\d:\d\d UTC$", invitation_list)
    for text in (key_list, invitation_list):
        assert secret not in text
        assert parse_join_link(link).invite not in text


def test_empty_lists_say_so(accounts: Accounts) -> None:
    assert administration.keys(accounts) == "No key has been made yet."
    assert administration.invitations(accounts) == "No invitation has been made yet."
    assert administration.nodes(accounts) == "No machine has joined yet."


def test_what_is_revoked_lets_nobody_in(accounts: Accounts) -> None:
    text = administration.make_key(accounts, "laptop", None)
    key_id, secret = first(r"^Key (\S+),", text), text.splitlines()[1]
    assert administration.revoke(accounts, key_id) == f"Key {key_id} is revoked."
    with pytest.raises(AccountError):
        accounts.caller_of_key(secret)
    assert "revoked" in administration.keys(accounts)
    made = administration.invite(accounts, CLOSED, Invitation())
    invitation_id = first(r"^Invitation (\S+),", made)
    assert administration.revoke(accounts, invitation_id) == f"Invitation {invitation_id} is revoked."
    with pytest.raises(AccountError, match="revoked"):
        accounts.sign_in(parse_join_link(first(r"^Chat page: (\S+)$", made)).invite)


def test_an_unknown_id_is_refused(accounts: Accounts) -> None:
    with pytest.raises(AccountError) as caught:
        administration.revoke(accounts, "nothing")
    assert caught.value.code == "not_found"


def test_an_invitation_that_is_over_is_listed_as_such(store: Store) -> None:
    long_ago = Accounts(store, SystemRandom(), lambda: SystemClock().wall() - 10 * administration.DAY_S)
    administration.invite(long_ago, CLOSED, Invitation())
    now = Accounts(store, SystemRandom(), SystemClock().wall)
    assert administration.invitations(now).endswith("expired")


def test_machines_are_listed_and_cannot_move_the_cursor(accounts: Accounts) -> None:
    accounts.admit_node("a" * 32, "b" * 64, "ada\x9b2J", None, is_open=True)
    accounts.admit_node("c" * 32, "d" * 64, "bob", None, is_open=True)
    accounts.block_node("c" * 32)
    text = administration.nodes(accounts)
    assert re.search(rf"^{'a' * 32} +ada\?2J ", text, re.MULTILINE)
    assert re.search(rf"^{'c' * 32} +bob .*removed$", text, re.MULTILINE)
    assert "TROUBLES" not in text
    found = administration.nodes(accounts, {"a" * 32: "hangs 2, cut 1"})
    assert re.search(rf"^{'a' * 32} .* hangs 2, cut 1$", found, re.MULTILINE)


def test_what_was_done_is_in_the_audit_trail_without_secrets(accounts: Accounts) -> None:
    secret = administration.make_key(accounts, "laptop", None).splitlines()[1]
    administration.operator_link(accounts, CLOSED)
    administration.invite(accounts, CLOSED, Invitation())
    trail = accounts.audit_trail()
    assert [entry.who for entry in trail] == ["command line"] * 3
    assert trail[0].what.startswith("made invitation ")
    assert all(secret not in entry.what for entry in trail)
