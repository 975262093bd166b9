"""In any order of events no session outlives its invitation's revocation, no invitation is used too often, no secret
is kept."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from coordinator.accounts import AccountError, Accounts, Role, Store
from tests.coordinator.accounts.wall import DAY_S, Wall
from tests.fakes.virtual_env import SeededRandom

OPERATOR_S, CHAT_S = DAY_S / 2, 30 * DAY_S
KEY = "ab" * 32
MOVES_S = [1.0, 59.0, 3600.0, DAY_S / 2, DAY_S, 31 * DAY_S, -30.0, -DAY_S]
NODES = st.sampled_from([f"{number:032x}" for number in range(4)])


@dataclass
class Invited:
    """What an outsider knows of an invitation."""

    invitation_id: str
    token: str
    allows_chat: bool
    allows_nodes: bool
    max_uses: int | None
    expires_s: float | None
    num_uses: int = 0
    is_revoked: bool = False

    def is_good(self, now_s: float, is_allowed: bool) -> bool:
        is_in_time = self.expires_s is None or now_s < self.expires_s
        is_left = self.max_uses is None or self.num_uses < self.max_uses
        return is_allowed and is_in_time and is_left and not self.is_revoked


@dataclass
class SignedIn:
    cookie: str
    role: Role
    expires_s: float
    invited: Invited | None = None
    is_out: bool = False


@dataclass
class Link:
    token: str
    expires_s: float
    is_used: bool = False


class AnyOrder(RuleBasedStateMachine):
    invited = Bundle("invited")
    links = Bundle("links")
    signed_in = Bundle("signed_in")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.wall = Wall()
        self.latest_s = self.wall.now_s
        self.rng = random.Random(1)
        self.all_invited: list[Invited] = []
        self.all_signed_in: list[SignedIn] = []
        self.secrets: list[str] = []
        self.nodes: dict[str, bool] = {}
        self.store: Store | None = None

    @initialize()
    def open(self) -> None:
        self.store = Store.open(Path(self.folder.name) / "pool.db")
        self.accounts = Accounts(self.store, SeededRandom(self.rng), self.wall)

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        self.folder.cleanup()

    # ------------------------------------------------------------ what may happen

    @rule(
        target=invited,
        allows=st.sampled_from([(True, False), (False, True), (True, True)]),
        max_uses=st.sampled_from([None, 1, 1, 2]),
        expires_in_s=st.sampled_from([None, 60.0, DAY_S]),
    )
    def invite(self, allows: tuple[bool, bool], max_uses: int | None, expires_in_s: float | None) -> Invited:
        chat, nodes = allows
        view, token = self.accounts.invite(
            "x", allows_chat=chat, allows_nodes=nodes, max_uses=max_uses, expires_in_s=expires_in_s
        )
        invited = Invited(view.invitation_id, token, chat, nodes, max_uses, view.expires_s)
        self.all_invited.append(invited)
        self.secrets.append(token)
        return invited

    @rule(target=links)
    def make_link(self) -> Link:
        link = Link(self.accounts.make_operator_link(), self.wall.now_s + DAY_S)
        self.secrets.append(link.token)
        return link

    @rule()
    def make_key(self) -> None:
        _, key = self.accounts.make_key("x", 60.0)
        self.secrets.append(key)
        assert self.accounts.caller_of_key(key).role is Role.CHAT

    @rule(target=signed_in, invited=invited)
    def sign_in_to_chat(self, invited: Invited) -> SignedIn | None:
        is_good = invited.is_good(self.wall.now_s, invited.allows_chat)
        cookie = self.cookie_for(invited.token, is_good, Role.CHAT)
        invited.num_uses += is_good
        return self.remember(SignedIn(cookie, Role.CHAT, self.wall.now_s + CHAT_S, invited, is_out=not is_good))

    @rule(target=signed_in, link=links)
    def sign_in_as_operator(self, link: Link) -> SignedIn:
        is_good = not link.is_used and self.wall.now_s < link.expires_s
        cookie = self.cookie_for(link.token, is_good, Role.OPERATOR)
        link.is_used = link.is_used or is_good
        return self.remember(SignedIn(cookie, Role.OPERATOR, self.wall.now_s + OPERATOR_S, is_out=not is_good))

    @rule(invited=invited)
    def revoke(self, invited: Invited) -> None:
        try:
            self.accounts.revoke_invitation(invited.invitation_id)
        except AccountError as error:
            assert error.code == "not_found"
            assert self.is_forgotten(invited)
        invited.is_revoked = True

    @rule(session=consumes(signed_in))
    def sign_out(self, session: SignedIn) -> None:
        self.accounts.sign_out(session.cookie)
        session.is_out = True

    @rule(node_id=NODES, invited=invited, is_open=st.sampled_from([False, False, True]))
    def node_comes(self, node_id: str, invited: Invited, is_open: bool) -> None:
        is_new = node_id not in self.nodes
        is_used = is_new and not is_open and invited.is_good(self.wall.now_s, invited.allows_nodes)
        is_in = (not self.nodes[node_id]) if not is_new else (is_open or is_used)
        try:
            self.accounts.admit_node(node_id, KEY, "garage", invited.token, is_open=is_open)
        except AccountError:
            assert not is_in
            return
        assert is_in
        invited.num_uses += is_used
        self.nodes.setdefault(node_id, False)

    @rule(node_id=NODES, is_blocked=st.booleans())
    def block(self, node_id: str, is_blocked: bool) -> None:
        change = self.accounts.block_node if is_blocked else self.accounts.unblock_node
        try:
            change(node_id)
        except AccountError as error:
            assert (error.code, node_id in self.nodes) == ("not_found", False)
            return
        self.nodes[node_id] = is_blocked

    @rule(move_s=st.sampled_from(MOVES_S))
    def the_clock_moves(self, move_s: float) -> None:
        self.wall.now_s += move_s
        self.latest_s = max(self.latest_s, self.wall.now_s)

    @rule()
    def reopen(self) -> None:
        assert self.store is not None
        self.store.close()
        self.open()

    # ------------------------------------------------------------ what must hold

    @invariant()
    def sessions_live_exactly_as_long_as_they_may(self) -> None:
        for session in self.all_signed_in:
            role = self.accounts.caller_of_cookie(session.cookie).role
            is_ended = session.is_out or (session.invited is not None and session.invited.is_revoked)
            if is_ended or self.wall.now_s >= session.expires_s:
                assert role is None
            elif self.latest_s < session.expires_s:  # once over it may have been swept before the clock was set back
                assert role is session.role

    @invariant()
    def uses_are_counted_and_within_the_limit(self) -> None:
        views = {view.invitation_id: view for view in self.accounts.invitations()} if self.store else {}
        for invited in self.all_invited:
            view = views.pop(invited.invitation_id, None)
            if view is None:
                assert self.is_forgotten(invited)
                continue
            assert view.max_uses is None or view.num_uses <= view.max_uses
            assert (view.num_uses, view.is_revoked) == (invited.num_uses, invited.is_revoked)
        assert not views

    @invariant()
    def blocked_nodes_are_known_as_such(self) -> None:
        if self.store:
            assert {node.node_id: node.is_blocked for node in self.accounts.nodes()} == self.nodes

    @invariant()
    def no_secret_is_in_the_files(self) -> None:
        stored = b"".join(file.read_bytes() for file in Path(self.folder.name).iterdir())
        for secret in self.secrets:
            assert secret.split("-")[-1].encode() not in stored

    # ------------------------------------------------------------ how it is told

    def cookie_for(self, token: str, is_good: bool, role: Role) -> str:
        """The cookie, or one that opens nothing."""
        try:
            cookie, given = self.accounts.sign_in(token)
        except AccountError:
            assert not is_good
            return "none"
        assert is_good
        assert given is role
        self.secrets.append(cookie)
        return cookie

    def remember(self, session: SignedIn) -> SignedIn:
        self.all_signed_in.append(session)
        return session

    def is_forgotten(self, invited: Invited) -> bool:
        """Only what ended long ago is forgotten."""
        has_expired = invited.expires_s is not None and invited.expires_s <= self.latest_s
        return has_expired or invited.is_revoked


TestAccountsInAnyOrder = AnyOrder.TestCase
TestAccountsInAnyOrder.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
