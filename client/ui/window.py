"""The main window. It holds no state of its own: `show_view` makes it look as a View says."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QApplication, QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from client.ui.artwork import logo, state_icon
from client.ui.contribute_button import ButtonRow
from client.ui.device_list import DeviceList, ProgressLine
from client.ui.labels import PlainLabel
from client.ui.pause_choice import PauseChoice
from client.ui.plan_card import PlanCard
from client.ui.pool_form import PoolForm
from client.ui.theme import is_dark
from client.ui.view import Fact, Progress, View, Wish
from protocol.join_link import JoinLink

_STATE_ICON_SIZE = QSize(64, 64)
_LOGO_SIZE = QSize(36, 36)


class MainWindow(QWidget):
    """Says what the volunteer wants by signals, and shows what is true."""

    wished = Signal(Wish)
    pause_chosen = Signal(PauseChoice, bool)
    pool_chosen = Signal(JoinLink)
    history_wished = Signal()
    settings_wished = Signal()
    log_wished = Signal()
    closed = Signal()
    """The volunteer closed the window. What that means depends on there being a tray: the app decides."""

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("DecentLLM")
        self.setWindowIcon(logo())
        self.setAccessibleName("DecentLLM")
        self._address = ""
        self._shown: tuple[View, bool] | None = None
        self._header = _Header(self)
        self._state = _StateCard(self)
        self.pool_form = PoolForm(self)
        self._buttons = ButtonRow(self)
        self.button, self.pause_button = self._buttons.button, self._buttons.pause_menu
        self._plan = PlanCard(self)
        self._plan.hide()
        self._devices = DeviceList(self)
        self._facts = _Facts(self)
        self._note = PlainLabel(self, "note")
        self._links = _Links(self)
        self._lay_out()
        self._connect()
        self.button.setFocus()
        self.resize(460, 640)
        self.setMinimumSize(360, 440)

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 18, 20, 12)
        column.setSpacing(14)
        above: list[QWidget] = [self._header, self._state, self.pool_form, self._buttons, self._plan]
        for widget in (*above, self._devices, self._facts, self._note, self._links):
            column.addWidget(widget)
        column.setStretchFactor(self._devices, 1)

    def _connect(self) -> None:
        self.button.wished.connect(self._pass_on)
        self.pause_button.chosen.connect(self.pause_chosen)
        self.pool_form.submitted.connect(lambda: self._pass_on(Wish.CONTRIBUTE))
        self._header.settings.clicked.connect(lambda: self.settings_wished.emit())
        self._links.change_pool.clicked.connect(lambda: self._switch_form())
        self._links.history.clicked.connect(lambda: self.history_wished.emit())
        self._links.open_log.clicked.connect(lambda: self.log_wished.emit())
        QShortcut(QKeySequence(QKeySequence.StandardKey.Close), self, self.close)

    def show_view(self, view: View) -> None:
        """Cheap when nothing is new."""
        if (view, is_dark()) == self._shown:
            return
        self._shown = (view, is_dark())
        self._header.show_pool(view.pool_name)
        self._state.show_view(view)
        self._buttons.show_view(view)
        self._plan.setVisible(view.plan is not None)
        if view.plan is not None:
            self._plan.show_plan(view.plan)
        self._devices.show_devices(view.devices)
        self._facts.show_facts(view.facts)
        self._facts.setVisible(view.plan is None)
        self._note.show_text(view.note)

    def show_pool(self, address: str | None, fixed: bool) -> None:
        """Without an address there is a field for it; a `fixed` one came with the command line."""
        self._address = address or ""
        self._header.show_address(self._address)
        self._links.change_pool.setVisible(bool(address) and not fixed)
        if address is None:
            self.pool_form.open_with("")
        else:
            self.pool_form.hide()

    def show_problem(self, sentence: str) -> None:
        """Something about the app itself rather than the agent, such as an unreadable settings file."""
        self._state.show_problem(sentence)

    def bring_to_front(self) -> None:
        self.showNormal() if self.isMinimized() else self.show()
        self.raise_()
        self.activateWindow()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        event.ignore()
        self.closed.emit()

    def _switch_form(self) -> None:
        if self.pool_form.isHidden():
            self.pool_form.open_with(self._address)
        else:
            self.pool_form.hide()

    def _pass_on(self, wish: Wish) -> None:
        """A link that was pasted is taken with the wish to contribute."""
        if wish is Wish.CONTRIBUTE and not self.pool_form.isHidden():
            link = self.pool_form.link()
            if link is None:
                return
            self.pool_chosen.emit(link)
        self.wished.emit(wish)


class _Header(QWidget):
    """Whose app this is and which pool it is in."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        picture = QLabel(self)
        picture.setTextFormat(Qt.TextFormat.PlainText)
        picture.setPixmap(logo().pixmap(_LOGO_SIZE, self.devicePixelRatioF()))
        picture.setAccessibleName("DecentLLM's logo")
        title = PlainLabel(self, scale=1.3, bold=True)
        title.setText("DecentLLM")
        self._pool = PlainLabel(self, "muted")
        self._address = ""
        self._pool_name = ""
        self.settings = link_button("Settings", self)
        texts = QVBoxLayout()
        texts.setSpacing(0)
        texts.addWidget(title)
        texts.addWidget(self._pool)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(12)
        line.addWidget(picture)
        line.addLayout(texts, 1)
        line.addWidget(self.settings, 0, Qt.AlignmentFlag.AlignTop)

    def show_address(self, address: str) -> None:
        self._address = address
        self._show()

    def show_pool(self, name: str) -> None:
        self._pool_name = name
        self._show()

    def _show(self) -> None:
        named = f"Pool “{self._pool_name}” at {self._address}" if self._pool_name else f"Pool at {self._address}"
        self._pool.show_text(named if self._address else "No pool chosen yet")


