"""Cutting an answer at a stop string that may be spread over several tokens. Pure."""

from __future__ import annotations


class StopStrings:
    """Feed text, get what may be shown; text that could be the beginning of a stop string is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Text that is safe to show now. Once `found` is true the answer has ended and nothing more comes."""
        if self.found:
            return ""
        self._held += text
        cut = min((i for i in (self._held.find(stop) for stop in self._stops) if i >= 0), default=-1)
        if cut >= 0:
            self.found = True
            shown, self._held = self._held[:cut], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """The answer ended by itself: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    limit = min(len(text), len(stop) - 1)
    return next((n for n in range(limit, 0, -1) if text.endswith(stop[:n])), 0)
