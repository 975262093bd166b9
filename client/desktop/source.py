"""One way to read the desktop session. Several are tried, since no desktop has them all."""

from __future__ import annotations

from typing import Protocol


class SourceError(Exception):
    """This source cannot be used on this desktop; says why, for the log."""


class Source(Protocol):
    """Each reading is None where the source does not know: unknown is never guessed."""

    name: str
    """For people, such as "GNOME's idle monitor"."""

    def refresh(self) -> None:
        """Ask for what takes time; the answer is there at a later call of the readings."""

    def idle_s(self) -> float | None:
        """Since the last key or mouse movement."""

    def is_fullscreen(self) -> bool | None:
        """A program other than ours has the whole screen."""

    def is_locked(self) -> bool | None: ...

    def close(self) -> None: ...
