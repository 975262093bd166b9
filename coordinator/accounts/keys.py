"""API keys: made, listed, revoked, and recognised in constant time."""

from __future__ import annotations

import hmac
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from coordinator.accounts import tokens
from coordinator.accounts.checks import checked_id, checked_label, expiry, is_worth_noting
from coordinator.accounts.errors import AccountError
from coordinator.accounts.values import Caller, KeyView, Recognised, Role
from coordinator.store.tables import api_keys
from protocol.env import Random

MAX_LIVE = 1_000
_TABLE = api_keys.c
_NUM_ID_BYTES = 4


def make(
    connection: Connection, random: Random, now_s: float, label: str, expires_in_s: float | None
) -> tuple[KeyView, str]:
    """The key's record and the key. Raises AccountError."""
    label, expires_s = checked_label(label), expiry(now_s, expires_in_s)
    if count_live(connection, now_s) >= MAX_LIVE:
        raise AccountError("too_many")
    view = KeyView(_free_id(connection, random), label, now_s, None, expires_s, False)
    secret = tokens.new_token(random, "")
    row = {"key_id": view.key_id, "label": label, "created_s": now_s, "expires_s": expires_s}
    connection.execute(insert(api_keys).values(**row, secret_hash=tokens.hash_of(secret)))
    return view, tokens.format_api_key(view.key_id, secret)


def listed(connection: Connection) -> list[KeyView]:
    """All that are not forgotten yet, the newest first."""
    rows = connection.execute(select(api_keys).order_by(_TABLE.created_s.desc(), _TABLE.key_id))
    return [_view(row) for row in rows]


def revoke(connection: Connection, key_id: str, now_s: float) -> None:
    """It opens nothing from now on. Raises AccountError."""
    if _find(connection, checked_id(key_id)) is None:
        raise AccountError("not_found")
    is_it = and_(_TABLE.key_id == key_id, _TABLE.revoked_s.is_(None))
    connection.execute(update(api_keys).where(is_it).values(revoked_s=now_s))


def recognise(connection: Connection, key: str, now_s: float) -> Recognised:
    """Raises AccountError. Only who has the whole key learns that it has expired; a revoked one is like any other."""
    parts = tokens.parse_api_key(key)
    row = None if parts is None else _find(connection, parts[0])
    if parts is None or row is None or not hmac.compare_digest(row.secret_hash, tokens.hash_of(parts[1])):
        raise AccountError("bad_key")
    if row.revoked_s is not None:
        raise AccountError("bad_key")
    if row.expires_s is not None and row.expires_s <= now_s:
        raise AccountError("key_expired")
    return Recognised(Caller(Role.CHAT, key_id=row.key_id, label=row.label), is_worth_noting(now_s, row.last_used_s))


def note_use(connection: Connection, key_id: str, now_s: float) -> None:
    connection.execute(update(api_keys).where(_TABLE.key_id == key_id).values(last_used_s=now_s))


def count_live(connection: Connection, now_s: float) -> int:
    return connection.execute(select(func.count()).select_from(api_keys).where(_is_live(now_s))).scalar_one()


def _is_live(now_s: float) -> ColumnElement[bool]:
    return and_(_TABLE.revoked_s.is_(None), or_(_TABLE.expires_s.is_(None), _TABLE.expires_s > now_s))


def _find(connection: Connection, key_id: str) -> Row[Any] | None:
    return connection.execute(select(api_keys).where(_TABLE.key_id == key_id)).one_or_none()


def _free_id(connection: Connection, random: Random) -> str:
    """32 bits are short for people's sake, so two keys may draw the same."""
    key_id = random.token_hex(_NUM_ID_BYTES)
    while _find(connection, key_id) is not None:
        key_id = random.token_hex(_NUM_ID_BYTES)
    return key_id


def _view(row: Row[Any]) -> KeyView:
    return KeyView(row.key_id, row.label, row.created_s, row.last_used_s, row.expires_s, row.revoked_s is not None)
