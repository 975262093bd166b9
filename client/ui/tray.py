"""The tray icon and its menu: the same View as the window's."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal, SignalInstance
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QSystemTrayIcon

from client.ui.artwork import logo, state_icon
from client.ui.pause_choice import PauseChoice
from client.ui.pause_menu import PauseMenu
from client.ui.theme import is_dark
from client.ui.tray_host import TrayHost, tray_host
from client.ui.view import Icon, View, Wish

FIRST_LOOK_MS = 50
LOOK_AGAIN_MS = 1000
LATER_LOOK_MS = 15_000
MAX_LOOKS = 60
"""At login the desktop's tray may come up a minute after the app (vdu_controls issue 19)."""


class Tray(QObject):
    """Without a tray on this desktop (GNOME without its extension, offscreen) it shows nothing and says so.

    Qt puts a shown icon into a tray that comes back by itself (a panel or Explorer that was restarted)."""

    wished = Signal(Wish)
    pause_chosen = Signal(PauseChoice, bool)
    window_wished = Signal()
    history_wished = Signal()
    settings_wished = Signal()
    quit_wished = Signal()
    missing = Signal()
    """There has been no tray for a minute: whoever hides in it is not seen."""

    def __init__(self, parent: QObject | None = None, host: TrayHost | None = None) -> None:
        super().__init__(parent)
        self._host = host or tray_host(self)
        self._view: View | None = None
        self._wish = Wish.CONTRIBUTE
        self._shown_icon: tuple[Icon, bool] | None = None
        self._menu = QMenu()
        self._pause = PauseMenu("Pause", self._menu)
        self._finish = PauseMenu("Pause after the current answers", self._menu, after_answers=True)
        self._build_menu()
        self._icon: QSystemTrayIcon | None = None
        self._num_misses = 0
        self._look = QTimer(self, interval=LOOK_AGAIN_MS)
        self._look.timeout.connect(self.look_for_tray)

    def _build_menu(self) -> None:
        self._state, self._reason = self._menu.addAction("DecentLLM"), self._menu.addAction("")
        for line in (self._state, self._reason):
            line.setEnabled(False)
        self._reason.setVisible(False)
        self._menu.addSeparator()
        self._add("Open DecentLLM", self.window_wished)
        self._switch = self._menu.addAction("Contribute GPU")
        self._switch.triggered.connect(lambda: self.wished.emit(self._wish))
        for pause in (self._pause, self._finish):
            self._menu.addMenu(pause)
            pause.menuAction().setVisible(False)
            pause.chosen.connect(self.pause_chosen)
        self._add("Why did it pause?", self.history_wished)
        self._add("Settings…", self.settings_wished)
        self._menu.addSeparator()
        self._add("Quit", self.quit_wished)

    def _add(self, text: str, signal: SignalInstance) -> QAction:
        action = self._menu.addAction(text)
        action.triggered.connect(lambda: signal.emit())
        return action

    def start(self) -> None:
        self._look.start()
        self.look_for_tray()
        # The panel's answer is there soon after the question.
        QTimer.singleShot(FIRST_LOOK_MS, self, self.look_for_tray)

    def is_available(self) -> bool:
        icon = self._icon
        return icon is not None and icon.isVisible() and QSystemTrayIcon.isSystemTrayAvailable()

    def is_being_looked_for(self) -> bool:
        return self._look.isActive() and self._num_misses < MAX_LOOKS

    def stop(self) -> None:
        self._look.stop()
        if self._icon is not None:
            self._icon.hide()

    def show_view(self, view: View) -> None:
        self._view = view
        self._wish = view.wish
        if self._icon is not None:
            self._show_icon(self._icon, view)
        self._state.setText(view.headline.replace("&", "&&"))
        self._reason.setText(view.reason.replace("&", "&&"))
        self._reason.setVisible(bool(view.reason))
        self._switch.setText(view.button_text)
        self._switch.setVisible(view.wish is not Wish.PAUSE)
        self._switch.setEnabled(view.button_enabled)
        self._pause.menuAction().setVisible(view.can_pause)
        self._finish.menuAction().setVisible(view.can_finish)

    def _show_icon(self, icon: QSystemTrayIcon, view: View) -> None:
        """Each of these goes over the session's bus: only what has changed."""
        wanted = (view.icon, is_dark())
        if wanted != self._shown_icon:
            icon.setIcon(state_icon(*wanted))
            self._shown_icon = wanted
        if view.tooltip != icon.toolTip():
            icon.setToolTip(view.tooltip)

    def menu_actions(self) -> list[QAction]:
        """What can be seen."""
        return [action for action in self._menu.actions() if not action.isSeparator() and action.isVisible()]

    def icon(self) -> QSystemTrayIcon | None:
        return self._icon

    def _make_icon(self) -> QSystemTrayIcon:
        icon = QSystemTrayIcon(logo(), self)
        icon.setContextMenu(self._menu)
        icon.activated.connect(self._note_click)
        if self._view is not None:
            self._show_icon(icon, self._view)
        return icon

    def look_for_tray(self) -> None:
        """Often at first, then now and then: a tray that has gone for good must be noticed."""
        if not self._look.isActive():
            return
        if self._host.is_ready() and QSystemTrayIcon.isSystemTrayAvailable():
            self._num_misses = 0
            self._icon = self._icon or self._make_icon()
            self._icon.show()
            self._look.setInterval(LATER_LOOK_MS)
            return
        self._num_misses += 1
        if self._num_misses == 1:
            self._look.setInterval(LOOK_AGAIN_MS)
        if self._num_misses == MAX_LOOKS:
            self._look.setInterval(LATER_LOOK_MS)
            self.missing.emit()

    def _note_click(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        kinds = QSystemTrayIcon.ActivationReason
        if reason in (kinds.Trigger, kinds.DoubleClick):
            self.window_wished.emit()
