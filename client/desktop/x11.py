"""Idle time and fullscreen windows under X11, by Xlib and the screen saver extension on a connection of its own.

Only for X11 sessions: under Wayland the X server is Xwayland, which knows nothing of the others' input, and opening a
display there can block for ever (BOINC, hostinfo_unix.cpp, and its issue 6913).
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_ulong, c_void_p
from typing import Any

from client.desktop.source import SourceError

logger = logging.getLogger(__name__)

_XA_ATOM, _XA_CARDINAL, _XA_WINDOW = 4, 6, 33
"""Predefined atoms (X11/Xatom.h)."""
_MAX_ITEMS = 64
_ErrorHandler = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
_IoErrorHandler = ctypes.CFUNCTYPE(c_int, c_void_p)
_IoErrorExitHandler = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)


class _ScreenSaverInfo(ctypes.Structure):
    """XScreenSaverInfo (X11/extensions/scrnsaver.h)."""

    _fields_ = (
        ("window", c_ulong),
        ("state", c_int),
        ("kind", c_int),
        ("til_or_since", c_ulong),
        ("idle", c_ulong),
        ("event_mask", c_ulong),
    )


class X11Source:
    """Raises SourceError where there is no X server to talk to. `own_pid`: whose fullscreen windows do not count."""

    name = "the X server"

    def __init__(self, own_pid: int | None = None) -> None:
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._x = _xlib()
        # The handlers are called from C as long as the display lives.
        self._ignore = _ErrorHandler(lambda _display, _event: 0)
        self._return = _IoErrorHandler(lambda _display: 0)
        self._note_end = _IoErrorExitHandler(self._forget_display)
        self._display: int | None = self._x.XOpenDisplay(None)
        if not self._display:
            raise SourceError("the X server does not answer")
        if hasattr(self._x, "XSetIOErrorExitHandler"):  # since libX11 1.7; before, a lost server ends the process
            self._x.XSetIOErrorExitHandler(self._display, self._note_end, None)
        self._root: int = self._x.XDefaultRootWindow(self._display)
        self._saver = _screen_saver(self._display)
        self._atoms = {name: self._x.XInternAtom(self._display, name.encode(), 0) for name in _ATOM_NAMES}

    def refresh(self) -> None:
        """Xlib answers at once."""

    def idle_s(self) -> float | None:
        if self._display is None or self._saver is None:
            return None
        info = _ScreenSaverInfo()
        with self._errors_ignored():
            is_known = self._saver.XScreenSaverQueryInfo(self._display, self._root, byref(info))
        return info.idle / 1000 if is_known and self._display is not None else None

    def is_fullscreen(self) -> bool | None:
        """The window in front covers the screen. None without a window manager that follows the EWMH."""
        with self._errors_ignored():
            if not self._property(self._root, "_NET_SUPPORTING_WM_CHECK", _XA_WINDOW):
                return None
            # No window is in front right after login: some managers then have no such property yet.
            window = (self._property(self._root, "_NET_ACTIVE_WINDOW", _XA_WINDOW) or (0,))[0]
            states = self._property(window, "_NET_WM_STATE", _XA_ATOM) if window else None
            if self._atoms["_NET_WM_STATE_FULLSCREEN"] not in (states or ()):
                return False
            return self._property(window, "_NET_WM_PID", _XA_CARDINAL) != (self._own_pid,)

    def is_locked(self) -> bool | None:
        return None

    def close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            self._x.XCloseDisplay(display)

    def _property(self, window: int, name: str, kind: int) -> tuple[int, ...] | None:
        """The property's numbers; None where there is none, such as for a window that has just gone."""
        if self._display is None:
            return None
        found_kind, bits, num_items, rest, data = c_ulong(), c_int(), c_ulong(), c_ulong(), POINTER(c_ulong)()
        out = (byref(found_kind), byref(bits), byref(num_items), byref(rest), byref(data))
        status = self._x.XGetWindowProperty(self._display, window, self._atoms[name], 0, _MAX_ITEMS, 0, kind, *out)
        if status != 0 or not data:
            return None
        # Items of 32 bits come as C longs (XGetWindowProperty(3)).
        numbers = tuple(data[index] for index in range(num_items.value)) if bits.value == 32 else None
        self._x.XFree(data)
        return numbers if found_kind.value == kind else None

    @contextmanager
    def _errors_ignored(self) -> Iterator[None]:
        """An error of a call here says that a window or the server has gone, and Xlib's own answer to both ends the
        process. The handlers are the whole process's: Qt's are put back. After the second one Xlib still calls the
        display's exit handler (XlibInt.c, _XIOError)."""
        before = self._x.XSetErrorHandler(ctypes.cast(self._ignore, c_void_p))
        io_before = self._x.XSetIOErrorHandler(ctypes.cast(self._return, c_void_p))
        try:
            yield
        finally:
            self._x.XSetErrorHandler(before)
            self._x.XSetIOErrorHandler(io_before)

    def _forget_display(self, _display: int, _data: int) -> None:
        """The server has gone. The connection must not be touched any more, not even to close it."""
        logger.info("the X server has gone: idle time and fullscreen windows are not known any more")
        self._display = None


