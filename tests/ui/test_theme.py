"""Colours that can be read, and a style that follows the desktop."""

from __future__ import annotations

import pytest
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QApplication

from client.ui.colours import DARK, LIGHT, Colours
from client.ui.style_sheet import style_sheet
from client.ui.theme import apply_theme

MIN_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3."""


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    channels = QColor(colour).getRgbF()[:3]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("c", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_on_what_is_behind_it(c: Colours) -> None:
    for text in (c.text, c.muted, c.accent, c.alert):
        for behind in (c.window, c.card):
            assert contrast(text, behind) >= MIN_CONTRAST, (text, behind)
    for behind in (c.accent, c.accent_pressed):
        assert contrast(c.on_accent, behind) >= MIN_CONTRAST


@pytest.mark.parametrize("c", [LIGHT, DARK], ids=["light", "dark"])
def test_the_style_sheet_has_no_colour_of_its_own(c: Colours) -> None:
    sheet = style_sheet(c)
    assert sheet.count("{") == sheet.count("}")
    words = {word.strip(";,)") for word in sheet.split() if word.startswith("#")}
    ours = {getattr(c, name) for name in Colours.__slots__}
    assert {word for word in words if len(word) == 7} <= ours


def test_the_whole_app_is_styled(qapp: QApplication) -> None:
    apply_theme(qapp)
    assert "QPushButton#primary" in qapp.styleSheet()
    assert qapp.palette().highlight().color() in (QColor(LIGHT.accent), QColor(DARK.accent))
