"""Which nodes are let in."""

from __future__ import annotations

import pytest

from coordinator.accounts import Accounts, NodeRecord, Store
from coordinator.accounts import nodes as module
from tests.coordinator.accounts.wall import START_S, Refused, Wall, for_nodes, invitation

KEY = "ab" * 32
ONE, TWO = "1" * 32, "2" * 32


def test_an_open_pool_enrols_whoever_comes(accounts: Accounts) -> None:
    accounts.admit_node(ONE, KEY, "garage", None, is_open=True)
    assert accounts.nodes() == [NodeRecord(ONE, "garage", START_S, START_S, "", False)]


def test_an_open_pool_uses_no_invitation_up(accounts: Accounts) -> None:
    invitation_id, token = for_nodes(accounts)
    accounts.admit_node(ONE, KEY, "garage", token, is_open=True)
    accounts.admit_node(TWO, KEY, "attic", "nonsense", is_open=True)
    assert invitation(accounts, invitation_id).num_uses == 0


@pytest.mark.parametrize(
    ("invite", "code"), [(None, "invitation_needed"), ("", "invitation_needed"), ("nonsense", "invitation_unknown")]
)
def test_a_closed_pool_needs_an_invitation(accounts: Accounts, invite: str | None, code: str) -> None:
    with Refused(code):
        accounts.admit_node(ONE, KEY, "garage", invite, is_open=False)
    assert accounts.nodes() == []


def test_an_invitation_enrols_and_is_remembered(accounts: Accounts) -> None:
    invitation_id, token = for_nodes(accounts, max_uses=1)
    accounts.admit_node(ONE, KEY, "garage", token, is_open=False)
    assert [node.invitation_id for node in accounts.nodes()] == [invitation_id]
    with Refused("invitation_used_up"):
        accounts.admit_node(TWO, KEY, "attic", token, is_open=False)


def test_a_known_node_comes_back_whatever_its_invitation_says(accounts: Accounts, wall: Wall) -> None:
    invitation_id, token = for_nodes(accounts, max_uses=1)
    accounts.admit_node(ONE, KEY, "garage", token, is_open=False)
    accounts.revoke_invitation(invitation_id)
    for invite in (token, None, "nonsense"):
        wall.now_s += 100
        accounts.admit_node(ONE, KEY, "garage", invite, is_open=False)
    assert invitation(accounts, invitation_id).num_uses == 1


def test_who_came_while_the_pool_was_open_stays_in(accounts: Accounts, wall: Wall) -> None:
    accounts.admit_node(ONE, KEY, "garage", None, is_open=True)
    wall.now_s += 100
    accounts.admit_node(ONE, KEY, "garage", None, is_open=False)
    assert [node.last_seen_s for node in accounts.nodes()] == [START_S + 100]


def test_a_blocked_node_is_out_until_it_is_unblocked(accounts: Accounts) -> None:
    _, token = for_nodes(accounts)
    accounts.admit_node(ONE, KEY, "garage", token, is_open=False)
    accounts.block_node(ONE)
    assert accounts.nodes()[0].is_blocked
    for is_open in (True, False):
        with Refused("node_blocked"):
            accounts.admit_node(ONE, KEY, "garage", token, is_open=is_open)
    accounts.unblock_node(ONE)
    accounts.admit_node(ONE, KEY, "garage", None, is_open=False)


@pytest.mark.parametrize("node_id", ["", TWO, "' OR 1=1 --", "\x00", "\ud800"])
def test_blocking_what_is_not_there_is_said(accounts: Accounts, node_id: str) -> None:
    accounts.admit_node(ONE, KEY, "garage", None, is_open=True)
    with Refused("not_found"):
        accounts.block_node(node_id)
    with Refused("not_found"):
        accounts.unblock_node(node_id)
    assert not accounts.nodes()[0].is_blocked


def test_a_new_name_is_taken_at_once(accounts: Accounts) -> None:
    accounts.admit_node(ONE, KEY, "garage", None, is_open=True)
    accounts.admit_node(ONE, KEY, "attic", None, is_open=True)
    assert [node.name for node in accounts.nodes()] == ["attic"]


def test_a_node_that_was_just_there_comes_back_without_a_write(accounts: Accounts, store: Store, wall: Wall) -> None:
    accounts.admit_node(ONE, KEY, "garage", None, is_open=True)
    wall.now_s += 59
    with store.write():  # the one writer there may be
        accounts.admit_node(ONE, KEY, "garage", None, is_open=True)


def test_who_is_connected_was_seen_now(accounts: Accounts, wall: Wall) -> None:
    for node_id in (ONE, TWO):
        accounts.admit_node(node_id, KEY, "x", None, is_open=True)
    wall.now_s += 60
    accounts.note_seen({TWO, "unknown"})
    accounts.note_seen([])
    assert [(node.node_id, node.last_seen_s - START_S) for node in accounts.nodes()] == [(TWO, 60), (ONE, 0)]
    assert {node.first_seen_s for node in accounts.nodes()} == {START_S}


def test_thousands_are_noted_at_once(accounts: Accounts) -> None:
    accounts.admit_node(ONE, KEY, "x", None, is_open=True)
    accounts.note_seen([f"{number:032x}" for number in range(40_000)])
    assert len(accounts.nodes()) == 1


def test_strangers_cannot_fill_the_disk(accounts: Accounts, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 1)
    accounts.admit_node(ONE, KEY, "x", None, is_open=True)
    with Refused("too_many_nodes"):
        accounts.admit_node(TWO, KEY, "x", None, is_open=True)
    wall.now_s += 100
    accounts.admit_node(ONE, KEY, "x", None, is_open=True)


def test_an_enrolment_that_fails_uses_no_invitation_up(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    invitation_id, token = for_nodes(accounts)
    monkeypatch.setattr(module, "MAX_NODES", 0)
    with Refused("too_many_nodes"):
        accounts.admit_node(ONE, KEY, "x", token, is_open=False)
    assert invitation(accounts, invitation_id).num_uses == 0
