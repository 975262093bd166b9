"""The audit trail."""

from __future__ import annotations

import pytest

from coordinator.accounts import Accounts, AuditEntry
from tests.coordinator.accounts.wall import START_S, Wall


def test_entries_are_kept_newest_first(accounts: Accounts, wall: Wall) -> None:
    accounts.audit("operator", "made an invitation")
    wall.now_s += 1
    accounts.audit("operator", "revoked it")
    assert accounts.audit_trail() == [
        AuditEntry(2, START_S + 1, "operator", "revoked it"),
        AuditEntry(1, START_S, "operator", "made an invitation"),
    ]


@pytest.mark.parametrize(("limit", "shown"), [(-1, []), (0, []), (1, ["3"]), (2, ["3", "2"]), (10**9, ["3", "2", "1"])])
def test_a_limit_is_kept_whatever_it_is(accounts: Accounts, limit: int, shown: list[str]) -> None:
    for what in ("1", "2", "3"):
        accounts.audit("operator", what)
    assert [entry.what for entry in accounts.audit_trail(limit)] == shown


def test_an_entry_is_one_short_line(accounts: Accounts) -> None:
    accounts.audit("who\n" * 50, "removed\nnode \x1b[31m\u202e\ud800" + "x" * 1000)
    entry = accounts.audit_trail()[0]
    assert entry.who == "who?" * 16
    assert entry.what.startswith("removed?node ?[31m??x")
    assert len(entry.what) == 400


def test_order_does_not_depend_on_the_clock(accounts: Accounts, wall: Wall) -> None:
    accounts.audit("operator", "first")
    wall.now_s -= 3600
    accounts.audit("operator", "second")
    assert [entry.what for entry in accounts.audit_trail()] == ["second", "first"]
