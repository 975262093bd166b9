"""Why somebody is not let in, or a request about accounts makes no sense: a code and one sentence, never a secret."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.errors import PoolError

SENTENCES: Mapping[str, str] = {
    "invitation_unknown": "This invitation is not known here; ask the pool's operator for a new one.",
    "invitation_revoked": "This invitation was revoked by the pool's operator.",
    "invitation_expired": "This invitation has expired; ask the pool's operator for a new one.",
    "invitation_used_up": "This invitation was used as often as it may be; ask the pool's operator for a new one.",
    "invitation_not_for_chat": "This invitation is for contributing a GPU, not for the chat.",
    "invitation_not_for_nodes": "This invitation is for the chat, not for contributing a GPU.",
    "invitation_needed": "This pool takes new machines by invitation only; ask its operator for a join link.",
    "link_unknown": "This sign-in link is not known or was used already; make a new one on the pool's machine.",
    "link_expired": "This sign-in link has expired; make a new one on the pool's machine.",
    "node_blocked": "This machine was removed by the pool's operator.",
    "bad_key": "The API key is not valid.",
    "key_expired": "The API key has expired.",
    "not_found": "There is no such entry, or no longer.",
    "bad_label": "A label has 1 to 64 characters, all of which can be shown.",
    "bad_expiry": "The time until something expires lies between one second and ten years.",
    "bad_max_uses": "An invitation may be used between 1 and 1,000,000 times, or without limit.",
    "allows_nothing": "An invitation must allow the chat, contributing a GPU, or both.",
    "too_many": "There are 1,000 of these in use already; revoke some first.",
    "too_many_nodes": "The pool knows as many machines as it can and takes no new ones.",
}


class AccountError(PoolError):
    """`code` is one of SENTENCES."""

    def __init__(self, code: str) -> None:
        super().__init__(code, SENTENCES[code])
