"""The whole app in one process: what is remembered, what is asked, what is told before the first click."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from PySide6.QtWidgets import QTabWidget
from pytestqt.qtbot import QtBot

from client.desktop.session import SourceNames
from client.status import AgentState, SessionReading
from client.supervisor_table import Phase
from client.ui.close_question import CloseQuestion
from client.ui.pause_choice import PauseChoice
from client.ui.preferences import FILE_NAME, CloseAction, Preferences, load_preferences, save_preferences
from client.ui.tray import Tray
from client.ui.view import Wish
from protocol.join_link import JoinLink
from protocol.pause import PauseMode, PauseRules
from tests.ui.conftest import FACTS_PROGRAM, LIMIT_MS, GuiDriver, shown_texts

StartGui = Callable[..., GuiDriver]
POOL = JoinLink("http://127.0.0.1:9000")
OTHER = JoinLink("https://pool.example.org", "ab" * 32, "abcdefgh")


@pytest.fixture
def remember(tmp_path: Path) -> Callable[..., None]:
    """What an earlier run of the app left in its file."""

    def write(**fields: object) -> None:
        preferences = msgspec.structs.replace(Preferences().with_link(POOL), **fields)
        save_preferences(tmp_path / FILE_NAME, preferences)

    return write


def remembered(tmp_path: Path) -> Preferences:
    return load_preferences(tmp_path / FILE_NAME)


# ---------------------------------------------------------------- before the first click


def test_before_the_first_click_the_facts_are_told(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.wait_for_text("NVIDIA GeForce RTX 4090, 24 GB")
    driver.wait_for_text("2.9 GB, into")
    assert driver.recorded("start") == []


def test_without_facts_the_window_says_what_is_true_everywhere(start_gui: StartGui) -> None:
    driver = start_gui(facts_program=(*FACTS_PROGRAM, "--fail"))
    driver.wait_for_text("Your GPU. It is looked for when you start.")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")


# ---------------------------------------------------------------- what outlives the app


def test_the_app_goes_on_with_what_was_wished_last(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember(contributes=True)
    driver = start_gui(join_url=None)
    driver.wait_for_text("Serving layers 0-11 of 24")


def test_an_app_that_never_contributed_starts_nothing(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember()
    driver = start_gui(join_url=None)
    driver.wait_for_text("NVIDIA GeForce RTX 4090, 24 GB")
    assert driver.gui.agent.snapshot().phase is Phase.STOPPED


def test_a_pause_until_resumed_outlives_the_app(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui(join_url=None)
    driver.window.pool_chosen.emit(POOL)
    driver.window.wished.emit(Wish.CONTRIBUTE)
    driver.wait_for_state(AgentState.SERVING)
    driver.press()
    driver.wait_for_phase(Phase.PAUSED)
    assert remembered(tmp_path).is_paused
    driver.gui.close()
    again = start_gui(join_url=None)
    assert again.gui.agent.snapshot().phase is Phase.STOPPED
    assert "Paused" in shown_texts(again.window)
    again.press()
    again.wait_for_text("Serving layers 0-11 of 24")
    assert not remembered(tmp_path).is_paused


def test_a_pause_with_an_end_outlives_the_app_and_ends(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember(contributes=True, is_paused=True, paused_until_s=time.time() + 3600)
    driver = start_gui(join_url=None)
    driver.wait_for_text("Paused until ")
    assert driver.recorded("start") == []
    driver.gui.pause_clock._wall = lambda: time.time() + 3600
    driver.gui.pause_clock.look()
    driver.wait_for_text("Serving layers 0-11 of 24")


def test_a_pause_that_ended_meanwhile_has_ended(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember(contributes=True, is_paused=True, paused_until_s=time.time() - 1)
    driver = start_gui(join_url=None)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert len(driver.recorded("start")) == 1


def test_a_pause_until_restart_does_not_outlive_the_app(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember(contributes=True)
    driver = start_gui(join_url=None)
    driver.wait_for_state(AgentState.SERVING)
    driver.gui.pause(PauseChoice.UNTIL_RESTART)
    driver.wait_for_phase(Phase.PAUSED)
    driver.wait_for_text("or when the app starts again")
    driver.gui.close()
    again = start_gui(join_url=None)
    again.wait_for_text("Serving layers 0-11 of 24")


def test_the_agent_is_told_for_how_long(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    driver.window.pause_button.menu().actions()[2].trigger()
    driver.wait_for_phase(Phase.PAUSED)
    driver.wait_for_record("for")
    assert 3590 < float(driver.recorded("for")[0].split()[1]) <= 3600
    driver.wait_for_text("Paused until ")


# ---------------------------------------------------------------- a pause after the answers


def finishing(start_gui: StartGui) -> GuiDriver:
    """In the middle of answers that do not end, and told to pause after them."""
    driver = start_gui("--endless", join_url=None)
    driver.window.pool_chosen.emit(POOL)
    driver.window.wished.emit(Wish.CONTRIBUTE)
    driver.wait_for_state(AgentState.SERVING)
    driver.gui.tray.pause_chosen.emit(PauseChoice.UNTIL_RESUMED, True)
    driver.wait_for_text("Finishing 3 answers, at most 2")
    return driver


def test_a_pause_after_the_answers_pauses(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    driver.window.pause_button.menu().actions()[-1].menu().actions()[1].trigger()
    driver.wait_for_phase(Phase.PAUSED)
    driver.wait_for_text("Paused until ")
    assert driver.recorded("after") == ["after answers True"]
    assert 890 < float(driver.recorded("for")[0].split()[1]) <= 900
    assert remembered(tmp_path).is_paused


def test_the_seconds_are_counted_though_the_window_is_hidden(start_gui: StartGui, qtbot: QtBot) -> None:
    driver = finishing(start_gui)
    driver.window.hide()
    said = driver.gui.tray.menu_actions()[1].text()
    qtbot.waitUntil(lambda: driver.gui.tray.menu_actions()[1].text() != said, timeout=LIMIT_MS)
    assert driver.gui.tray.menu_actions()[1].text().startswith("Finishing 3 answers, at most ")


def test_pausing_at_once_meanwhile_does_so(start_gui: StartGui) -> None:
    driver = finishing(start_gui)
    driver.window.pause_button.menu().actions()[0].trigger()
    driver.wait_for_phase(Phase.PAUSED)
    assert driver.recorded("after") == ["after answers True", "after answers False"]


def test_keeping_on_meanwhile_takes_the_pause_back(start_gui: StartGui, tmp_path: Path) -> None:
    driver = finishing(start_gui)
    assert driver.window.button.text() == "Keep contributing"
    driver.press()
    driver.wait_for_phase(Phase.CONTRIBUTING)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert not remembered(tmp_path).is_paused
    assert len(driver.recorded("start")) == 1


def test_an_agent_that_dies_meanwhile_is_not_started_again(start_gui: StartGui) -> None:
    driver = finishing(start_gui)
    os.kill(int(driver.recorded("start")[0].split()[1]), signal.SIGKILL)
    driver.wait_for_phase(Phase.STOPPED)
    driver.wait_for_text("Paused")
    assert len(driver.recorded("start")) == 1


def test_an_app_that_ends_meanwhile_comes_back_paused(start_gui: StartGui) -> None:
    driver = finishing(start_gui)
    driver.gui.close()
    again = start_gui(join_url=None)
    assert "Paused" in shown_texts(again.window)
    assert again.gui.agent.snapshot().phase is Phase.STOPPED


# ---------------------------------------------------------------- links


def test_an_offered_link_only_asks(start_gui: StartGui, remember: Callable[..., None], tmp_path: Path) -> None:
    remember()
    driver = start_gui(join_url=None, offered_link=OTHER)
    question = driver.gui.question
    assert question is not None
    assert "You are now in the pool 127.0.0.1:9000; you would leave it." in shown_texts(question)
    question.cancel.click()
    assert driver.gui.question is None
    assert remembered(tmp_path).link == POOL
    assert driver.recorded("start") == []


def test_a_link_that_is_agreed_to_is_followed(start_gui: StartGui, remember: Callable[..., None]) -> None:
    remember(contributes=True)
    driver = start_gui(join_url=None)
    driver.wait_for_state(AgentState.SERVING)
    driver.gui.offer(OTHER)
    assert driver.gui.question is not None
    driver.gui.question.agree.click()
    driver.wait_for_record("start", 2)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert driver.recorded("join")[-1].endswith("invite=abcdefgh")


def test_link_after_link_does_not_change_the_question(start_gui: StartGui) -> None:
    driver = start_gui(join_url=None, offered_link=OTHER)
    first = driver.gui.question
    driver.gui.offer(JoinLink("http://elsewhere.example.org"))
    assert driver.gui.question is first


def test_a_look_alike_host_is_not_even_asked_about(start_gui: StartGui) -> None:
    driver = start_gui(join_url=None, offered_link=JoinLink("https://pööl.example.org"))
    assert driver.gui.question is None
    assert any("The host is really" in text for text in shown_texts(driver.window))


# ---------------------------------------------------------------- settings


def test_rules_are_told_at_once_and_remembered(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    rules = PauseRules(mode=PauseMode.ALWAYS)
    driver.gui.settings_window.rules.changed.emit(rules)
    driver.wait_for_record("rules", 2)
    assert driver.recorded("rules")[-1] == f"rules {msgspec.json.encode(rules).decode()}"
    assert remembered(tmp_path).rules == rules


def test_limits_wait_for_the_next_start_and_say_so(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    limits = driver.gui.settings_window.limits
    assert limits._pending.isHidden()
    limits._disk.setValue(20)
    assert not limits._pending.isHidden()
    limits._restart.click()
    driver.wait_for_record("start", 2)
    driver.wait_for_state(AgentState.SERVING)
    driver.qtbot.waitUntil(limits._pending.isHidden, timeout=LIMIT_MS)


def test_starting_at_login_is_written_only_when_wished(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui()
    entry = tmp_path / "autostart" / "decentllm.desktop"
    page = driver.gui.settings_window
    page.show()
    assert not entry.exists()
    page.app.autostart_wished.emit(True)
    assert f"Exec={sys.executable} -m client --hidden" in entry.read_text()
    page.app._hidden.click()
    assert f"Exec={sys.executable} -m client\n" in entry.read_text()
    page.app.autostart_wished.emit(False)
    assert not entry.exists()
    page.app._hidden.click()
    assert not entry.exists()


def test_an_entry_that_cannot_be_written_is_reported(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui()
    (tmp_path / "autostart").write_text("in the way")
    page = driver.gui.settings_window
    page.show()
    page.findChild(QTabWidget).setCurrentWidget(page.app)
    page.app.autostart_wished.emit(True)
    assert any("Starting at login could not be changed" in text for text in shown_texts(page))


# ---------------------------------------------------------------- closing


@pytest.fixture
def with_tray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tray, "is_available", lambda _self: True)


def question_of(driver: GuiDriver) -> CloseQuestion | None:
    return driver.window.findChild(CloseQuestion)


@pytest.mark.usefixtures("with_tray")
def test_closing_asks_the_first_time_and_remembers(start_gui: StartGui, tmp_path: Path, qtbot: QtBot) -> None:
    driver = start_gui()
    driver.window.close()
    question = question_of(driver)
    assert question is not None
    assert driver.window.isVisible()
    question.keep.click()
    assert not driver.window.isVisible()
    assert remembered(tmp_path).close_action is CloseAction.KEEP
    driver.window.show()
    driver.window.close()
    assert not driver.window.isVisible()


@pytest.mark.usefixtures("with_tray")
def test_closing_can_mean_quitting(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.window.close()
    question = question_of(driver)
    assert question is not None
    with driver.qtbot.waitSignal(driver.gui.agent.finished, timeout=LIMIT_MS):
        question.quit.click()


@pytest.mark.usefixtures("with_tray")
def test_started_hidden_there_is_no_window_until_it_is_asked_for(start_gui: StartGui) -> None:
    driver = start_gui(start_hidden=True)
    assert not driver.window.isVisible()
    driver.gui.tray.window_wished.emit()
    assert driver.window.isVisible()


def test_hidden_without_any_tray_the_window_comes(start_gui: StartGui) -> None:
    driver = start_gui(start_hidden=True)
    driver.gui.tray.missing.emit()
    assert driver.window.isVisible()


# ---------------------------------------------------------------- the desktop


class Desktop:
    def refresh(self) -> None:
        """Always fresh."""

    def read(self) -> SessionReading:
        return SessionReading(7.0, True, False)

    def names(self) -> SourceNames:
        return SourceNames("a fake", "a fake", "")

    def close(self) -> None:
        """Nothing is held."""


def test_the_agent_hears_what_the_desktop_says(start_gui: StartGui) -> None:
    driver = start_gui(open_session=Desktop)
    assert not driver.gui.watch.is_running()
    driver.press()
    driver.wait_for_record("reading")
    assert driver.recorded("reading")[0] == f"reading {msgspec.json.encode(Desktop().read()).decode()}"
    driver.gui.settings_window.show()
    driver.qtbot.waitUntil(
        lambda: "Whether you are there is seen through a fake." in shown_texts(driver.gui.settings_window),
        timeout=LIMIT_MS,
    )


def test_why_it_paused_can_be_opened(start_gui: StartGui) -> None:
    driver = start_gui("--play", "serving,paused:video")
    driver.press()
    driver.wait_for_text("A video is being played or recorded.")
    driver.window.history_wished.emit()
    assert driver.gui.history_window.isVisible()
    driver.qtbot.waitUntil(lambda: bool(driver.gui.agent.snapshot().history), timeout=LIMIT_MS)
