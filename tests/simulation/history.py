"""What happened in one history, one line per event, and what was found to be wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


class Violation(Exception):  # noqa: N818 - the field's name for it
    """Something that must never happen did. The history ends there."""


@dataclass
class History:
    """Events with their virtual time. `wrong`: what must never happen and did, the first of it first."""

    events: list[tuple[float, str, tuple[object, ...]]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is nothing more to be learnt."""

    def note(self, text: str, *values: object) -> None:
        """`text` is %-formatted only when somebody reads it."""
        self.events.append((asyncio.get_running_loop().time(), text, values))

    def blame(self, sentence: str) -> None:
        """It is wrong, whoever noticed it."""
        self.note("WRONG: %s", sentence)
        self.wrong.append(sentence)
        self.ended.set()

    def expect(self, is_so: bool, sentence: str) -> None:
        if not is_so:
            self.blame(sentence)

    def lines(self) -> list[str]:
        return [f"{at_s:9.4f}  {text % values if values else text}" for at_s, text, values in self.events]
