"""Colours and style: Fusion on every platform, light or dark as the desktop says."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication


@dataclass(frozen=True, slots=True)
class Colours:
    """Each text on its background has a contrast of at least 4.5:1 (WCAG 2.2, 1.4.3)."""

    window: str
    card: str
    border: str
    text: str
    muted: str
    accent: str
    accent_pressed: str
    on_accent: str
    alert: str


LIGHT = Colours(
    window="#f5f6f8",
    card="#ffffff",
    border="#dfe3e8",
    text="#171a1f",
    muted="#59616e",
    accent="#0f766e",
    accent_pressed="#0b5a54",
    on_accent="#ffffff",
    alert="#b42318",
)
DARK = Colours(
    window="#14161a",
    card="#1d2026",
    border="#30353e",
    text="#eceef2",
    muted="#a0a8b5",
    accent="#2dd4bf",
    accent_pressed="#5eead4",
    on_accent="#06231f",
    alert="#ff8a80",
)


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
    app.setStyleSheet(_style_sheet(colours))


def _palette(colours: Colours) -> QPalette:
    role = QPalette.ColorRole
    palette = QPalette(QColor(colours.card), QColor(colours.window))
    for which in (role.WindowText, role.Text, role.ButtonText, role.ToolTipText):
        palette.setColor(which, QColor(colours.text))
    for which in (role.Base, role.ToolTipBase):
        palette.setColor(which, QColor(colours.card))
    palette.setColor(role.PlaceholderText, QColor(colours.muted))
    palette.setColor(role.Highlight, QColor(colours.accent))
    palette.setColor(role.HighlightedText, QColor(colours.on_accent))
    palette.setColor(QPalette.ColorGroup.Disabled, role.ButtonText, QColor(colours.muted))
    return palette


def _style_sheet(c: Colours) -> str:
    return f"""
    QFrame#card {{ background: {c.card}; border: 1px solid {c.border}; border-radius: 14px; }}
    QScrollArea#devices, QWidget#deviceList {{ background: transparent; border: none; }}
    QLabel#muted, QLabel#factLabel, QLabel#note {{ color: {c.muted}; }}
    QLabel#alert {{ color: {c.alert}; }}
    QPushButton#primary {{
        background: {c.accent}; color: {c.on_accent}; border: 2px solid {c.accent}; border-radius: 12px;
        min-height: 48px; padding: 0 18px;
    }}
    QPushButton#primary:hover, QPushButton#primary:pressed {{
        background: {c.accent_pressed}; border-color: {c.accent_pressed};
    }}
    QPushButton#primary[quiet="true"] {{ background: {c.card}; color: {c.text}; border-color: {c.border}; }}
    QPushButton#primary[quiet="true"]:hover, QPushButton#primary[quiet="true"]:pressed {{ background: {c.window}; }}
    QPushButton#primary[ring="true"], QPushButton#primary[quiet="true"][ring="true"] {{ border-color: {c.text}; }}
    QPushButton#primary:disabled {{ background: {c.window}; color: {c.muted}; border-color: {c.border}; }}
    QPushButton#link {{
        background: transparent; color: {c.accent}; border: 1px solid transparent; border-radius: 6px; padding: 3px 6px;
    }}
    QPushButton#link:hover {{ text-decoration: underline; }}
    QPushButton#link:focus {{ border-color: {c.accent}; }}
    QLineEdit {{
        background: {c.window}; color: {c.text}; border: 1px solid {c.border}; border-radius: 8px; padding: 8px 10px;
    }}
    QLineEdit:focus {{ border-color: {c.accent}; }}
    QProgressBar {{
        background: {c.border}; border: none; border-radius: 4px; min-height: 8px; max-height: 8px;
    }}
    QProgressBar::chunk {{ background: {c.accent}; border-radius: 4px; }}
    """
