"""The page of the settings that says how much of the machine is used. Counts from the agent's next start."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import Signal
from PySide6.QtWidgets import QButtonGroup, QLineEdit, QPushButton, QRadioButton, QWidget

from client.config import MAX_DISK_BYTES, Direct
from client.ui.preferences import MIN_DISK_BYTES, MIN_MEMORY_BYTES, Preferences
from client.ui.settings_rows import Card, Gigabytes, Page, TickBox, silent
from client.ui.text import MAX_NAME_CHARACTERS, clean

_GIB, _GB = 2**30, 10**9
_INDENT = 26
_USUAL_MEMORY_BYTES = 8 * _GIB
_SEEN = "The other volunteers in a chain then see this computer's IP address."
_DIRECT = {
    Direct.AUTO: ("Only on the local network", "With a pool that is not, all data goes through the pool."),
    Direct.ON: ("With any pool", f"Answers come faster. {_SEEN}"),
    Direct.OFF: ("Never", "All data goes through the pool. Nobody but the pool sees this computer's IP address."),
}


class LimitsPage(Page):
    """Emits `changed` with the preferences, and what else is wished for."""

    changed = Signal(Preferences)
    restart_wished = Signal()
    folder_wished = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Limits and network", parent)
        self._preferences = Preferences()
        self._has_memory = TickBox("Use at most")
        self._memory = Gigabytes("Most memory of each GPU", MIN_MEMORY_BYTES / _GIB, 1024)
        self._disk = Gigabytes("Most disk space for layers", MIN_DISK_BYTES / _GB, 100_000)
        self._name = QLineEdit()
        self._direct: dict[Direct, QRadioButton] = {}
        self._open = QPushButton("Open")
        self._restart = QPushButton("Start again with them now")
        self._add_restart()
        self._add_memory(self.add_card("GPU memory"))
        self._add_disk(self.add_card("Disk"))
        self._add_direct(self.add_card("Direct links between volunteers"))
        self._add_name(self.add_card("Name of this computer"))
        self._connect()
        self.show_preferences(self._preferences)
        self.show_folder("")

    def _add_restart(self) -> None:
        self._pending = self.add_card("Not in use yet")
        self._pending.explain("These settings count from the next start of contributing.")
        self._pending.line(self._restart)
        self._pending.hide()

    def _add_memory(self, card: Card) -> None:
        self._has_memory.setAccessibleName("Limit the memory of each GPU")
        card.line(self._has_memory, self._memory, "of each GPU's memory")
        card.explain("Without a limit it takes what is free when it starts, less a reserve.")

    def _add_disk(self, card: Card) -> None:
        card.line("Keep at most", self._disk, "of layers")
        self._folder = card.explain("")
        card.line(self._open)

    def _add_direct(self, card: Card) -> None:
        group = QButtonGroup(self)
        for direct, (text, sentence) in _DIRECT.items():
            button = QRadioButton(text)
            button.setAccessibleDescription(sentence)
            button.toggled.connect(lambda checked, direct=direct: self._change(direct=direct) if checked else None)
            group.addButton(button)
            self._direct[direct] = button
            card.add(button)
            card.explain(sentence, indent=_INDENT)

    def _add_name(self, card: Card) -> None:
        self._name.setAccessibleName("Name of this computer")
        self._name.setMaxLength(MAX_NAME_CHARACTERS)
        card.add(self._name)
        card.explain("The pool's operator and the other members see it. Empty: the name that the system has for it.")

    def _connect(self) -> None:
        self._has_memory.toggled.connect(lambda _checked: self._change_memory())
        self._memory.valueChanged.connect(lambda _size: self._change_memory())
        self._disk.valueChanged.connect(lambda size: self._change(max_disk_bytes=round(size * _GB)))
        self._name.editingFinished.connect(self._change_name)
        self._open.setAccessibleName("Open the folder with the layers")
        self._open.clicked.connect(lambda: self.folder_wished.emit())
        self._restart.clicked.connect(lambda: self.restart_wished.emit())

    def show_preferences(self, preferences: Preferences) -> None:
        self._preferences = preferences
        memory = preferences.max_memory_bytes
        with silent(self._has_memory, self._memory, self._disk, self._name, *self._direct.values()):
            self._has_memory.setChecked(memory is not None)
            self._memory.setValue((memory or _USUAL_MEMORY_BYTES) / _GIB)
            self._disk.setValue((preferences.max_disk_bytes or MAX_DISK_BYTES) / _GB)
            self._name.setText(preferences.name)
            self._direct[preferences.direct].setChecked(True)
        self._memory.setEnabled(memory is not None)

    def show_folder(self, folder: str) -> None:
        """Where layers are kept; empty: not known yet."""
        self._folder.show_text(f"They are in {folder}" if folder else "")
        self._open.setVisible(bool(folder))

    def show_pending(self, is_pending: bool) -> None:
        """A contribution runs with other settings than these."""
        self._pending.setVisible(is_pending)

    def show_system_name(self, name: str) -> None:
        self._name.setPlaceholderText(name)

    def _change(self, **fields: object) -> None:
        self._preferences = msgspec.structs.replace(self._preferences, **fields)
        self.changed.emit(self._preferences)

    def _change_memory(self) -> None:
        self._memory.setEnabled(self._has_memory.isChecked())
        limit = round(self._memory.value() * _GIB) if self._has_memory.isChecked() else None
        self._change(max_memory_bytes=limit)

    def _change_name(self) -> None:
        if (name := clean(self._name.text(), MAX_NAME_CHARACTERS)) != self._preferences.name:
            self._change(name=name)
