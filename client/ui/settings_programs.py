"""Programs that have the machine to themselves: by name, or chosen from those that run."""

from __future__ import annotations

import psutil
from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QHBoxLayout,
    QLineEdit,
    QListWidget,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from client.ui.labels import PlainLabel
from client.ui.settings_rows import silent
from client.ui.text import clean

MAX_NAME_CHARACTERS = 64
MAX_PROGRAMS = 64
"""protocol.pause.PauseRules has the same limits."""


def running_programs() -> list[str]:
    """Names of what this user runs. Kernel threads have no file; other users' programs do not tell theirs."""
    names = set()
    for process in psutil.process_iter(["name", "exe"]):
        if process.info["exe"] and process.info["name"]:
            names.add(clean(process.info["name"], MAX_NAME_CHARACTERS))
    return sorted(names, key=str.casefold)


class ProgramList(QWidget):
    """Emits `changed` with all names."""

    changed = Signal(tuple)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._list = QListWidget(self)
        self._list.setAccessibleName("Programs that have the computer to themselves")
        self._list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self._list.setFixedHeight(5 * self.fontMetrics().lineSpacing() + 12)
        self._field = QLineEdit(self)
        self._field.setAccessibleName("Name of a program")
        self._field.setPlaceholderText("Name of a program, such as blender")
        self._field.setMaxLength(MAX_NAME_CHARACTERS)
        self._add = self._button("Add", lambda: self.add(self._field.text()))
        self._choose = self._button("Choose a running one…", self._open_chooser)
        self._remove = self._button("Remove", self._remove_selected)
        self._field.returnPressed.connect(self._add.click)
        self._list.itemSelectionChanged.connect(self._show_state)
        self._lay_out()
        self._show_state()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addWidget(self._list)
        first, second = QHBoxLayout(), QHBoxLayout()
        first.addWidget(self._field, 1)
        first.addWidget(self._add)
        second.addWidget(self._choose)
        second.addWidget(self._remove)
        second.addStretch(1)
        column.addLayout(first)
        column.addLayout(second)

    def _button(self, text: str, pressed: object) -> QPushButton:
        button = QPushButton(text, self)
        button.setAutoDefault(False)
        button.clicked.connect(lambda: pressed())  # type: ignore[operator]
        return button

    def names(self) -> tuple[str, ...]:
        return tuple(self._list.item(row).text() for row in range(self._list.count()))

    def show_names(self, names: tuple[str, ...]) -> None:
        if names == self.names():
            return
        with silent(self._list):
            self._list.clear()
            self._list.addItems(list(names))
        self._show_state()

    def add(self, name: str) -> None:
        """Nothing, a name twice and one too many are left out."""
        name = clean(name, MAX_NAME_CHARACTERS)
        known = {known.casefold() for known in self.names()}
        if not name or name.casefold() in known or len(known) >= MAX_PROGRAMS:
            return
        self._list.addItem(name)
        self._field.clear()
        self._tell()

    def _remove_selected(self) -> None:
        for item in self._list.selectedItems():
            self._list.takeItem(self._list.row(item))
        self._tell()

    def _tell(self) -> None:
        self._show_state()
        self.changed.emit(self.names())

    def _show_state(self) -> None:
        self._remove.setEnabled(bool(self._list.selectedItems()))

    def _open_chooser(self) -> None:
        chooser = ProgramChooser(running_programs(), self)
        chooser.chosen.connect(self.add)
        chooser.finished.connect(chooser.deleteLater)
        chooser.open()


class ProgramChooser(QDialog):
    """Emits `chosen` with one name."""

    chosen = Signal(str)

    def __init__(self, names: list[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Choose a program")
        self._search = QLineEdit(self)
        self._search.setPlaceholderText("Search")
        self._search.setAccessibleName("Search running programs")
        self._search.textChanged.connect(self._filter)
        self._list = QListWidget(self)
        self._list.setAccessibleName("Running programs")
        self._list.addItems(names)
        self._list.itemActivated.connect(lambda _item: self._give())
        self._list.currentRowChanged.connect(lambda _row: self._show_state())
        self._ok = QPushButton("Add", self)
        self._ok.setObjectName("accept")
        self._ok.setDefault(True)
        self._ok.clicked.connect(self._give)
        cancel = QPushButton("Cancel", self)
        cancel.clicked.connect(self.reject)
        self._lay_out(cancel)
        self._show_state()
        self.resize(340, 420)

    def _lay_out(self, cancel: QPushButton) -> None:
        heading = PlainLabel(self, "muted")
        heading.setText("While the chosen program runs, this computer does not contribute.")
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 16, 16, 16)
        for widget in (heading, self._search, self._list):
            column.addWidget(widget)
        line = QHBoxLayout()
        line.addStretch(1)
        line.addWidget(cancel)
        line.addWidget(self._ok)
        column.addLayout(line)

    def _filter(self, text: str) -> None:
        for row in range(self._list.count()):
            item = self._list.item(row)
            item.setHidden(text.casefold() not in item.text().casefold())

    def _show_state(self) -> None:
        self._ok.setEnabled(self._list.currentItem() is not None)

    def _give(self) -> None:
        item = self._list.currentItem()
        if item is not None and not item.isHidden():
            self.chosen.emit(item.text())
            self.accept()
