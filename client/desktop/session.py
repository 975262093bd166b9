"""All sources of this desktop together: each reading comes from the first source that knows it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from client.desktop.bus import bus_sources
from client.desktop.source import Source, SourceError
from client.desktop.windows import windows_source
from client.desktop.x11 import X11Source
from client.status import SessionReading

logger = logging.getLogger(__name__)

Known = TypeVar("Known", float, bool)


@dataclass(frozen=True, slots=True)
class SourceNames:
    """Where each reading comes from, for the settings; empty: it is not known on this desktop."""

    idle: str = ""
    fullscreen: str = ""
    locked: str = ""


class DesktopSession:
    """`sources` in the order in which they are believed."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    def refresh(self) -> None:
        """Ask those who need time for the next reading."""
        for source in self._sources:
            source.refresh()

    def read(self) -> SessionReading:
        return SessionReading(
            idle_s=_first(source.idle_s() for source in self._sources),
            is_fullscreen=_first(source.is_fullscreen() for source in self._sources),
            is_locked=_first(source.is_locked() for source in self._sources),
        )

    def names(self) -> SourceNames:
        return SourceNames(
            idle=self._name_of(lambda source: source.idle_s()),
            fullscreen=self._name_of(lambda source: source.is_fullscreen()),
            locked=self._name_of(lambda source: source.is_locked()),
        )

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _name_of(self, reading: Callable[[Source], float | bool | None]) -> str:
        return next((source.name for source in self._sources if reading(source) is not None), "")


def _first(readings: Iterable[Known | None]) -> Known | None:
    return next((reading for reading in readings if reading is not None), None)


def find_sources(platform: str, environ: Mapping[str, str]) -> list[Source]:
    """What this desktop may have. macOS has no source yet: its calls need a helper of its own."""
    if platform == "win32":
        return _usable(windows_source)
    if platform == "darwin":
        return []
    return [*(_usable(X11Source) if is_x11_session(environ) else []), *bus_sources()]


def is_x11_session(environ: Mapping[str, str]) -> bool:
    """Not Wayland: there DISPLAY is Xwayland's (see client/desktop/x11.py)."""
    kind = environ.get("XDG_SESSION_TYPE", "")
    return bool(environ.get("DISPLAY")) and kind != "wayland" and not environ.get("WAYLAND_DISPLAY")


def _usable(make: Callable[[], Source]) -> list[Source]:
    try:
        return [make()]
    except SourceError as error:
        logger.info("a source of the desktop's readings is not used: %s", error)
        return []


def open_session(environ: Mapping[str, str]) -> DesktopSession:
    return DesktopSession(find_sources(sys.platform, environ))
