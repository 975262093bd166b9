"""The volunteer's devices: name, state, layers, progress."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QProgressBar, QScrollArea, QVBoxLayout, QWidget

from client.ui.artwork import state_icon
from client.ui.labels import PlainLabel
from client.ui.theme import is_dark
from client.ui.view import DeviceView, Progress

_ICON_SIZE = QSize(26, 26)


class ProgressLine(QProgressBar):
    """A thin bar without text, which moves by itself while the total is not known."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setTextVisible(False)

    def show_progress(self, progress: Progress | None) -> None:
        self.setVisible(progress is not None)
        if progress is None:
            return
        self.setAccessibleName(f"Progress: {progress.text}")
        self.setRange(0, 0 if progress.fraction is None else 100)
        if progress.fraction is not None:
            self.setValue(round(progress.fraction * 100))


class DeviceCard(QFrame):
    """One device."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("card")
        self._icon = QLabel(self)
        self._icon.setTextFormat(Qt.TextFormat.PlainText)
        self._name = PlainLabel(self, bold=True)
        self._state = PlainLabel(self, "muted")
        self._layers = PlainLabel(self, "muted")
        self._progress = ProgressLine(self)
        grid = QGridLayout(self)
        grid.setContentsMargins(14, 10, 14, 10)
        grid.setHorizontalSpacing(12)
        grid.setVerticalSpacing(4)
        grid.addWidget(self._icon, 0, 0, 2, 1)
        grid.addLayout(self._first_line(), 0, 1)
        grid.addWidget(self._layers, 1, 1)
        grid.addWidget(self._progress, 2, 0, 1, 2)
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(0, 1)

    def _first_line(self) -> QHBoxLayout:
        line = QHBoxLayout()
        line.addWidget(self._name, 1)
        line.addWidget(self._state)
        self._state.setWordWrap(False)
        return line

    def show_device(self, device: DeviceView) -> None:
        self._icon.setPixmap(state_icon(device.icon, is_dark()).pixmap(_ICON_SIZE, self.devicePixelRatioF()))
        self._icon.setAccessibleName(device.state)
        self._name.show_text(device.name)
        self._state.show_text(device.state)
        self._layers.show_text(device.layers)
        self._progress.show_progress(device.progress)
        self.setAccessibleName(", ".join(part for part in (device.name, device.state, device.layers) if part))


class DeviceList(QScrollArea):
    """Keeps its cards while the devices stay the same in number, so that updates do not flicker."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("devices")
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Your devices")
        inner = QWidget(self)
        inner.setObjectName("deviceList")
        self._column = QVBoxLayout(inner)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(8)
        self._column.addStretch(1)
        self._cards: list[DeviceCard] = []
        self.setWidget(inner)

    def show_devices(self, devices: tuple[DeviceView, ...]) -> None:
        while len(self._cards) > len(devices):
            card = self._cards.pop()
            self._column.removeWidget(card)
            card.hide()
            card.deleteLater()
        while len(self._cards) < len(devices):
            card = DeviceCard(self.widget())
            self._column.insertWidget(len(self._cards), card)
            # Not left to the layout, which shows a new widget only when the event loop runs again.
            card.show()
            self._cards.append(card)
        for card, device in zip(self._cards, devices, strict=True):
            card.show_device(device)
