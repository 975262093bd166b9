"""Signing in with an operator's link or an invitation, and the sessions (cookies) that come of it."""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, insert, select, update

from coordinator.accounts import tokens
from coordinator.accounts.checks import is_worth_noting
from coordinator.accounts.errors import AccountError
from coordinator.accounts.invitations import Purpose, redeem
from coordinator.accounts.values import Caller, Recognised, Role
from coordinator.store.tables import operator_links, sessions
from protocol.env import Random

OPERATOR_LINK_S = 24 * 3600.0
SESSION_S = {Role.OPERATOR: 12 * 3600.0, Role.CHAT: 30 * 86_400.0}
"""Counted from signing in, however much a session is used: a stolen cookie does not live for ever."""

MAX_SESSIONS_PER_INVITATION = 1_000
"""Then the one longest unused ends: an invitation without limit cannot fill the disk."""

OPERATOR_LABEL = "operator"
COMMAND_LABEL = "command line"
COMMAND_SESSION_S = 60.0
"""Of a command on the pool's own machine, which asks one thing and signs out."""
_NUM_ID_BYTES = 8
_TABLE = sessions.c


NOBODY = Recognised(Caller(role=None), False)


def make_operator_link(connection: Connection, random: Random, now_s: float) -> str:
    token = tokens.new_token(random, tokens.OPERATOR_LINK)
    row = {"token_hash": tokens.hash_of(token), "created_s": now_s, "expires_s": now_s + OPERATOR_LINK_S}
    connection.execute(insert(operator_links).values(row))
    return token


def sign_in(connection: Connection, random: Random, token: str, now_s: float) -> tuple[str, Role]:
    """The cookie's value and the role. Raises AccountError."""
    if token.startswith(tokens.OPERATOR_LINK):
        use_operator_link(connection, token, now_s)
        return _begin_session(connection, random, now_s, Role.OPERATOR, OPERATOR_LABEL, None), Role.OPERATOR
    invitation_id, label = redeem(connection, token, Purpose.CHAT, now_s)
    _make_room(connection, invitation_id)
    return _begin_session(connection, random, now_s, Role.CHAT, label, invitation_id), Role.CHAT


def begin_command_session(connection: Connection, random: Random, now_s: float) -> str:
    """The cookie of an operator's session that is over in a minute."""
    return _begin_session(connection, random, now_s, Role.OPERATOR, COMMAND_LABEL, None, COMMAND_SESSION_S)


def use_operator_link(connection: Connection, token: str, now_s: float) -> None:
    """A used link is gone: of two who race one deletes it. Raises AccountError."""
    is_it = operator_links.c.token_hash == tokens.hash_of(token)
    if connection.execute(delete(operator_links).where(is_it, operator_links.c.expires_s > now_s)).rowcount == 1:
        return
    is_there = connection.execute(select(operator_links.c.token_hash).where(is_it)).first() is not None
    raise AccountError("link_expired" if is_there else "link_unknown")


def recognise(connection: Connection, cookie: str, now_s: float) -> Recognised:
    """Who this cookie is; nobody if it is unknown or over."""
    is_it = _TABLE.token_hash == tokens.hash_of(cookie)
    row = connection.execute(select(sessions).where(is_it, _TABLE.expires_s > now_s)).one_or_none()
    if row is None:
        return NOBODY
    caller = Caller(Role(row.role), session_id=row.session_id, label=row.label)
    return Recognised(caller, is_worth_noting(now_s, row.last_used_s))


def note_use(connection: Connection, session_id: str, now_s: float) -> None:
    connection.execute(update(sessions).where(_TABLE.session_id == session_id).values(last_used_s=now_s))


def sign_out(connection: Connection, cookie: str) -> None:
    connection.execute(delete(sessions).where(_TABLE.token_hash == tokens.hash_of(cookie)))


def has_operator(connection: Connection, now_s: float) -> bool:
    is_one = and_(_TABLE.role == Role.OPERATOR.value, _TABLE.label != COMMAND_LABEL, _TABLE.expires_s > now_s)
    return connection.execute(select(_TABLE.session_id).where(is_one)).first() is not None


def _begin_session(
    connection: Connection,
    random: Random,
    now_s: float,
    role: Role,
    label: str,
    invitation_id: str | None,
    lasts_s: float | None = None,
) -> str:
    cookie = tokens.new_token(random, tokens.SESSION)
    row = {
        "session_id": random.token_hex(_NUM_ID_BYTES),
        "token_hash": tokens.hash_of(cookie),
        "role": role.value,
        "label": label,
        "invitation_id": invitation_id,
        "created_s": now_s,
        "last_used_s": now_s,
        "expires_s": now_s + (SESSION_S[role] if lasts_s is None else lasts_s),
    }
    connection.execute(insert(sessions).values(row))
    return cookie


def _make_room(connection: Connection, invitation_id: str) -> None:
    """For one more session of this invitation."""
    too_many = (
        select(_TABLE.session_id)
        .where(_TABLE.invitation_id == invitation_id)
        .order_by(_TABLE.last_used_s.desc(), _TABLE.created_s.desc())
        .offset(MAX_SESSIONS_PER_INVITATION - 1)
    )
    connection.execute(delete(sessions).where(_TABLE.session_id.in_(too_many)))
