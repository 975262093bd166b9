"""The packaged icons (drawn by assets/draw_icons.py), in the variant for a light or a dark desktop."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PySide6.QtGui import QIcon

from client.ui.view import Icon

_FOLDER = Path(__file__).with_name("icons")
# Trays take the nearest bitmap: freedesktop panels 16 to 24, Windows 16 to 48, doubled on dense displays.
_SIZES = (16, 20, 22, 24, 32, 40, 44, 48, 64)


def logo() -> QIcon:
    return _bitmaps("logo.svg")


def state_icon(icon: Icon, dark: bool) -> QIcon:
    return _bitmaps(f"tray-{icon.value}-{'dark' if dark else 'light'}.svg")


@cache
def _bitmaps(name: str) -> QIcon:
    drawing = QIcon(str(_FOLDER / name))
    icon = QIcon(drawing)
    for size in _SIZES:
        icon.addPixmap(drawing.pixmap(size, size))
    return icon
