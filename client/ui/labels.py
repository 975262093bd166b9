"""Labels that never interpret their text: Qt renders HTML, images included, in a label whose text looks like it."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QFont
from PySide6.QtWidgets import QLabel, QWidget


def fit_height(window: QWidget, width: int) -> None:
    """As high as its wrapped texts need; a size hint reckons with another width."""
    layout = window.layout()
    if layout is not None:
        layout.activate()
        window.resize(width, layout.totalHeightForWidth(width))


class PlainLabel(QLabel):
    """`scale` is relative to the app's font. An empty label takes no room."""

    def __init__(self, parent: QWidget | None = None, style: str = "", scale: float = 1.0, bold: bool = False) -> None:
        super().__init__(parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self.setObjectName(style)
        font = QFont(self.font())
        font.setPointSizeF(font.pointSizeF() * scale)
        font.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
        self.setFont(font)

    def show_text(self, text: str) -> None:
        self.setText(text)
        self.setVisible(bool(text))
