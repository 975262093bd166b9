"""Where the volunteer says which pool to join, as long as nobody has said it on the command line."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLineEdit, QVBoxLayout, QWidget

from client.ui.labels import PlainLabel
from client.ui.pool_link import parse_pool_link
from protocol.join_link import MAX_LINK_CHARACTERS, JoinLink, JoinLinkError


class PoolForm(QWidget):
    """A field and, under it, what is wrong with its text."""

    submitted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        label = PlainLabel(self, bold=True)
        label.setText("&Join link or address of the pool")
        self._complaint = PlainLabel(self, "alert")
        self._complaint.show_text("")
        self._field = QLineEdit(self)
        self._field.setPlaceholderText("decentllm://pool.example.org/join?…")
        # Longer than any link, so that a longer one is refused instead of being cut into another one.
        self._field.setMaxLength(2 * MAX_LINK_CHARACTERS)
        self._field.setAccessibleName("Join link or address of the pool")
        self._field.returnPressed.connect(self.submitted)
        self._field.textEdited.connect(lambda _text: self._complaint.show_text(""))
        label.setBuddy(self._field)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        for widget in (label, self._field, self._complaint):
            column.addWidget(widget)

    def open_with(self, address: str) -> None:
        """Show the form, ready to type."""
        self._field.setText(address)
        self._complaint.show_text("")
        self.show()
        self._field.setFocus()
        self._field.selectAll()

    def link(self) -> JoinLink | None:
        """What was pasted, or None after saying what is wrong with it."""
        try:
            return parse_pool_link(self._field.text())
        except JoinLinkError as error:
            self._complaint.show_text(str(error))
            self._field.setFocus()
            return None
