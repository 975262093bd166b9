"""A calendar clock that stands still until the test moves it, and what tests about accounts do again and again."""

from __future__ import annotations

import pytest

from coordinator.accounts import AccountError, Accounts, InvitationView

DAY_S = 86_400.0
START_S = 1_800_000_000.0


class Wall:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


class Refused:
    """`with Refused("bad_key"): ...` - an AccountError of exactly that code must come."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._raises = pytest.raises(AccountError)

    def __enter__(self) -> None:
        self._caught = self._raises.__enter__()

    def __exit__(self, *details: object) -> bool:
        is_expected = bool(self._raises.__exit__(*details))  # type: ignore[arg-type]
        assert self._caught.value.code == self._code
        return is_expected


def to_chat(accounts: Accounts, max_uses: int | None = None, expires_in_s: float | None = None) -> tuple[str, str]:
    """Id and token of an invitation to the chat."""
    return _made(
        accounts.invite("friends", allows_chat=True, allows_nodes=False, max_uses=max_uses, expires_in_s=expires_in_s)
    )


def for_nodes(accounts: Accounts, max_uses: int | None = None, expires_in_s: float | None = None) -> tuple[str, str]:
    """Id and token of an invitation for nodes."""
    return _made(
        accounts.invite("lab", allows_chat=False, allows_nodes=True, max_uses=max_uses, expires_in_s=expires_in_s)
    )


def _made(made: tuple[InvitationView, str]) -> tuple[str, str]:
    return made[0].invitation_id, made[1]


def invitation(accounts: Accounts, invitation_id: str) -> InvitationView:
    return next(view for view in accounts.invitations() if view.invitation_id == invitation_id)
