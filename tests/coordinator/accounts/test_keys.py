"""API keys."""

from __future__ import annotations

import hmac
import random
import re

import pytest

from coordinator.accounts import Accounts, Caller, KeyView, Role, Store
from coordinator.accounts import keys as module
from tests.coordinator.accounts.wall import START_S, Refused, Wall
from tests.fakes.virtual_env import SeededRandom


def test_a_key_is_listed_as_it_was_made(accounts: Accounts) -> None:
    view, key = accounts.make_key(" notebook ", 60)
    assert view == KeyView(view.key_id, "notebook", START_S, None, START_S + 60, False)
    assert accounts.keys() == [view]
    assert re.fullmatch(r"sk-[0-9a-f]{8}-[A-Za-z0-9_-]{43,}", key)
    assert key.startswith(f"sk-{view.key_id}-")
    assert key.split("-")[2] not in repr(view)


def test_a_key_opens_the_chat(accounts: Accounts) -> None:
    view, key = accounts.make_key("notebook", None)
    assert accounts.caller_of_key(key) == Caller(Role.CHAT, key_id=view.key_id, label="notebook")


def test_a_wrong_secret_an_unknown_id_and_nonsense_are_all_the_same(accounts: Accounts) -> None:
    view, key = accounts.make_key("notebook", None)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    for text in (wrong, f"sk-00000000-{'a' * 64}", "", "sk-", f"sk-{view.key_id}-", key + "0", key.upper(), "\ud800"):
        with Refused("bad_key"):
            accounts.caller_of_key(text)


def test_secrets_are_compared_in_constant_time(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = accounts.make_key("notebook", None)
    compared: list[int] = []

    def compare(one: str, other: str) -> bool:
        compared.append(len(one))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    accounts.caller_of_key(key)
    with Refused("bad_key"):
        accounts.caller_of_key(key[:-4] + "zzzz")
    assert compared == [64, 64]


def test_a_revoked_key_is_like_any_wrong_one(accounts: Accounts) -> None:
    view, key = accounts.make_key("notebook", None)
    _, other = accounts.make_key("server", None)
    accounts.revoke_key(view.key_id)
    accounts.revoke_key(view.key_id)
    with Refused("bad_key"):
        accounts.caller_of_key(key)
    assert accounts.caller_of_key(other).label == "server"
    views = accounts.keys()
    assert {view.label: view.is_revoked for view in views} == {"notebook": True, "server": False}


def test_a_key_ends_at_its_time_and_says_so_to_its_owner_only(accounts: Accounts, wall: Wall) -> None:
    view, key = accounts.make_key("notebook", 60)
    wall.now_s += 59.9
    accounts.caller_of_key(key)
    wall.now_s += 0.1
    with Refused("key_expired"):
        accounts.caller_of_key(key)
    with Refused("bad_key"):
        accounts.caller_of_key(f"sk-{view.key_id}-{'a' * 64}")


@pytest.mark.parametrize("key_id", ["", "nothing", "' OR 1=1 --", "\x00", "\ud800"])
def test_revoking_what_is_not_there_is_said(accounts: Accounts, key_id: str) -> None:
    accounts.make_key("notebook", None)
    with Refused("not_found"):
        accounts.revoke_key(key_id)
    (view,) = accounts.keys()
    assert not view.is_revoked


@pytest.mark.parametrize(("label", "expires_in_s", "code"), [("", None, "bad_label"), ("x", 0.0, "bad_expiry")])
def test_terms_that_make_no_sense_are_refused(
    accounts: Accounts, label: str, expires_in_s: float | None, code: str
) -> None:
    with Refused(code):
        accounts.make_key(label, expires_in_s)
    assert accounts.keys() == []


def test_use_is_noted_once_a_minute(accounts: Accounts, wall: Wall) -> None:
    _, key = accounts.make_key("notebook", None)
    noted = []
    for passed_s in (5, 59, 1):
        wall.now_s += passed_s
        accounts.caller_of_key(key)
        noted.append((accounts.keys()[0].last_used_s or 0.0) - START_S)
    assert noted == [5, 5, 65]


def test_there_are_only_so_many_live_ones(accounts: Accounts, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_LIVE == 1_000
    monkeypatch.setattr(module, "MAX_LIVE", 2)
    view, _ = accounts.make_key("one", None)
    accounts.make_key("two", 10)
    with Refused("too_many"):
        accounts.make_key("three", None)
    accounts.revoke_key(view.key_id)
    accounts.make_key("three", None)
    with Refused("too_many"):
        accounts.make_key("four", None)
    wall.now_s += 10
    accounts.make_key("four", None)


def test_two_keys_never_share_an_id(store: Store, wall: Wall) -> None:
    drawn = iter(["aaaaaaaa", "0" * 64, "aaaaaaaa", "bbbbbbbb", "1" * 64])

    class Drawn(SeededRandom):
        def token_hex(self, num_bytes: int) -> str:
            digits = next(drawn)
            assert len(digits) == 2 * num_bytes
            return digits

    accounts = Accounts(store, Drawn(random.Random(0)), wall)
    assert accounts.make_key("one", None)[0].key_id == "aaaaaaaa"
    assert accounts.make_key("two", None)[0].key_id == "bbbbbbbb"
