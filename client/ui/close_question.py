"""What closing the window means, asked the first time."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDialog, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from client.ui.labels import PlainLabel, fit_height
from client.ui.preferences import CloseAction

_WIDTH = 420


class CloseQuestion(QDialog):
    """Emits `answered`; dismissing it leaves the window open and asks again the next time."""

    answered = Signal(CloseAction)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("DecentLLM")
        self.setModal(True)
        question = PlainLabel(self, scale=1.2, bold=True)
        question.setText("Keep running in the background?")
        text = PlainLabel(self, "muted")
        text.setText(
            "DecentLLM can stay in the tray: its icon shows what it does and opens this window again. "
            "If you quit, this computer leaves the pool. You can change this in the settings."
        )
        self.setAccessibleName(question.text())
        column = QVBoxLayout(self)
        column.setContentsMargins(22, 20, 22, 18)
        column.setSpacing(12)
        column.addWidget(question)
        column.addWidget(text)
        line = QHBoxLayout()
        line.addStretch(1)
        self.quit = self._answer("Quit", CloseAction.QUIT)
        self.keep = self._answer("Keep running", CloseAction.KEEP)
        self.keep.setObjectName("accept")
        self.keep.setDefault(True)
        line.addWidget(self.quit)
        line.addWidget(self.keep)
        column.addLayout(line)
        self.setMinimumWidth(_WIDTH)
        fit_height(self, _WIDTH)

    def _answer(self, text: str, action: CloseAction) -> QPushButton:
        button = QPushButton(text, self)
        button.clicked.connect(lambda: self._give(action))
        return button

    def _give(self, action: CloseAction) -> None:
        self.accept()
        self.answered.emit(action)
