"""The tray icon and its menu: the same View as the window's."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal, SignalInstance
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QSystemTrayIcon

from client.ui.artwork import logo, state_icon
from client.ui.theme import is_dark
from client.ui.view import Icon, View, Wish

_LOOK_AGAIN_MS = 1000
_MAX_LOOKS = 60
"""At login the desktop's tray may come up a minute after the app (vdu_controls issue 19)."""


class Tray(QObject):
    """Without a tray on this desktop (GNOME without its extension, offscreen) it shows nothing and says so."""

    wished = Signal(Wish)
    window_wished = Signal()
    quit_wished = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._wish = Wish.CONTRIBUTE
        self._shown_icon: tuple[Icon, bool] | None = None
        self._menu = QMenu()
        self._state = self._menu.addAction("DecentLLM")
        self._state.setEnabled(False)
        self._menu.addSeparator()
        self._add("Open DecentLLM", self.window_wished)
        self._switch = self._menu.addAction("Contribute GPU")
        self._switch.triggered.connect(lambda: self.wished.emit(self._wish))
        self._menu.addSeparator()
        self._add("Quit", self.quit_wished)
        self._icon = QSystemTrayIcon(logo(), self)
        self._icon.setContextMenu(self._menu)
        self._icon.activated.connect(self._note_click)
        self._num_looks = 0
        self._look = QTimer(self, interval=_LOOK_AGAIN_MS)
        self._look.timeout.connect(self._look_for_tray)

    def _add(self, text: str, signal: SignalInstance) -> QAction:
        action = self._menu.addAction(text)
        action.triggered.connect(lambda: signal.emit())
        return action

    def start(self) -> None:
        self._look.start()
        self._look_for_tray()

    def is_available(self) -> bool:
        return self._icon.isVisible() and QSystemTrayIcon.isSystemTrayAvailable()

    def stop(self) -> None:
        self._look.stop()
        self._icon.hide()

    def show_view(self, view: View) -> None:
        self._wish = view.wish
        wanted = (view.icon, is_dark())
        if wanted != self._shown_icon:
            self._icon.setIcon(state_icon(*wanted))
            self._shown_icon = wanted
        self._icon.setToolTip(view.tooltip)
        self._state.setText(view.headline.replace("&", "&&"))
        self._switch.setText(view.button_text)
        self._switch.setEnabled(view.button_enabled)

    def menu_actions(self) -> list[QAction]:
        return [action for action in self._menu.actions() if not action.isSeparator()]

    def say(self, title: str, sentence: str) -> None:
        self._icon.showMessage(title, sentence, logo())

    def _look_for_tray(self) -> None:
        self._num_looks += 1
        if QSystemTrayIcon.isSystemTrayAvailable():
            self._icon.show()
            self._look.stop()
        elif self._num_looks >= _MAX_LOOKS:
            self._look.stop()

    def _note_click(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        kinds = QSystemTrayIcon.ActivationReason
        if reason in (kinds.Trigger, kinds.DoubleClick):
            self.window_wished.emit()
