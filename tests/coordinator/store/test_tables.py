"""What the tables themselves forbid, whoever writes to them."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, delete, insert, update

from coordinator.store import Store, StoreError
from coordinator.store.tables import audit_entries, invitations, metadata, sessions

INVITATION = {
    "invitation_id": "a", "token_hash": "h", "label": "x", "allows_chat": True, "allows_nodes": True,
    "max_uses": 2, "num_uses": 2, "created_s": 0.0,
}  # fmt: skip
SESSION = {
    "session_id": "s", "token_hash": "t", "role": "chat", "label": "x", "invitation_id": "a",
    "created_s": 0.0, "last_used_s": 0.0, "expires_s": 9.0,
}  # fmt: skip


def test_an_invitation_is_not_used_more_often_than_it_allows(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(invitations).values(INVITATION))
    with pytest.raises(StoreError), store.write() as connection:
        connection.execute(update(invitations).values(num_uses=3))


@pytest.mark.parametrize("wrong", [{"invitation_id": None}, {"role": "operator"}])
def test_a_session_is_a_chats_exactly_if_an_invitation_brought_it(store: Store, wrong: dict[str, object]) -> None:
    with store.write() as connection:
        connection.execute(insert(invitations).values(INVITATION))
    with pytest.raises(StoreError), store.write() as connection:
        connection.execute(insert(sessions).values(SESSION | wrong))


def test_sessions_go_with_their_invitation(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(invitations).values(INVITATION))
        connection.execute(insert(sessions).values(SESSION))
        connection.execute(delete(invitations))
    with store.read() as connection:
        assert connection.execute(sessions.select()).all() == []


@pytest.mark.parametrize("change", [update(audit_entries).values(who="nobody"), delete(audit_entries)])
def test_the_audit_trail_can_only_grow(store: Store, change: object) -> None:
    with store.write() as connection:
        connection.execute(insert(audit_entries).values(at_s=1.0, who="operator", what="looked"))
    with pytest.raises(StoreError), store.write() as connection:
        connection.execute(change)
    with store.read() as connection:
        assert [row.who for row in connection.execute(audit_entries.select())] == ["operator"]


def columns_for_secrets() -> list[Column[object]]:
    words = ("token", "secret", "password", "cookie")
    return [column for table in metadata.tables.values() for column in table.c if any(w in column.name for w in words)]


def test_columns_for_secrets_hold_hashes() -> None:
    assert len(columns_for_secrets()) == 4
    assert all(column.name.endswith("_hash") for column in columns_for_secrets())
