"""The interface: whatever is called a source is one."""

from __future__ import annotations

import pytest

from client.desktop.bus import BusSource
from client.desktop.windows import WindowsSource
from client.desktop.x11 import X11Source


@pytest.mark.parametrize("kind", [BusSource, WindowsSource, X11Source])
def test_every_source_has_all_readings(kind: type) -> None:
    for name in ("refresh", "idle_s", "is_fullscreen", "is_locked", "close"):
        assert callable(getattr(kind, name))
