"""The accounts of a pool. Every method is one small transaction, quick, and safe to call from any thread; callers on
the event loop go through Env.run_blocking. All of them raise StoreError when the database cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from coordinator.accounts import audit, invitations, keys, nodes, sign_in
from coordinator.accounts.sweep import sweep
from coordinator.accounts.values import AuditEntry, Caller, InvitationView, KeyView, NodeRecord, Role
from coordinator.store import Store
from protocol.env import Random


class Accounts:
    """`wall` gives seconds since 1970: expiry is by the calendar."""

    def __init__(self, store: Store, random: Random, wall: Callable[[], float]) -> None:
        self._store = store
        self._random = random
        self._wall = wall

    # ------------------------------------------------------------ operators' links, sessions

    def make_operator_link(self) -> str:
        """The token of a link that signs an operator in once, within 24 hours."""
        now_s = self._wall()
        with self._store.write() as connection:
            sweep(connection, now_s)
            return sign_in.make_operator_link(connection, self._random, now_s)

    def sign_in(self, token: str) -> tuple[str, Role]:
        """The cookie's value and the role, for an operator's link or an invitation to chat. Raises AccountError."""
        now_s = self._wall()
        with self._store.write() as connection:
            signed_in = sign_in.sign_in(connection, self._random, token, now_s)
            sweep(connection, now_s)
        return signed_in

    @contextmanager
    def command_session(self) -> Iterator[str]:
        """The cookie of an operator's session for a command on the pool's own machine, which ends with the block, or
        in a minute."""
        now_s = self._wall()
        with self._store.write() as connection:
            sweep(connection, now_s)
            cookie = sign_in.begin_command_session(connection, self._random, now_s)
        try:
            yield cookie
        finally:
            self.sign_out(cookie)

    def caller_of_cookie(self, cookie: str) -> Caller:
        """Who this is; `role` None if the session is unknown or over."""
        now_s = self._wall()
        with self._store.read() as connection:
            caller, is_worth_noting = sign_in.recognise(connection, cookie, now_s)
        if is_worth_noting:
            with self._store.write() as connection:
                sign_in.note_use(connection, caller.session_id, now_s)
        return caller

    def has_operator(self) -> bool:
        """Whether an operator is signed in anywhere."""
        with self._store.read() as connection:
            return sign_in.has_operator(connection, self._wall())

    def sign_out(self, cookie: str) -> None:
        """Harmless when nobody was signed in."""
        with self._store.write() as connection:
            sign_in.sign_out(connection, cookie)

    # ------------------------------------------------------------ invitations

    def invite(
        self, label: str, *, allows_chat: bool, allows_nodes: bool, max_uses: int | None, expires_in_s: float | None
    ) -> tuple[InvitationView, str]:
        """A new invitation and its token, which is never to be had again. Raises AccountError."""
        terms = invitations.Terms(label, allows_chat, allows_nodes, max_uses, expires_in_s)
        now_s = self._wall()
        with self._store.write() as connection:
            sweep(connection, now_s)
            return invitations.make(connection, self._random, now_s, terms)

    def invitations(self) -> list[InvitationView]:
        """The newest first; also those that ended within the last 30 days."""
        with self._store.read() as connection:
            return invitations.listed(connection)

    def revoke_invitation(self, invitation_id: str) -> None:
        """It lets nobody in any more, and who came by it to chat is signed out; nodes that it enrolled stay until they
        are blocked. Raises AccountError."""
        with self._store.write() as connection:
            invitations.revoke(connection, invitation_id, self._wall())

    # ------------------------------------------------------------ API keys

    def make_key(self, label: str, expires_in_s: float | None) -> tuple[KeyView, str]:
        """A new key's record and the key, which is never to be had again. Raises AccountError."""
        now_s = self._wall()
        with self._store.write() as connection:
            sweep(connection, now_s)
            return keys.make(connection, self._random, now_s, label, expires_in_s)

    def keys(self) -> list[KeyView]:
        """The newest first; also those that ended within the last 30 days."""
        with self._store.read() as connection:
            return keys.listed(connection)

    def revoke_key(self, key_id: str) -> None:
        """Raises AccountError."""
        with self._store.write() as connection:
            keys.revoke(connection, key_id, self._wall())

    def caller_of_key(self, key: str) -> Caller:
        """Who this is. Raises AccountError (bad_key, key_expired)."""
        now_s = self._wall()
        with self._store.read() as connection:
            caller, is_worth_noting = keys.recognise(connection, key, now_s)
        if is_worth_noting:
            with self._store.write() as connection:
                keys.note_use(connection, caller.key_id, now_s)
        return caller

    # ------------------------------------------------------------ nodes

    def admit_node(self, node_id: str, public_key: str, name: str, invite: str | None, *, is_open: bool) -> None:
        """Let a node in. One that is known needs no invitation and uses none up. Raises AccountError."""
        newcomer, now_s = nodes.Newcomer(node_id, public_key, name), self._wall()
        with self._store.read() as connection:
            if nodes.is_well_known(connection, newcomer, now_s):
                return
        with self._store.write() as connection:
            nodes.admit(connection, newcomer, invite, now_s, is_open=is_open)

    def nodes(self) -> list[NodeRecord]:
        """All that ever came, the last seen first."""
        with self._store.read() as connection:
            return nodes.listed(connection)

    def block_node(self, node_id: str) -> None:
        """It is not let in again. Raises AccountError."""
        with self._store.write() as connection:
            nodes.set_blocked(connection, node_id, True)

    def unblock_node(self, node_id: str) -> None:
        """Raises AccountError."""
        with self._store.write() as connection:
            nodes.set_blocked(connection, node_id, False)

    def note_seen(self, node_ids: Collection[str]) -> None:
        """These are connected now; once a minute is often enough."""
        if node_ids:
            with self._store.write() as connection:
                nodes.note_seen(connection, node_ids, self._wall())

    # ------------------------------------------------------------ audit

    def audit(self, who: str, what: str) -> None:
        """Add a line: who did what. The caller keeps secrets out of it."""
        with self._store.write() as connection:
            audit.add(connection, who, what, self._wall())

    def audit_trail(self, limit: int = 200) -> list[AuditEntry]:
        """The newest first."""
        with self._store.read() as connection:
            return audit.newest(connection, limit)
