"""Idle time and fullscreen programs on Windows, by user32 and shell32."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_uint

from client.desktop.source import SourceError

_FULLSCREEN_STATES = frozenset({3, 4})
"""QUNS_RUNNING_D3D_FULL_SCREEN and QUNS_PRESENTATION_MODE of SHQueryUserNotificationState. Not QUNS_BUSY (2): NVIDIA's
overlay alone raises it (PowerToys commit 0b7d780)."""
_TICK_WRAP = 2**32
"""Both clocks are 32 bits of milliseconds and start again after 49.7 days."""


class _LastInputInfo(ctypes.Structure):
    """LASTINPUTINFO (winuser.h)."""

    _fields_ = (("size", c_uint), ("time", c_uint))


def elapsed_s(then_ms: int, now_ms: int) -> float:
    return ((now_ms - then_ms) % _TICK_WRAP) / 1000


class WindowsSource:
    """`last_input_ms`, `now_ms` and `notification_state` are the system's calls; each is None where it failed."""

    name = "Windows"

    def __init__(
        self,
        last_input_ms: Callable[[], int | None],
        now_ms: Callable[[], int],
        notification_state: Callable[[], int | None],
    ) -> None:
        self._last_input_ms = last_input_ms
        self._now_ms = now_ms
        self._notification_state = notification_state

    def refresh(self) -> None:
        """Windows answers at once."""

    def idle_s(self) -> float | None:
        then_ms = self._last_input_ms()
        return None if then_ms is None else elapsed_s(then_ms, self._now_ms())

    def is_fullscreen(self) -> bool | None:
        """Borderless games keep the desktop's state: they show by their use of the GPU."""
        state = self._notification_state()
        return None if state is None else state in _FULLSCREEN_STATES

    def is_locked(self) -> bool | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


def windows_source() -> WindowsSource:
    """Raises SourceError anywhere else."""
    if sys.platform != "win32":
        raise SourceError("this is not Windows")
    user32, kernel32, shell32 = ctypes.windll.user32, ctypes.windll.kernel32, ctypes.windll.shell32
    kernel32.GetTickCount.restype = c_uint

    def last_input_ms() -> int | None:
        info = _LastInputInfo(ctypes.sizeof(_LastInputInfo), 0)
        return int(info.time) if user32.GetLastInputInfo(byref(info)) else None

    def notification_state() -> int | None:
        state = c_int()
        return state.value if shell32.SHQueryUserNotificationState(byref(state)) == 0 else None

    return WindowsSource(last_input_ms, kernel32.GetTickCount, notification_state)
