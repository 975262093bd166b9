"""Why did it pause? The last changes between serving and paused, newest first."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from client.status import Transition
from client.ui.labels import PlainLabel
from client.ui.pause_text import SENTENCES
from client.ui.text import MAX_SENTENCE_CHARACTERS, clean, format_moment

_COLUMNS = ("When", "What happened", "What was seen")


def row_of(transition: Transition, now_s: float) -> tuple[str, str, str]:
    """The texts of one change."""
    reasons = " ".join(SENTENCES[reason] for reason in transition.reasons)
    return (
        format_moment(transition.at_s, now_s),
        reasons or "It went on.",
        clean(transition.detail, MAX_SENTENCE_CHARACTERS),
    )


class HistoryWindow(QDialog):
    """Read only; keyboard and screen readers move through it as through any table."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Why did it pause?")
        self.setAccessibleName("Why did it pause?")
        self._shown: tuple[tuple[Transition, ...], int] | None = None
        self._nothing = PlainLabel(self, "muted")
        self._nothing.setText("It has not paused by itself since the app was started.")
        self._nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._private = PlainLabel(self, "muted", scale=0.92)
        self._private.setText("What was seen stays on this computer: the pool only hears that it paused, and why.")
        self._table = self._make_table()
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 16, 16, 16)
        column.setSpacing(10)
        column.addWidget(self._nothing, 1)
        column.addWidget(self._table, 1)
        column.addWidget(self._private)
        QShortcut(QKeySequence(QKeySequence.StandardKey.Close), self, self.close)
        self.resize(660, 380)

    def _make_table(self) -> QTableWidget:
        table = QTableWidget(0, len(_COLUMNS), self)
        table.setObjectName("history")
        table.setAccessibleName("Changes between contributing and paused, newest first")
        table.setHorizontalHeaderLabels(list(_COLUMNS))
        table.verticalHeader().hide()
        table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        table.setShowGrid(False)
        table.setWordWrap(True)
        table.setTabKeyNavigation(False)
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        header = table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setHighlightSections(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        return table

    def show_history(self, transitions: tuple[Transition, ...], now_s: float) -> None:
        """Cheap when nothing is new; "yesterday" begins at midnight."""
        shown = (transitions, int(now_s // 3600))
        if shown == self._shown:
            return
        self._shown = shown
        self._nothing.setVisible(not transitions)
        self._table.setVisible(bool(transitions))
        self._table.setRowCount(len(transitions))
        for row, transition in enumerate(reversed(transitions)):
            for column, text in enumerate(row_of(transition, now_s)):
                # A table's item never interprets its text.
                self._table.setItem(row, column, QTableWidgetItem(text))
