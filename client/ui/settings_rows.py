"""What the pages of the settings are made of: cards with a title, lines of words and a control, explanations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PySide6.QtCore import QObject, QPointF, QRectF, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QDoubleSpinBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QStyle,
    QStyleOptionButton,
    QVBoxLayout,
    QWidget,
)

from client.ui.labels import PlainLabel


class Card(QFrame):
    """A group of settings."""

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("card")
        self.setAccessibleName(title)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(18, 14, 18, 16)
        self.column.setSpacing(8)
        heading = PlainLabel(self, scale=1.08, bold=True)
        heading.setText(title)
        self.column.addWidget(heading)

    def add(self, widget: QWidget, indent: int = 0) -> None:
        if not indent:
            self.column.addWidget(widget)
            return
        line = QHBoxLayout()
        line.setContentsMargins(indent, 0, 0, 0)
        line.addWidget(widget)
        self.column.addLayout(line)

    def explain(self, text: str, style: str = "muted", indent: int = 0) -> PlainLabel:
        label = PlainLabel(self, style)
        label.show_text(text)
        self.add(label, indent)
        return label

    def line(self, *parts: str | QWidget, indent: int = 0) -> None:
        """Words and controls in the order of a sentence; the first words are the buddy of the first control."""
        line = QHBoxLayout()
        line.setContentsMargins(indent, 0, 0, 0)
        line.setSpacing(8)
        controls = [part for part in parts if isinstance(part, QWidget)]
        for index, part in enumerate(parts):
            line.addWidget(part if isinstance(part, QWidget) else _words(part, controls, index == 0))
        line.addStretch(1)
        self.column.addLayout(line)


def _words(text: str, controls: list[QWidget], is_first: bool) -> QLabel:
    label = PlainLabel()
    label.setWordWrap(False)
    label.setText(text)
    if is_first and controls:
        label.setBuddy(controls[0])
    return label


class TickBox(QCheckBox):
    """A check box whose tick is drawn here: a style sheet takes one from a file only."""

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        super().paintEvent(event)
        if not self.isChecked():
            return
        option = QStyleOptionButton()
        self.initStyleOption(option)
        box = QRectF(self.style().subElementRect(QStyle.SubElement.SE_CheckBoxIndicator, option, self))
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(self.palette().highlightedText().color(), box.width() / 8)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
        painter.setPen(pen)
        painter.drawPolyline([box.topLeft() + QPointF(x * box.width(), y * box.height()) for x, y in _TICK])


_TICK = ((0.26, 0.52), (0.43, 0.69), (0.74, 0.33))
"""In shares of the box."""


class _NoWheel:
    """A page that is scrolled must not change the number under the mouse."""

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 - Qt's name
        event.ignore()


class Number(_NoWheel, QSpinBox):
    """A whole number with its unit."""

    def __init__(self, name: str, lowest: int, highest: int, unit: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setRange(lowest, highest)
        self.setSuffix(unit)
        _prepare(self, name)


class Gigabytes(_NoWheel, QDoubleSpinBox):
    """A size."""

    def __init__(self, name: str, lowest: float, highest: float, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setDecimals(1)
        self.setRange(lowest, highest)
        self.setSuffix(" GB")
        _prepare(self, name)


def _prepare(box: QAbstractSpinBox, name: str) -> None:
    box.setAccessibleName(name)
    # While typing 120, the 1 is no wish.
    box.setKeyboardTracking(False)
    box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    box.setCorrectionMode(QAbstractSpinBox.CorrectionMode.CorrectToNearestValue)


class Page(QScrollArea):
    """Cards under one another."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("page")
        self.setAccessibleName(name)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inner = QWidget(self)
        inner.setObjectName("pageInner")
        self.column = QVBoxLayout(inner)
        self.column.setContentsMargins(2, 12, 12, 12)
        self.column.setSpacing(12)
        self.column.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setWidget(inner)

    def add_card(self, title: str) -> Card:
        card = Card(title, self.widget())
        card.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self.column.addWidget(card)
        return card


@contextmanager
def silent(*widgets: QObject) -> Iterator[None]:
    """Show what is set already, without being heard as a wish."""
    before = [widget.blockSignals(True) for widget in widgets]
    try:
        yield
    finally:
        for widget, was_blocked in zip(widgets, before, strict=True):
            widget.blockSignals(was_blocked)