class _StateCard(QFrame):
    """What happens now: a picture, a headline, a sentence and, while bytes move, a bar."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setObjectName("card")
        self._picture = QLabel(self)
        self._picture.setTextFormat(Qt.TextFormat.PlainText)
        self._headline = PlainLabel(self, scale=1.35, bold=True)
        self._subject = PlainLabel(self, scale=1.1)
        self._sentence = PlainLabel(self, "muted")
        self._progress = ProgressLine(self)
        self._amount = PlainLabel(self, "muted", scale=0.92)
        self._problem = PlainLabel(self, "alert")
        self._problem.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(18, 18, 18, 18)
        column.setSpacing(6)
        column.addStretch(1)
        column.addWidget(self._picture, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addSpacing(4)
        for label in (self._headline, self._subject, self._sentence, self._progress, self._amount, self._problem):
            column.addWidget(label)
        column.addStretch(1)
        for label in (self._headline, self._subject, self._sentence, self._amount, self._problem):
            label.setAlignment(Qt.AlignmentFlag.AlignHCenter)

    def show_view(self, view: View) -> None:
        # Tall enough for most states, so that the button below stays where the mouse is.
        num_lines = 12 if view.plan is None else 9
        self.setMinimumHeight(num_lines * self.fontMetrics().lineSpacing() + _STATE_ICON_SIZE.height() // 4)
        self._picture.setPixmap(state_icon(view.icon, is_dark()).pixmap(_STATE_ICON_SIZE, self.devicePixelRatioF()))
        self._picture.setAccessibleName(f"State: {view.headline}")
        self._headline.show_text(view.headline)
        self._subject.show_text(view.subject)
        self._sentence.show_text(view.sentence)
        self._show_progress(view.progress)

    def _show_progress(self, progress: Progress | None) -> None:
        self._progress.show_progress(progress)
        self._amount.show_text("" if progress is None or progress.fraction is None else progress.text)

    def show_problem(self, sentence: str) -> None:
        self._problem.show_text(sentence)


class _Facts(QWidget):
    """Figures side by side, each over what it counts."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._line = QHBoxLayout(self)
        self._line.setContentsMargins(4, 0, 4, 0)
        self._pairs: list[tuple[PlainLabel, PlainLabel]] = []

    def show_facts(self, facts: tuple[Fact, ...]) -> None:
        while len(self._pairs) < len(facts):
            self._pairs.append(self._add_pair())
        for (value, label), fact in zip(self._pairs, facts, strict=True):
            value.show_text(fact.value)
            label.show_text(fact.label)

    def _add_pair(self) -> tuple[PlainLabel, PlainLabel]:
        value = PlainLabel(self, scale=1.35, bold=True)
        label = PlainLabel(self, "factLabel", scale=0.92)
        label.setBuddy(value)
        column = QVBoxLayout()
        column.setSpacing(0)
        column.addWidget(value)
        column.addWidget(label)
        self._line.addLayout(column, 1)
        return value, label


class _Links(QWidget):
    """What is needed seldom."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.change_pool = link_button("Change pool…", self)
        self.history = link_button("Why did it pause?", self)
        self.open_log = link_button("Open the log", self)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.change_pool)
        line.addStretch(1)
        line.addWidget(self.history)
        line.addStretch(1)
        line.addWidget(self.open_log)


def link_button(text: str, parent: QWidget) -> QPushButton:
    """A button that looks like a link."""
    link = QPushButton(text, parent)
    link.setObjectName("link")
    link.setFlat(True)
    link.setAutoDefault(False)
    link.setCursor(Qt.CursorShape.PointingHandCursor)
    link.setAccessibleName(text)
    return link


def save_picture(window: QWidget, path: Path) -> None:
    """The window as it looks now, as a PNG. Raises OSError."""
    QApplication.processEvents()
    if not window.grab().save(str(path), "PNG"):
        raise OSError(f"the picture could not be written to {path}")
