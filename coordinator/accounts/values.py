"""What the rest of the coordinator sees of accounts: never a secret, never a secret's hash. Times are seconds since
1970."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    OPERATOR = "operator"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `role` None: nobody who is signed in."""

    role: Role | None
    key_id: str = ""
    session_id: str = ""
    label: str = ""


class Recognised(NamedTuple):
    caller: Caller
    is_worth_noting: bool
    """Whether this use is to be written down."""


@dataclass(frozen=True, slots=True)
class InvitationView:
    """`max_uses` None: without limit. One use is one chat sign-in or one enrolled node."""

    invitation_id: str
    label: str
    allows_chat: bool
    allows_nodes: bool
    max_uses: int | None
    num_uses: int
    created_s: float
    expires_s: float | None
    is_revoked: bool


@dataclass(frozen=True, slots=True)
class KeyView:
    key_id: str
    label: str
    created_s: float
    last_used_s: float | None
    expires_s: float | None
    is_revoked: bool


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """`invitation_id` is empty for a node that came while the pool was open."""

    node_id: str
    name: str
    first_seen_s: float
    last_seen_s: float
    invitation_id: str
    is_blocked: bool


@dataclass(frozen=True, slots=True)
class AuditEntry:
    entry_id: int
    at_s: float
    who: str
    what: str
