"""What others see of accounts is frozen and has no secret."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from coordinator.accounts import AuditEntry, Caller, InvitationView, KeyView, NodeRecord, Role


def test_nobody_is_a_caller_without_a_role() -> None:
    assert Caller(role=None) == Caller(None, key_id="", session_id="", label="")


def test_a_caller_cannot_be_promoted() -> None:
    with pytest.raises(FrozenInstanceError):
        Caller(Role.CHAT).role = Role.OPERATOR  # type: ignore[misc]


@pytest.mark.parametrize("view", [Caller, InvitationView, KeyView, NodeRecord, AuditEntry])
def test_no_field_is_for_a_secret_or_its_hash(view: type) -> None:
    names = {field.name for field in fields(view)}
    assert not {name for name in names if any(word in name for word in ("token", "secret", "hash", "cookie"))}


def test_roles_are_written_as_the_api_writes_them() -> None:
    assert [str(role) for role in Role] == ["operator", "chat"]