def has_system_tray() -> bool:
    """A panel of the older kind owns the tray (System Tray Protocol 0.3). Raises SourceError without a server."""
    x = _xlib()
    display = x.XOpenDisplay(None)
    if not display:
        raise SourceError("the X server does not answer")
    atom = x.XInternAtom(display, f"_NET_SYSTEM_TRAY_S{x.XDefaultScreen(display)}".encode(), 0)
    has_owner = bool(x.XGetSelectionOwner(display, atom))
    x.XCloseDisplay(display)
    return has_owner


_ATOM_NAMES = (
    "_NET_SUPPORTING_WM_CHECK",
    "_NET_ACTIVE_WINDOW",
    "_NET_WM_STATE",
    "_NET_WM_STATE_FULLSCREEN",
    "_NET_WM_PID",
)


def _xlib() -> ctypes.CDLL:
    x = _library("X11")
    x.XOpenDisplay.argtypes, x.XOpenDisplay.restype = [c_char_p], c_void_p
    x.XCloseDisplay.argtypes = [c_void_p]
    x.XDefaultRootWindow.argtypes, x.XDefaultRootWindow.restype = [c_void_p], c_ulong
    x.XDefaultScreen.argtypes = [c_void_p]
    x.XGetSelectionOwner.argtypes, x.XGetSelectionOwner.restype = [c_void_p, c_ulong], c_ulong
    x.XInternAtom.argtypes, x.XInternAtom.restype = [c_void_p, c_char_p, c_int], c_ulong
    x.XSetErrorHandler.argtypes, x.XSetErrorHandler.restype = [c_void_p], c_void_p
    x.XSetIOErrorHandler.argtypes, x.XSetIOErrorHandler.restype = [c_void_p], c_void_p
    x.XFree.argtypes = [c_void_p]
    pointers: list[Any] = [
        POINTER(c_ulong),
        POINTER(c_int),
        POINTER(c_ulong),
        POINTER(c_ulong),
        POINTER(POINTER(c_ulong)),
    ]
    x.XGetWindowProperty.argtypes = [c_void_p, c_ulong, c_ulong, c_long, c_long, c_int, c_ulong, *pointers]
    if hasattr(x, "XSetIOErrorExitHandler"):
        x.XSetIOErrorExitHandler.argtypes = [c_void_p, _IoErrorExitHandler, c_void_p]
        x.XSetIOErrorExitHandler.restype = None
    return x


def _screen_saver(display: int) -> ctypes.CDLL | None:
    """The extension's library, or None where library or extension is missing: then the idle time is not known."""
    try:
        saver = _library("Xss")
    except SourceError as error:
        logger.info("%s", error)
        return None
    saver.XScreenSaverQueryExtension.argtypes = [c_void_p, POINTER(c_int), POINTER(c_int)]
    saver.XScreenSaverQueryInfo.argtypes = [c_void_p, c_ulong, POINTER(_ScreenSaverInfo)]
    first_event, first_error = c_int(), c_int()
    return saver if saver.XScreenSaverQueryExtension(display, byref(first_event), byref(first_error)) else None


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(f"lib{name}.so.{_VERSIONS[name]}")
    except OSError:
        raise SourceError(f"lib{name} is not installed") from None


_VERSIONS = {"X11": 6, "Xss": 1}
"""Of the interface; unchanged for decades."""
