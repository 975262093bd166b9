"""Colours and style: Fusion on every platform, light or dark as the desktop says."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

from client.ui.colours import DARK, LIGHT, Colours
from client.ui.style_sheet import style_sheet


def is_dark() -> bool:
    """Unknown (many window managers do not say) counts as light."""
    return QGuiApplication.styleHints().colorScheme() is Qt.ColorScheme.Dark


def current_colours() -> Colours:
    return DARK if is_dark() else LIGHT


def apply_theme(app: QApplication) -> None:
    """Style the whole app, and again whenever the desktop switches between light and dark."""
    app.setStyle("Fusion")
    _apply_colours(app)
    app.styleHints().colorSchemeChanged.connect(lambda _scheme: _apply_colours(app))


def _apply_colours(app: QApplication) -> None:
    colours = current_colours()
    app.setPalette(_palette(colours))
    app.setStyleSheet(style_sheet(colours))


def _palette(colours: Colours) -> QPalette:
    role = QPalette.ColorRole
    palette = QPalette(QColor(colours.card), QColor(colours.window))
    for which in (role.WindowText, role.Text, role.ButtonText, role.ToolTipText):
        palette.setColor(which, QColor(colours.text))
    for which in (role.Base, role.ToolTipBase):
        palette.setColor(which, QColor(colours.card))
    palette.setColor(role.PlaceholderText, QColor(colours.muted))
    for which in (role.Highlight, role.Accent):
        palette.setColor(which, QColor(colours.accent))
    palette.setColor(role.HighlightedText, QColor(colours.on_accent))
    for which in (role.ButtonText, role.WindowText, role.Text):
        palette.setColor(QPalette.ColorGroup.Disabled, which, QColor(colours.muted))
    return palette
