"""Accounts as a whole: nothing is lost by reopening, no secret is anywhere, threads that race."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from coordinator.accounts import AccountError, Accounts, Role, Store, StoreError
from shell.randomness import SystemRandom
from tests.coordinator.accounts.wall import START_S, Wall, for_nodes, invitation, to_chat
from tests.fakes.virtual_env import SeededRandom

KEY = "ab" * 32
NUM_THREADS = 8


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What each call returns, or the code it is refused with; all begin together."""
    begin = Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        begin.wait()
        try:
            return call()
        except AccountError as error:
            return error.code

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# ---------------------------------------------------------------- kept


def test_everything_is_there_after_reopening(path: Path, wall: Wall) -> None:
    store = Store.open(path)
    accounts = Accounts(store, SeededRandom(random.Random(1)), wall)
    invitation_id, token = to_chat(accounts, max_uses=2)
    chat, operator = accounts.sign_in(token)[0], accounts.sign_in(accounts.make_operator_link())[0]
    link = accounts.make_operator_link()
    _, key = accounts.make_key("notebook", None)
    accounts.admit_node("n1", KEY, "garage", None, is_open=True)
    accounts.block_node("n1")
    accounts.audit("operator", "blocked n1")
    before = (accounts.invitations(), accounts.keys(), accounts.nodes(), accounts.audit_trail())
    store.close()

    store = Store.open(path)
    accounts = Accounts(store, SeededRandom(random.Random(2)), wall)
    assert (accounts.invitations(), accounts.keys(), accounts.nodes(), accounts.audit_trail()) == before
    assert accounts.caller_of_cookie(chat).role is Role.CHAT
    assert accounts.caller_of_cookie(operator).role is Role.OPERATOR
    assert accounts.caller_of_key(key).label == "notebook"
    assert accounts.sign_in(link)[1] is Role.OPERATOR
    accounts.sign_in(token)
    assert invitation(accounts, invitation_id).num_uses == 2
    with pytest.raises(AccountError):
        accounts.admit_node("n1", KEY, "garage", None, is_open=True)
    store.close()


def test_a_database_that_breaks_while_it_is_used_is_said(accounts: Accounts, store: Store) -> None:
    with store.write() as connection:
        connection.exec_driver_sql("DROP TABLE api_keys")
    with pytest.raises(StoreError) as caught:
        accounts.keys()
    assert caught.value.code == "store_failed"


# ---------------------------------------------------------------- secret


def secrets_of_a_day(accounts: Accounts, wall: Wall) -> list[str]:
    """Every secret that is given out or tried while much happens."""
    invitation_id, chat = to_chat(accounts)
    _, nodes = for_nodes(accounts)
    link = accounts.make_operator_link()
    unused = accounts.make_operator_link()
    view, key = accounts.make_key("notebook", 60)
    cookies = [accounts.sign_in(chat)[0], accounts.sign_in(link)[0]]
    accounts.admit_node("n1", KEY, "garage", nodes, is_open=False)
    accounts.caller_of_key(key)
    wall.now_s += 61
    accounts.caller_of_cookie(cookies[0])
    wrong = [f"in-{'5a' * 32}", f"op-{'5b' * 32}", f"sk-{view.key_id}-{'5c' * 32}"]
    for refused in (
        lambda: accounts.sign_in(wrong[0]),
        lambda: accounts.sign_in(wrong[1]),
        lambda: accounts.sign_in(nodes),
        lambda: accounts.sign_in(link),
        lambda: accounts.caller_of_key(wrong[2]),
        lambda: accounts.caller_of_key(key),
        lambda: accounts.admit_node("n2", KEY, "attic", wrong[0], is_open=False),
    ):
        with pytest.raises(AccountError) as caught:
            refused()
        assert not [secret for secret in (*wrong, chat, nodes, link, key) if secret[-32:] in repr(caught.value)]
    accounts.revoke_invitation(invitation_id)
    return [chat, nodes, link, unused, key, *cookies, *wrong]


def test_no_secret_is_in_the_database_the_log_or_what_is_shown(
    accounts: Accounts, wall: Wall, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [secret.split("-")[-1] for secret in secrets_of_a_day(accounts, wall)]
    shown = repr((accounts, accounts.invitations(), accounts.keys(), accounts.nodes(), accounts.audit_trail()))
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in secrets:
        assert secret not in shown
        assert secret not in caplog.text
        assert secret.encode() not in stored
        assert bytes.fromhex(secret) not in stored


def test_what_is_no_secret_is_found_in_the_same_bytes(accounts: Accounts, path: Path) -> None:
    """Or the search above would prove nothing."""
    accounts.make_key("a label to be found", None)
    assert b"a label to be found" in b"".join(file.read_bytes() for file in path.parent.iterdir())


# ---------------------------------------------------------------- at once


def test_of_two_sign_ins_that_race_for_the_last_use_one_wins(accounts: Accounts) -> None:
    for _ in range(5):
        invitation_id, token = to_chat(accounts, max_uses=1)
        results = at_once(*[lambda token=token: accounts.sign_in(token)[1] for _ in range(NUM_THREADS)])
        assert sorted(map(str, results)) == ["chat"] + ["invitation_used_up"] * (NUM_THREADS - 1)
        assert invitation(accounts, invitation_id).num_uses == 1


def test_a_race_between_two_processes_has_one_winner_too(accounts: Accounts, path: Path, wall: Wall) -> None:
    other_store = Store.open(path)
    other = Accounts(other_store, SystemRandom(), wall)
    _, token = to_chat(accounts, max_uses=1)
    results = at_once(*[lambda a=a: a.sign_in(token)[1] for a in (accounts, other)])
    assert sorted(map(str, results)) == ["chat", "invitation_used_up"]
    other_store.close()


def test_a_link_that_many_use_at_once_signs_one_in(accounts: Accounts) -> None:
    token = accounts.make_operator_link()
    results = at_once(*[lambda: accounts.sign_in(token)[1]] * NUM_THREADS)
    assert sorted(map(str, results)) == ["link_unknown"] * (NUM_THREADS - 1) + ["operator"]


def test_a_sign_in_that_races_with_the_revocation_leaves_no_session(accounts: Accounts) -> None:
    for _ in range(5):
        invitation_id, token = to_chat(accounts)
        results = at_once(
            lambda token=token: accounts.sign_in(token)[0],
            lambda i=invitation_id: accounts.revoke_invitation(i),
            lambda token=token: accounts.sign_in(token)[0],
        )
        cookies = [result for result in results if isinstance(result, str)]
        assert len(cookies) == 2
        assert [accounts.caller_of_cookie(cookie).role for cookie in cookies] == [None, None]


def test_a_node_that_connects_twice_at_once_is_enrolled_once(accounts: Accounts) -> None:
    invitation_id, token = for_nodes(accounts)
    at_once(*[lambda: accounts.admit_node("n1", KEY, "garage", token, is_open=False)] * NUM_THREADS)
    assert [node.node_id for node in accounts.nodes()] == ["n1"]
    assert invitation(accounts, invitation_id).num_uses == 1


def test_looking_up_goes_on_beside_a_writer(accounts: Accounts, store: Store) -> None:
    cookie, _ = accounts.sign_in(to_chat(accounts)[1])
    with store.write():
        results = at_once(*[lambda: accounts.caller_of_cookie(cookie).role] * NUM_THREADS)
    assert results == [Role.CHAT] * NUM_THREADS


def test_times_are_the_clocks(accounts: Accounts) -> None:
    accounts.audit("operator", "looked")
    assert accounts.audit_trail()[0].at_s == START_S
