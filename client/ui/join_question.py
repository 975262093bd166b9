"""A link that somebody opened asks; it never does anything by itself."""

from __future__ import annotations

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QDialog, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from client.ui.labels import PlainLabel, fit_height
from client.ui.plan import Plan
from client.ui.plan_card import PlanCard
from client.ui.pool_link import is_on_this_computer
from client.ui.text import MAX_NAME_CHARACTERS, clean
from protocol.join_link import JoinLink, fingerprint_text

_WIDTH = 480


class JoinQuestion(QDialog):
    """Emits `agreed` with the link. The answer that is given by mistake is no."""

    agreed = Signal(JoinLink)

    def __init__(self, link: JoinLink, now_in: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._link = link
        self.setWindowTitle("Join a pool")
        question = PlainLabel(self, scale=1.25, bold=True)
        question.setText(f"Contribute this computer to the pool at {link.host_and_port}?")
        self.setAccessibleName(question.text())
        self._plan = PlanCard(self)
        column = QVBoxLayout(self)
        column.setContentsMargins(22, 20, 22, 18)
        column.setSpacing(12)
        column.addWidget(question)
        for style, text in _sentences(link, now_in):
            label = PlainLabel(self, style)
            label.setText(text)
            column.addWidget(label)
        column.addWidget(self._plan)
        column.addStretch(1)
        column.addLayout(self._buttons())
        self.setMinimumWidth(_WIDTH)

    def show_plan(self, plan: Plan) -> None:
        self._plan.show_plan(plan)
        # Now, and when the labels have heard of their new texts.
        self._fit()
        QTimer.singleShot(0, self, self._fit)

    def _fit(self) -> None:
        fit_height(self, max(_WIDTH, self.width()))

    def _buttons(self) -> QHBoxLayout:
        self.cancel = QPushButton("Cancel", self)
        self.agree = QPushButton("Join and contribute", self)
        self.agree.setObjectName("accept")
        self.agree.setAutoDefault(False)
        self.cancel.setDefault(True)
        self.cancel.setFocus()
        self.agree.clicked.connect(self._agree)
        self.cancel.clicked.connect(self.reject)
        line = QHBoxLayout()
        line.addStretch(1)
        line.addWidget(self.cancel)
        line.addWidget(self.agree)
        return line

    def _agree(self) -> None:
        self.agreed.emit(self._link)
        self.accept()


def _sentences(link: JoinLink, now_in: str) -> list[tuple[str, str]]:
    """Each with its style."""
    pool = clean(now_in, 2 * MAX_NAME_CHARACTERS)
    now = f"You are now in the pool {pool}; you would leave it." if pool else "You are in no pool so far."
    return [
        ("", "A link asks for this. Say yes only if you know who gave it to you."),
        ("muted", now),
        *_security(link),
        *([("muted", "The link holds an invitation.")] if link.invite else []),
    ]


def _security(link: JoinLink) -> list[tuple[str, str]]:
    if link.pin:
        return [
            ("muted", "Encrypted. The pool must show the certificate with this fingerprint:"),
            ("fingerprint", _broken(fingerprint_text(link.pin))),
        ]
    if link.url.startswith("https:"):
        return [("muted", "Encrypted, with a certificate of a public authority.")]
    if is_on_this_computer(link):
        return [("muted", "The pool is on this computer.")]
    return [("alert", "Not encrypted: everybody on the way can read and change what is sent.")]


def _broken(fingerprint: str) -> str:
    """In two lines of the same length."""
    middle = len(fingerprint) // 2 + 1
    return f"{fingerprint[:middle]}\n{fingerprint[middle:]}"
