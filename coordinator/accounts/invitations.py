"""Invitations: made, listed, revoked, and redeemed by a chat sign-in or by a new node."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from coordinator.accounts import tokens
from coordinator.accounts.checks import checked_id, checked_label, checked_max_uses, expiry
from coordinator.accounts.errors import AccountError
from coordinator.accounts.values import InvitationView
from coordinator.store.tables import invitations, sessions
from protocol.env import Random

MAX_LIVE = 1_000
_TABLE = invitations.c
_NUM_ID_BYTES = 8


class Purpose(StrEnum):
    CHAT = "chat"
    NODES = "nodes"


class Redeemed(NamedTuple):
    invitation_id: str
    label: str


class Terms(NamedTuple):
    """What the operator wants an invitation to be, unchecked."""

    label: str
    allows_chat: bool
    allows_nodes: bool
    max_uses: int | None
    expires_in_s: float | None


def make(connection: Connection, random: Random, now_s: float, terms: Terms) -> tuple[InvitationView, str]:
    """The invitation and its token. Raises AccountError."""
    if not (terms.allows_chat or terms.allows_nodes):
        raise AccountError("allows_nothing")
    token = tokens.new_token(random, tokens.INVITATION)
    view = InvitationView(
        invitation_id=random.token_hex(_NUM_ID_BYTES),
        label=checked_label(terms.label),
        allows_chat=terms.allows_chat,
        allows_nodes=terms.allows_nodes,
        max_uses=checked_max_uses(terms.max_uses),
        num_uses=0,
        created_s=now_s,
        expires_s=expiry(now_s, terms.expires_in_s),
        is_revoked=False,
    )
    if count_live(connection, now_s) >= MAX_LIVE:
        raise AccountError("too_many")
    row = asdict(view) | {"token_hash": tokens.hash_of(token)}
    del row["is_revoked"]
    connection.execute(insert(invitations).values(row))
    return view, token


def listed(connection: Connection) -> list[InvitationView]:
    """All that are not forgotten yet, the newest first."""
    rows = connection.execute(select(invitations).order_by(_TABLE.created_s.desc(), _TABLE.invitation_id))
    return [_view(row) for row in rows]


def revoke(connection: Connection, invitation_id: str, now_s: float) -> None:
    """From now on nobody comes in by it, and who came by it to chat is signed out. Raises AccountError."""
    is_it = _TABLE.invitation_id == checked_id(invitation_id)
    if connection.execute(select(_TABLE.invitation_id).where(is_it)).first() is None:
        raise AccountError("not_found")
    connection.execute(update(invitations).where(is_it, _TABLE.revoked_s.is_(None)).values(revoked_s=now_s))
    connection.execute(sessions.delete().where(sessions.c.invitation_id == invitation_id))


def redeem(connection: Connection, token: str, purpose: Purpose, now_s: float) -> Redeemed:
    """Use it once. One statement both checks and counts, so that of two who race for the last use one wins.
    Raises AccountError."""
    is_it = _TABLE.token_hash == tokens.hash_of(token)
    used = connection.execute(
        update(invitations)
        .where(is_it, _allows(purpose), _is_live(now_s))
        .values(num_uses=_TABLE.num_uses + 1)
        .returning(_TABLE.invitation_id, _TABLE.label)
    ).one_or_none()
    if used is None:
        raise AccountError(_why_not(connection.execute(select(invitations).where(is_it)).one_or_none(), purpose, now_s))
    return Redeemed(used.invitation_id, used.label)


def count_live(connection: Connection, now_s: float) -> int:
    return connection.execute(select(func.count()).select_from(invitations).where(_is_live(now_s))).scalar_one()


def _allows(purpose: Purpose) -> ColumnElement[bool]:
    return _TABLE.allows_chat.is_(True) if purpose is Purpose.CHAT else _TABLE.allows_nodes.is_(True)


def _is_live(now_s: float) -> ColumnElement[bool]:
    return and_(
        _TABLE.revoked_s.is_(None),
        or_(_TABLE.expires_s.is_(None), _TABLE.expires_s > now_s),
        or_(_TABLE.max_uses.is_(None), _TABLE.num_uses < _TABLE.max_uses),
    )


def _why_not(row: Row[Any] | None, purpose: Purpose, now_s: float) -> str:
    if row is None:
        return "invitation_unknown"
    if row.revoked_s is not None:
        return "invitation_revoked"
    if not (row.allows_chat if purpose is Purpose.CHAT else row.allows_nodes):
        return f"invitation_not_for_{purpose}"
    if row.expires_s is not None and row.expires_s <= now_s:
        return "invitation_expired"
    return "invitation_used_up"


def _view(row: Row[Any]) -> InvitationView:
    return InvitationView(
        invitation_id=row.invitation_id,
        label=row.label,
        allows_chat=row.allows_chat,
        allows_nodes=row.allows_nodes,
        max_uses=row.max_uses,
        num_uses=row.num_uses,
        created_s=row.created_s,
        expires_s=row.expires_s,
        is_revoked=row.revoked_s is not None,
    )
