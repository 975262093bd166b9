"""The preferences in memory and in their file."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Signal

from client.ui.preferences import Preferences, PreferencesError, load_preferences, save_preferences


class PreferenceStore(QObject):
    """What is taken counts even when the file cannot be written: then `problem` says so."""

    changed = Signal(Preferences)
    problem = Signal(str)
    """One sentence for the window; empty: it is solved."""

    def __init__(self, path: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._path = path
        self.value = Preferences()

    def load(self) -> None:
        try:
            self.value = load_preferences(self._path)
        except PreferencesError as error:
            self.problem.emit(str(error))

    def take(self, preferences: Preferences) -> None:
        if preferences == self.value:
            return
        self.value = preferences
        try:
            save_preferences(self._path, preferences)
            self.problem.emit("")
        except PreferencesError as error:
            self.problem.emit(str(error))
        self.changed.emit(preferences)
