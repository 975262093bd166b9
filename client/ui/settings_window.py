"""The settings: three pages. What is changed counts without an OK button; what does not count at once says so."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import Signal
from PySide6.QtGui import QHideEvent, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import QDialog, QTabWidget, QVBoxLayout, QWidget

from client.ui.preferences import Preferences
from client.ui.settings_app import AppPage
from client.ui.settings_limits import LimitsPage
from client.ui.settings_rules import RulesPage


class SettingsWindow(QDialog):
    """Emits `changed` with all preferences, and `looked_at` when it is shown or hidden."""

    changed = Signal(Preferences)
    looked_at = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Settings")
        self.setAccessibleName("Settings")
        self._preferences = Preferences()
        self.rules, self.limits, self.app = RulesPage(self), LimitsPage(self), AppPage(self)
        self._tabs = QTabWidget(self)
        self._tabs.setDocumentMode(True)
        self._tabs.setAccessibleName("Settings")
        for page in (self.rules, self.limits, self.app):
            self._tabs.addTab(page, page.accessibleName())
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 6, 6)
        column.addWidget(self._tabs)
        self.rules.changed.connect(lambda rules: self._change(rules=rules))
        self.limits.changed.connect(self._take_limits)
        self.app.changed.connect(self._take_app)
        QShortcut(QKeySequence(QKeySequence.StandardKey.Close), self, self.close)
        self.resize(560, 640)

    def show_preferences(self, preferences: Preferences) -> None:
        self._preferences = preferences
        self.rules.show_rules(preferences.rules)
        self.limits.show_preferences(preferences)
        self.app.show_preferences(preferences)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        self.looked_at.emit(True)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802 - Qt's name
        super().hideEvent(event)
        self.looked_at.emit(False)

    def _take_limits(self, page: Preferences) -> None:
        self._change(
            max_memory_bytes=page.max_memory_bytes,
            max_disk_bytes=page.max_disk_bytes,
            direct=page.direct,
            name=page.name,
        )

    def _take_app(self, page: Preferences) -> None:
        self._change(starts_hidden=page.starts_hidden, close_action=page.close_action)

    def _change(self, **fields: object) -> None:
        self._preferences = msgspec.structs.replace(self._preferences, **fields)
        self.changed.emit(self._preferences)
