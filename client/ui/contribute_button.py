"""The one big button."""

from __future__ import annotations

from PySide6.QtCore import QElapsedTimer, Qt, Signal
from PySide6.QtGui import QFocusEvent, QFont, QMouseEvent
from PySide6.QtWidgets import QApplication, QPushButton, QWidget

from client.ui.view import View, Wish

_KEYBOARD_REASONS = (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason)


class ContributeButton(QPushButton):
    """Emits `wished` with what it showed when it was pressed."""

    wished = Signal(Wish)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._wish = Wish.CONTRIBUTE
        self._since_press = QElapsedTimer()
        self.setObjectName("primary")
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
        self._restyle("quiet", view.wish is Wish.PAUSE)

    def _restyle(self, name: str, value: bool) -> None:
        """Set a property that the style sheet looks at."""
        if self.property(name) is not value:
            self.setProperty(name, value)
            self.style().unpolish(self)
            self.style().polish(self)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802 - Qt's name
        """A ring for those who use the keyboard only, as the web's :focus-visible."""
        self._restyle("ring", event.reason() in _KEYBOARD_REASONS)
        super().focusInEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802 - Qt's name
        self._restyle("ring", False)
        super().focusOutEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        """The button changes its meaning when pressed, so a burst of clicks must count as one: the second click of a
        double click would take back the first."""
        burst = self._since_press.isValid() and self._since_press.elapsed() < QApplication.doubleClickInterval()
        self._since_press.start()
        if not burst:
            super().mousePressEvent(event)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        self.mousePressEvent(event)
