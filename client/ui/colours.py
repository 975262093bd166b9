"""Colours for a light and a dark desktop."""

from __future__ import annotations

from dataclasses import dataclass


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
