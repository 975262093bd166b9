"""What an operator may ask for, and the ages at which things end."""

from __future__ import annotations

from coordinator.accounts.errors import AccountError

MAX_LABEL_CHARACTERS = 64
MAX_USES = 1_000_000
MIN_EXPIRES_IN_S = 1.0
MAX_EXPIRES_IN_S = 10 * 366 * 86_400.0
NOTE_USE_EVERY_S = 60.0
"""A use is noted at most this often: each note is a write that waits for the disk."""


def checked_label(label: str) -> str:
    """Without blanks at its ends. Raises AccountError."""
    label = label.strip()
    if not 1 <= len(label) <= MAX_LABEL_CHARACTERS or not label.isprintable():
        raise AccountError("bad_label")
    return label


def expiry(now_s: float, expires_in_s: float | None) -> float | None:
    """When; None: never. Raises AccountError, for what is not a number too."""
    if expires_in_s is None:
        return None
    if not MIN_EXPIRES_IN_S <= expires_in_s <= MAX_EXPIRES_IN_S:
        raise AccountError("bad_expiry")
    return now_s + expires_in_s


def checked_max_uses(max_uses: int | None) -> int | None:
    """Raises AccountError."""
    if max_uses is not None and not 1 <= max_uses <= MAX_USES:
        raise AccountError("bad_max_uses")
    return max_uses


def checked_id(given_id: str) -> str:
    """Ours are hex digits; a database's driver cannot take every text that a stranger may send. Raises AccountError."""
    if not given_id.isascii():
        raise AccountError("not_found")
    return given_id


def is_worth_noting(now_s: float, noted_s: float | None) -> bool:
    """Whether a use at `now_s` is written down after one at `noted_s`; also when the clock was set back."""
    return noted_s is None or abs(now_s - noted_s) >= NOTE_USE_EVERY_S
