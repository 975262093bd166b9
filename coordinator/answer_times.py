"""A setting by itself, so that reading settings does not take importing what they are for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """How long answers are kept without anybody who reads them."""

    grace_s: float = 30.0
    """The reader of a running answer is gone, and can come back."""
    unread_s: float = 60.0
    """The coordinator was restarted, and the reader has not come back yet."""
    retention_s: float = 600.0
    """The answer is complete."""
