"""What the operator does from the command line while the pool runs: links, invitations, keys, a look at the nodes.

The pool reads the same database for every request, so that what is made or revoked here counts at once.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.accounts import AccountError, Accounts, InvitationView, NodeRecord
from coordinator.announcement import StartTokens, join_command
from coordinator.config import DATABASE_NAME, ConfigError, Site
from coordinator.site_file import read_site
from coordinator.store import Store
from shell.clock import SystemClock
from shell.randomness import SystemRandom

DAY_S = 86_400.0
WHO = "command line"
"""In the audit trail."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an invitation is to allow; None: without limit."""

    label: str = "invitation"
    allows_chat: bool = True
    allows_nodes: bool = True
    max_uses: int | None = None
    num_days: float | None = 7.0


@contextmanager
def opened(data_dir: Path) -> Iterator[tuple[Accounts, Site]]:
    """The accounts of the pool whose folder this is. Raises ConfigError when no pool ran there, and makes nothing."""
    site = read_site(data_dir)
    path = data_dir / DATABASE_NAME
    if not path.exists():
        raise ConfigError(f"{path} is missing; it is made when the pool starts.")
    store = Store.open(path)
    try:
        yield Accounts(store, SystemRandom(), SystemClock().wall), site
    finally:
        store.close()


def start_tokens(accounts: Accounts, site: Site, *, with_operator_link: bool) -> StartTokens:
    """What a pool that starts tells its operator: a sign-in link while no operator is signed in, or if it is asked for,
    and for a pool by invitation its first invitation."""
    needs_operator = with_operator_link or not accounts.has_operator()
    needs_invite = not site.is_open and not accounts.invitations()
    return StartTokens(
        operator=accounts.make_operator_link() if needs_operator else "",
        invite=_made(accounts, Invitation("first invitation"))[1] if needs_invite else "",
    )


def operator_link(accounts: Accounts, site: Site) -> str:
    """A new sign-in link for the operator page."""
    link = site.operator_link(accounts.make_operator_link())
    accounts.audit(WHO, "made a sign-in link for the operator page")
    return f"Operator page (one sign-in, within 24 hours): {link}"


def invite(accounts: Accounts, site: Site, wanted: Invitation) -> str:
    """A new invitation in both of its forms. Raises AccountError for one that makes no sense."""
    view, token = _made(accounts, wanted)
    lines = [f"Invitation {view.invitation_id}, shown only now: {_allowed(view)}, {_validity(view.expires_s)}."]
    if view.allows_nodes:
        lines += [f"Join link: {site.join_link(token)}", f"On a server: {join_command(site.join_link(token))}"]
    if view.allows_chat:
        lines.append(f"Chat page: {site.browser_link(token)}")
    return "\n".join(lines)


def invitations(accounts: Accounts) -> str:
    """All that were made."""
    rows = [
        (view.invitation_id, shown(view.label), _allowed(view), _uses(view), _state(view.is_revoked, view.expires_s))
        for view in accounts.invitations()
    ]
    return table(("ID", "LABEL", "ALLOWS", "USED", "STATE"), rows) if rows else "No invitation has been made yet."


def make_key(accounts: Accounts, label: str, num_days: float | None) -> str:
    """A new API key."""
    view, secret = accounts.make_key(label, _seconds(num_days))
    accounts.audit(WHO, f"made key {view.key_id}")
    return f"Key {view.key_id}, shown only now ({_validity(view.expires_s)}):\n{secret}"


def keys(accounts: Accounts) -> str:
    """All that were made, without their secrets."""
    rows = [
        (
            view.key_id,
            shown(view.label),
            _time(view.created_s),
            _time(view.last_used_s),
            _state(view.is_revoked, view.expires_s),
        )
        for view in accounts.keys()  # noqa: SIM118 - no mapping
    ]
    return table(("ID", "LABEL", "MADE", "LAST USED", "STATE"), rows) if rows else "No key has been made yet."


def revoke(accounts: Accounts, given_id: str) -> str:
    """End an invitation or a key. Raises AccountError when nothing has that id."""
    if given_id in [view.key_id for view in accounts.keys()]:  # noqa: SIM118 - no mapping
        accounts.revoke_key(given_id)
        what = "Key"
    elif given_id in [view.invitation_id for view in accounts.invitations()]:
        accounts.revoke_invitation(given_id)
        what = "Invitation"
    else:
        raise AccountError("not_found")
    accounts.audit(WHO, f"revoked {what.lower()} {given_id}")
    return f"{what} {given_id} is revoked."


def nodes(accounts: Accounts, troubles: Mapping[str, str] | None = None) -> str:
    """The machines that have ever joined. `troubles`: what was found of each since the pool started, if known."""
    known = {} if troubles is None else troubles
    rows = [_node_row(record, known.get(record.node_id, "")) for record in accounts.nodes()]
    head = ("NODE", "NAME", "FIRST SEEN", "LAST SEEN", "" if troubles is None else "TROUBLES", "")
    return table(head, rows) if rows else "No machine has joined yet."


def _made(accounts: Accounts, wanted: Invitation) -> tuple[InvitationView, str]:
    view, token = accounts.invite(
        wanted.label,
        allows_chat=wanted.allows_chat,
        allows_nodes=wanted.allows_nodes,
        max_uses=wanted.max_uses,
        expires_in_s=_seconds(wanted.num_days),
    )
    accounts.audit(WHO, f"made invitation {view.invitation_id}")
    return view, token


def _node_row(record: NodeRecord, troubles: str) -> tuple[str, ...]:
    state, seen = "removed" if record.is_blocked else "", (_time(record.first_seen_s), _time(record.last_seen_s))
    return record.node_id, shown(record.name), *seen, troubles, state


def _seconds(num_days: float | None) -> float | None:
    return None if num_days is None else num_days * DAY_S


def _allowed(view: InvitationView) -> str:
    return " and ".join(["chat"] * view.allows_chat + ["contribute"] * view.allows_nodes)


def _uses(view: InvitationView) -> str:
    return str(view.num_uses) if view.max_uses is None else f"{view.num_uses} of {view.max_uses}"


def _validity(expires_s: float | None) -> str:
    return "until it is revoked" if expires_s is None else f"until {_time(expires_s)} UTC"


def _state(is_revoked: bool, expires_s: float | None) -> str:
    if is_revoked:
        return "revoked"
    if expires_s is not None and expires_s <= SystemClock().wall():
        return "expired"
    return _validity(expires_s)


def _time(moment_s: float | None) -> str:
    if moment_s is None:
        return "never"
    return datetime.datetime.fromtimestamp(moment_s, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def shown(name: str) -> str:
    """Nodes choose their names: none of them may move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in name)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join(lines)
