"""The tray app, wired together: windows, tray, agent process, desktop session, single instance, settings."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from PySide6.QtCore import QObject, QTimer, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QApplication

from client import paths
from client.arguments import JOIN_VARIABLE
from client.autostart import Autostart, AutostartError, system_autostart
from client.config import Direct
from client.facts import Facts
from client.status import AgentState
from client.supervisor import (
    ContributePressed,
    PausePressed,
    PoolChanged,
    QuitPressed,
    RulesChanged,
    SessionRead,
    Snapshot,
)
from client.supervisor_table import LISTENING, Phase
from client.ui.agent_process import AgentProcess, Launch
from client.ui.artwork import logo
from client.ui.close_question import CloseQuestion
from client.ui.facts_process import FactsProcess
from client.ui.history_window import HistoryWindow
from client.ui.join_question import JoinQuestion
from client.ui.manual_pause import ManualPauseClock
from client.ui.pause_choice import ManualPause, PauseChoice, pause_of
from client.ui.plan import Plan, plan_of
from client.ui.pool_link import parse_pool_link, without_invitation
from client.ui.preference_store import PreferenceStore
from client.ui.preferences import FILE_NAME, CloseAction, Preferences
from client.ui.session_watch import Session, SessionWatch, open_desktop
from client.ui.settings_window import SettingsWindow
from client.ui.single_instance import SingleInstance
from client.ui.theme import apply_theme
from client.ui.tray import Tray
from client.ui.unix_signals import QuitSignals
from client.ui.view import Surroundings, View, Wish, view_of
from client.ui.window import MainWindow
from protocol.join_link import JoinLink, JoinLinkError, format_join_link

logger = logging.getLogger(__name__)

EXIT_ALREADY_RUNNING = 0
EXIT_NO_ANSWER = 1
_COUNT_DOWN_MS = 1000


@dataclass(frozen=True, slots=True)
class GuiSettings:
    """A `join_url` (a link or an address) given here counts instead of the remembered one. `offered_link` is one that
    somebody opened: it is asked about, never followed. `agent_program` and `facts_program` are what starts the agent
    and what tells the facts; empty: this program itself. Folders that are None are the platform's."""

    join_url: str | None = None
    offered_link: JoinLink | None = None
    agent_arguments: tuple[str, ...] = ()
    data_dir: Path | None = None
    config_dir: Path | None = None
    log_dir: Path | None = None
    agent_program: tuple[str, ...] = ()
    facts_program: tuple[str, ...] = ()
    start_contributing: bool = False
    start_hidden: bool = False
    autostart: Autostart = field(default_factory=system_autostart)
    open_session: Callable[[], Session] = open_desktop


def run_gui(settings: GuiSettings) -> int:
    """Until the volunteer quits. Returns the exit status."""
    app = _application()
    instance = SingleInstance(_folder(settings.config_dir, paths.config_dir))
    if not instance.acquire():
        return _show_first(instance, settings.offered_link)
    gui = Gui(settings)
    instance.show_wished.connect(gui.window.bring_to_front)
    instance.link_offered.connect(gui.offer)
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


def _show_first(instance: SingleInstance, link: JoinLink | None) -> int:
    if instance.show_first(link):
        return EXIT_ALREADY_RUNNING
    logger.error("DecentLLM runs already, but its window does not answer")
    return EXIT_NO_ANSWER


def itself() -> tuple[str, ...]:
    """What starts this program. In a frozen app `sys.executable` is the app itself, which takes the same arguments."""
    return (sys.executable,) if getattr(sys, "frozen", False) else (sys.executable, "-m", "client")


def agent_launch(settings: GuiSettings, preferences: Preferences, link: JoinLink) -> Launch:
    """The link goes by the environment: it may hold an invitation, and all users can read a command line."""
    argv = [*(settings.agent_program or (*itself(), "node", "run")), "--attached", *limit_words(preferences)]
    if settings.data_dir is not None:
        argv += ["--data-dir", str(settings.data_dir)]
    # Last: what the app was started with counts more than what it remembers.
    return Launch((*argv, *settings.agent_arguments), {JOIN_VARIABLE: format_join_link(link)})


