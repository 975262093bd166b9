"""The one big button, and beside it the menu of how long to pause."""

from __future__ import annotations

from PySide6.QtCore import QElapsedTimer, QPointF, Qt, Signal
from PySide6.QtGui import QFocusEvent, QFont, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QApplication, QHBoxLayout, QPushButton, QWidget

from client.ui.pause_choice import PauseChoice
from client.ui.pause_menu import PauseMenu
from client.ui.view import View, Wish

_KEYBOARD_REASONS = (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason)


class _BigButton(QPushButton):
    """Follows the style sheet's properties `quiet` and `ring`."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("primary")

    def restyle(self, name: str, value: bool) -> None:
        """Set a property that the style sheet looks at."""
        if self.property(name) is not value:
            self.setProperty(name, value)
            self.style().unpolish(self)
            self.style().polish(self)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802 - Qt's name
        """A ring for those who use the keyboard only, as the web's :focus-visible."""
        self.restyle("ring", event.reason() in _KEYBOARD_REASONS)
        super().focusInEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802 - Qt's name
        self.restyle("ring", False)
        super().focusOutEvent(event)


class ContributeButton(_BigButton):
    """Emits `wished` with what it showed when it was pressed."""

    wished = Signal(Wish)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._wish = Wish.CONTRIBUTE
        self._since_press = QElapsedTimer()
        font = QFont(self.font())
        font.setPointSizeF(font.pointSizeF() * 1.35)
        font.setWeight(QFont.Weight.DemiBold)
        self.setFont(font)
        self.setDefault(True)
        self.clicked.connect(lambda: self.wished.emit(self._wish))

    def show_view(self, view: View) -> None:
        self.setText(view.button_text)
        self.setAccessibleName(view.button_text)
        self.setAccessibleDescription(view.headline)
        self.setEnabled(view.button_enabled)
        self._wish = view.wish
        self.restyle("quiet", view.wish is not Wish.CONTRIBUTE)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        """The button changes its meaning when pressed, so a burst of clicks must count as one: the second click of a
        double click would take back the first."""
        burst = self._since_press.isValid() and self._since_press.elapsed() < QApplication.doubleClickInterval()
        self._since_press.start()
        if not burst:
            super().mousePressEvent(event)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        self.mousePressEvent(event)


class PauseMenuButton(_BigButton):
    """A chevron that opens the menu. Drawn here: a style sheet takes an arrow from a file only."""

    chosen = Signal(PauseChoice, bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Pause for how long")
        self.restyle("quiet", True)
        self.setProperty("menu", True)
        self.setFixedWidth(52)
        menu = PauseMenu("Pause", self)
        after = PauseMenu("After the current answers", menu, after_answers=True)
        for choices in (menu, after):
            choices.chosen.connect(self.chosen)
        self._after = menu.addMenu(after)
        self.setMenu(menu)

    def show_view(self, view: View) -> None:
        self.setVisible(view.can_pause)
        self._after.setVisible(view.can_finish)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(self.palette().buttonText().color(), 2.0)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
        painter.setPen(pen)
        middle = QPointF(self.rect().center()) + QPointF(0.5, 1.5)
        painter.drawPolyline([middle + QPointF(-5, -3), middle + QPointF(0, 2), middle + QPointF(5, -3)])


class ButtonRow(QWidget):
    """Both, side by side; the menu only where there is something to pause."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.button = ContributeButton(self)
        self.pause_menu = PauseMenuButton(self)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(8)
        line.addWidget(self.button, 1)
        line.addWidget(self.pause_menu)

    def show_view(self, view: View) -> None:
        self.button.show_view(view)
        self.pause_menu.show_view(view)
