"""The tray app, wired together: window, tray, agent process, single instance, settings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PySide6.QtCore import QObject, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QApplication

from client import paths
from client.supervisor import ContributePressed, PausePressed, PoolChanged, QuitPressed, Snapshot
from client.ui.agent_process import AgentProcess
from client.ui.artwork import logo
from client.ui.preferences import (
    FILE_NAME,
    AddressError,
    Preferences,
    PreferencesError,
    load_preferences,
    parse_pool_address,
    save_preferences,
)
from client.ui.single_instance import SingleInstance
from client.ui.theme import apply_theme
from client.ui.tray import Tray
from client.ui.unix_signals import QuitSignals
from client.ui.view import Wish, view_of
from client.ui.window import MainWindow

logger = logging.getLogger(__name__)

EXIT_ALREADY_RUNNING = 0
EXIT_NO_ANSWER = 1


@dataclass(frozen=True, slots=True)
class GuiSettings:
    """A `join_url` given here counts instead of the remembered one. `agent_program` is what starts the agent; empty:
    this program itself. Folders that are None are the platform's."""

    join_url: str | None = None
    agent_arguments: tuple[str, ...] = ()
    data_dir: Path | None = None
    config_dir: Path | None = None
    log_dir: Path | None = None
    agent_program: tuple[str, ...] = ()
    start_contributing: bool = False
    start_hidden: bool = False


def run_gui(settings: GuiSettings) -> int:
    """Until the volunteer quits. Returns the exit status."""
    app = _application()
    instance = SingleInstance(_folder(settings.config_dir, paths.config_dir))
    if not instance.acquire():
        return _show_first(instance)
    gui = Gui(settings)
    instance.show_wished.connect(gui.window.bring_to_front)
    # Not quit(): that asks every window to close first, and ours hides instead.
    gui.agent.finished.connect(lambda: app.exit(0))
    signals = QuitSignals()
    signals.received.connect(gui.quit)
    try:
        gui.start()
        return app.exec()
    finally:
        gui.close()
        signals.close()
        instance.release()


def _show_first(instance: SingleInstance) -> int:
    if instance.show_first():
        return EXIT_ALREADY_RUNNING
    logger.error("DecentLLM runs already, but its window does not answer")
    return EXIT_NO_ANSWER


def agent_argv(settings: GuiSettings, join_url: str) -> list[str]:
    """The agent's command line. In a frozen app `sys.executable` is the app itself, which takes the same arguments."""
    itself = (sys.executable,) if getattr(sys, "frozen", False) else (sys.executable, "-m", "client")
    argv = [*(settings.agent_program or (*itself, "node", "run")), "--attached", "--join", join_url]
    if settings.data_dir is not None:
        argv += ["--data-dir", str(settings.data_dir)]
    return [*argv, *settings.agent_arguments]


def _application() -> QApplication:
    running = QApplication.instance()
    app = running if isinstance(running, QApplication) else QApplication(sys.argv[:1])
    app.setApplicationName("decentllm")
    app.setApplicationDisplayName("DecentLLM")
    app.setDesktopFileName("decentllm")
    app.setWindowIcon(logo())
    # The window hides into the tray; what ends the app is the agent's end.
    app.setQuitOnLastWindowClosed(False)
    apply_theme(app)
    return app


def _folder(given: Path | None, platform: Callable[[], Path]) -> Path:
    """A folder that exists: the one given, else the platform's."""
    return paths.private_folder(given) if given is not None else platform()


class Gui(QObject):
    """Everything that is on the screen, and the agent behind it. Needs a QApplication."""

    def __init__(self, settings: GuiSettings) -> None:
        super().__init__()
        self._settings = settings
        self._preferences_file = _folder(settings.config_dir, paths.config_dir) / FILE_NAME
        self._preferences = Preferences()
        self._log_dir = _folder(settings.log_dir, paths.log_dir)
        self._told_about_tray = False
        self._given_url: str | None = None
        self.window = MainWindow()
        self.tray = Tray(self)
        self.agent = AgentProcess(self._argv, self._log_dir / "agent.log", self)
        self._load_preferences()
        self._connect()
        self._show(self.agent.snapshot())

    def start(self) -> None:
        self.tray.start()
        if not (self._settings.start_hidden and self.tray.is_available()):
            self.window.show()
        if self._settings.start_contributing and self._join_url():
            self.agent.press(ContributePressed())

    def quit(self) -> None:
        """Let the agent leave the pool, then end."""
        self.agent.press(QuitPressed())

    def close(self) -> None:
        self.agent.close()
        self.tray.stop()
        self.window.hide()

    def _connect(self) -> None:
        self.agent.changed.connect(self._show)
        QApplication.styleHints().colorSchemeChanged.connect(lambda _scheme: self._show(self.agent.snapshot()))
        self.window.contribute_wished.connect(lambda: self.agent.press(ContributePressed()))
        self.window.pause_wished.connect(lambda: self.agent.press(PausePressed()))
        self.window.pool_chosen.connect(self._choose_pool)
        self.window.log_wished.connect(self._open_log)
        self.window.closed.connect(self._note_closed)
        self.tray.wished.connect(self._note_tray_wish)
        self.tray.window_wished.connect(self.window.bring_to_front)
        self.tray.quit_wished.connect(self.quit)

    def _show(self, snapshot: Snapshot) -> None:
        view = view_of(snapshot)
        self.window.show_view(view)
        self.tray.show_view(view)

    # ------------------------------------------------------------ pool

    def _join_url(self) -> str | None:
        return self._given_url or self._preferences.join_url or None

    def _argv(self) -> list[str]:
        return agent_argv(self._settings, self._join_url() or "")

    def _load_preferences(self) -> None:
        try:
            self._preferences = load_preferences(self._preferences_file)
            if self._settings.join_url is not None:
                self._given_url = parse_pool_address(self._settings.join_url)
        except (PreferencesError, AddressError) as error:
            self.window.show_problem(str(error))
        self.window.show_pool(self._join_url(), fixed=self._given_url is not None)

    def _choose_pool(self, address: str) -> None:
        changed = address != self._preferences.join_url
        self._preferences = replace(self._preferences, join_url=address)
        self.window.show_pool(address, fixed=False)
        try:
            save_preferences(self._preferences_file, self._preferences)
            self.window.show_problem("")
        except PreferencesError as error:
            self.window.show_problem(str(error))
        if changed:
            self.agent.press(PoolChanged())

    # ------------------------------------------------------------ window and tray

    def _note_tray_wish(self, wish: Wish) -> None:
        if wish is Wish.PAUSE:
            self.agent.press(PausePressed())
        elif self._join_url() is None:
            self.window.bring_to_front()
        else:
            self.agent.press(ContributePressed())

    def _note_closed(self) -> None:
        if not self.tray.is_available():
            self.quit()
            return
        self.window.hide()
        if not self._told_about_tray:
            self._told_about_tray = True
            self.tray.say(
                "DecentLLM is still here", "It goes on in the background. Its icon in the tray opens it again."
            )

    def _open_log(self) -> None:
        if not QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._log_dir))):
            self.window.show_problem(f"The log is in {self._log_dir}.")