def limit_words(preferences: Preferences) -> list[str]:
    """The volunteer's limits as the agent's arguments."""
    words = ["--name", preferences.name] if preferences.name else []
    words += ["--max-memory", str(preferences.max_memory_bytes)] if preferences.max_memory_bytes else []
    words += ["--max-disk", str(preferences.max_disk_bytes)] if preferences.max_disk_bytes else []
    return words + (["--direct", preferences.direct.value] if preferences.direct is not Direct.AUTO else [])


def facts_argv(settings: GuiSettings) -> list[str]:
    """With the words that decide which devices the agent would find."""
    argv = [*(settings.facts_program or (*itself(), "node", "facts"))]
    argv += ["--data-dir", str(settings.data_dir)] if settings.data_dir is not None else []
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


def _host(link: JoinLink | None) -> str:
    return "" if link is None else link.host_and_port


def _folder(given: Path | None, platform_folder: Callable[[], Path]) -> Path:
    """A folder that exists: the one given, else the platform's."""
    return paths.private_folder(given) if given is not None else platform_folder()


class Gui(QObject):
    """Everything that is on the screen, and the agent behind it. Needs a QApplication."""

    def __init__(self, settings: GuiSettings) -> None:
        super().__init__()
        self._settings = settings
        self._log_dir = _folder(settings.log_dir, paths.log_dir)
        self._given_link: JoinLink | None = None
        self._facts: Facts | None = None
        self._launched: list[str] | None = None
        self._launched_link: JoinLink | None = None
        self.store = PreferenceStore(_folder(settings.config_dir, paths.config_dir) / FILE_NAME, self)
        self.window = MainWindow()
        self.settings_window = SettingsWindow(self.window)
        self.history_window = HistoryWindow(self.window)
        self.question: JoinQuestion | None = None
        self.tray = Tray(self)
        self.agent = AgentProcess(self._launch, self._log_dir / "agent.log", self)
        self.pause_clock = ManualPauseClock(parent=self)
        self.watch = SessionWatch(settings.open_session, self)
        self._facts_process = FactsProcess(self)
        self._count_down = QTimer(self, interval=_COUNT_DOWN_MS)
        self._connect()
        self._load()
        self._refresh()

    def start(self) -> None:
        self.tray.start()
        hides = self._settings.start_hidden and (self.tray.is_available() or self.tray.is_being_looked_for())
        if not hides:
            self.window.show()
        self._go_on()
        if self._settings.offered_link is not None:
            self.offer(self._settings.offered_link)

    def _go_on(self) -> None:
        """With what the volunteer wished for last; a pause that has ended meanwhile has ended."""
        self.pause_clock.hold(self.store.value.pause)
        wants = self._settings.start_contributing or (self.store.value.contributes and self._given_link is None)
        is_stopped = self.agent.snapshot().phase is Phase.STOPPED
        if wants and is_stopped and self.link() is not None and self.pause_clock.pause is None:
            self.contribute()
        elif is_stopped:
            self._ask_facts()

    def quit(self) -> None:
        """Let the agent leave the pool, then end."""
        self.agent.press(QuitPressed())

    def close(self) -> None:
        self.watch.close()
        self._count_down.stop()
        self._facts_process.close()
        self.agent.close()
        self.tray.stop()
        for window in (self.settings_window, self.history_window, self.window):
            window.hide()

    def _connect(self) -> None:
        self.agent.changed.connect(self._show)
        QApplication.styleHints().colorSchemeChanged.connect(lambda _scheme: self._refresh())
        self.store.problem.connect(self.window.show_problem)
        self.store.changed.connect(lambda _preferences: self._follow_preferences())
        self.pause_clock.over.connect(self._end_pause)
        self.watch.read.connect(lambda reading: self.agent.handle(SessionRead(reading)))
        self.watch.named.connect(self.settings_window.rules.show_sources)
        self._facts_process.found.connect(self._take_facts)
        self._count_down.timeout.connect(self._refresh)
        self._connect_windows()

    def _connect_windows(self) -> None:
        for source in (self.window, self.tray):
            source.wished.connect(self._follow_wish)
            source.pause_chosen.connect(self.pause)
            source.history_wished.connect(lambda: self._open(self.history_window))
            source.settings_wished.connect(lambda: self._open(self.settings_window))
        self.window.pool_chosen.connect(self._choose_pool)
        self.window.log_wished.connect(lambda: self._open_folder(self._log_dir))
        self.window.closed.connect(self._note_closed)
        self.tray.window_wished.connect(self.window.bring_to_front)
        self.tray.quit_wished.connect(self.quit)
        self.tray.missing.connect(lambda: self.window.show())
        page = self.settings_window
        page.changed.connect(self.store.take)
        page.looked_at.connect(self._note_settings_looked_at)
        page.limits.restart_wished.connect(lambda: self.agent.press(PoolChanged()))
        page.limits.folder_wished.connect(lambda: self._open_folder(Path(self._weights_folder())))
        page.app.autostart_wished.connect(self._set_autostart)

    # ------------------------------------------------------------ what is shown

    def _refresh(self) -> None:
        self._show(self.agent.snapshot())

    def _show(self, snapshot: Snapshot) -> None:
        self._note_progress(snapshot)
        view = view_of(snapshot, Surroundings(time.time(), self.pause_clock.pause, self._plan()))
        self.window.show_view(view)
        self.tray.show_view(view)
        self.history_window.show_history(snapshot.history, time.time())
        self.settings_window.limits.show_pending(self._has_pending_limits(snapshot))
        self.watch.follow(self.store.value, snapshot.phase in LISTENING)
        self._keep_counting(view)

    def _note_progress(self, snapshot: Snapshot) -> None:
        """What the agent's news mean for what is remembered."""
        if snapshot.phase is not Phase.CONTRIBUTING:
            return
        if self.pause_clock.pause is not None and snapshot.status.state is not AgentState.PAUSED:
            self._hold_pause(None)
        if snapshot.status.pool_name and self._launched_link == self.link():
            self._forget_invitation()

    def _keep_counting(self, view: View) -> None:
        if not (view.is_finishing or (view.is_counting_down and self.window.isVisible())):
            self._count_down.stop()
        elif not self._count_down.isActive():
            self._count_down.start()

    def _plan(self) -> Plan:
        return plan_of(self._facts, self._facts_process.is_looking(), self.store.value)

    def _ask_facts(self) -> None:
        if self._facts is None:
            self._facts_process.ask(facts_argv(self._settings))
            self._refresh()

    def _take_facts(self, facts: Facts | None) -> None:
        self._facts = facts
        if self.question is not None:
            self.question.show_plan(self._plan())
        self._refresh()

    def _weights_folder(self) -> str:
        if self._facts is not None and self._facts.weights_folder:
            return self._facts.weights_folder
        return str(self._settings.data_dir or paths.data_dir())

    # ------------------------------------------------------------ contribute and pause

    def _follow_wish(self, wish: Wish) -> None:
        match wish:
            case Wish.PAUSE:
                self.pause(PauseChoice.UNTIL_RESUMED)
            case Wish.ANYWAY:
                self.contribute(anyway=True)
            case Wish.CONTRIBUTE if self.link() is None:
                self.window.bring_to_front()
            case Wish.CONTRIBUTE:
                self.contribute()

    def contribute(self, anyway: bool = False) -> None:
        self.pause_clock.hold(None)
        self.store.take(msgspec.structs.replace(self.store.value.with_pause(None), contributes=True))
        self.agent.press(ContributePressed(anyway))

    def pause(self, choice: PauseChoice, after_answers: bool = False) -> None:
        pause = pause_of(choice, time.time())
        # First: an agent that still contributes would be the end of this very pause (_note_progress).
        self.agent.press(PausePressed(pause.remaining_s(time.time()), after_answers))
        self._hold_pause(pause)

    def _hold_pause(self, pause: ManualPause | None) -> None:
        self.pause_clock.hold(pause)
        self.store.take(self.store.value.with_pause(pause))

    def _end_pause(self) -> None:
        """The agent counts on its own; this is for when there is none, or when its clock stood still."""
        if self.link() is None or self.agent.snapshot().phase is Phase.CONTRIBUTING:
            self._hold_pause(None)
        else:
            self.contribute()

    # ------------------------------------------------------------ pool

    def link(self) -> JoinLink | None:
        return self._given_link or self.store.value.link

    def _launch(self) -> Launch:
        link = self.link()
        assert link is not None, "nothing is started without a pool"
        self._launched, self._launched_link = limit_words(self.store.value), link
        return agent_launch(self._settings, self.store.value, link)

    def _load(self) -> None:
        self.store.load()
        try:
            if self._settings.join_url is not None:
                self._given_link = parse_pool_link(self._settings.join_url)
        except JoinLinkError as error:
            self.window.show_problem(str(error))
        self._show_pool()
        self._follow_preferences()
        self.settings_window.limits.show_system_name(platform.node())

    def _show_pool(self) -> None:
        link = self.link()
        self.window.show_pool(None if link is None else link.host_and_port, fixed=self._given_link is not None)

    def _choose_pool(self, link: JoinLink) -> None:
        changed = link != self.link()
        self._given_link = None
        self.store.take(self.store.value.with_link(link))
        self._show_pool()
        if changed:
            self.agent.press(PoolChanged())

    def _forget_invitation(self) -> None:
        """The pool knows this computer by its key now."""
        if self._given_link is not None:
            self._given_link = without_invitation(self._given_link)
        elif (link := self.store.value.link) is not None and link.invite:
            self.store.take(self.store.value.with_link(without_invitation(link)))

    def offer(self, link: JoinLink) -> None:
        """Ask, once at a time: a page that opens link after link must not change the question under the mouse."""
        self.window.bring_to_front()
        if self.question is not None:
            self.question.raise_()
            return
        try:
            link = parse_pool_link(format_join_link(link))
        except JoinLinkError as error:
            self.window.show_problem(str(error))
            return
        now_in = self.agent.snapshot().status.pool_name or _host(self.link())
        self._ask_facts()
        self.question = JoinQuestion(link, now_in, self.window)
        self.question.show_plan(self._plan())
        self.question.agreed.connect(self._join)
        self.question.finished.connect(self._forget_question)
        self.question.open()

    def _join(self, link: JoinLink) -> None:
        self._choose_pool(link)
        self.contribute()

    def _forget_question(self) -> None:
        question, self.question = self.question, None
        if question is not None:
            question.deleteLater()

    # ------------------------------------------------------------ settings

    def _follow_preferences(self) -> None:
        self.agent.handle(RulesChanged(self.store.value.rules))
        self.settings_window.show_preferences(self.store.value)
        self._follow_hidden()
        self._refresh()

    def _has_pending_limits(self, snapshot: Snapshot) -> bool:
        return snapshot.phase in LISTENING and self._launched != limit_words(self.store.value)

    def _note_settings_looked_at(self, is_looked_at: bool) -> None:
        self.watch.look(is_looked_at)
        if is_looked_at:
            self.settings_window.app.show_autostart(self._settings.autostart.is_on())
            self.settings_window.limits.show_folder(self._weights_folder())

    def _set_autostart(self, is_on: bool) -> None:
        autostart, problem = self._settings.autostart, ""
        try:
            autostart.turn_on(self._autostart_argv()) if is_on else autostart.turn_off()
        except AutostartError as error:
            problem = str(error)
        self.settings_window.app.show_autostart(autostart.is_on(), problem)

    def _autostart_argv(self) -> list[str]:
        return [*itself(), *(["--hidden"] if self.store.value.starts_hidden else [])]

    def _follow_hidden(self) -> None:
        """An entry that is there says how the app starts; one that is not is not made."""
        if self.settings_window.isVisible() and self._settings.autostart.is_on():
            self._set_autostart(True)

    # ------------------------------------------------------------ window and tray

    def _open(self, window: SettingsWindow | HistoryWindow) -> None:
        window.show()
        window.raise_()
        window.activateWindow()

    def _note_closed(self) -> None:
        action = self.store.value.close_action if self.tray.is_available() else CloseAction.QUIT
        if action is CloseAction.ASK:
            question = CloseQuestion(self.window)
            question.answered.connect(self._take_close_action)
            question.finished.connect(question.deleteLater)
            question.open()
        else:
            self._close_as(action)

    def _take_close_action(self, action: CloseAction) -> None:
        self.store.take(msgspec.structs.replace(self.store.value, close_action=action))
        self._close_as(action)

    def _close_as(self, action: CloseAction) -> None:
        if action is CloseAction.QUIT:
            self.quit()
        else:
            self.window.hide()

    def _open_folder(self, folder: Path) -> None:
        if not QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder))):
            self.window.show_problem(f"The folder is {folder}.")
