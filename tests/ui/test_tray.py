"""The tray's menu and what it does without a tray."""

from __future__ import annotations

import time

import msgspec
import pytest
from PySide6.QtWidgets import QSystemTrayIcon
from pytestqt.qtbot import QtBot

from client.status import AgentState, PauseInfo, Status
from client.supervisor import Snapshot
from client.supervisor_table import Phase
from client.ui.pause_choice import AFTER_ANSWERS, PauseChoice
from client.ui.tray import LATER_LOOK_MS, LOOK_AGAIN_MS, MAX_LOOKS, Tray
from client.ui.tray_host import AnyHost
from client.ui.view import Surroundings, Wish, view_of
from protocol.pause import PauseReason
from tests.ui.agent_double import status_of


@pytest.fixture
def tray(qtbot: QtBot) -> Tray:
    tray = Tray(host=AnyHost())
    yield tray
    tray.stop()


def texts(tray: Tray) -> list[str]:
    return [action.text() for action in tray.menu_actions()]


AUTO_PAUSED = view_of(
    Snapshot(Phase.CONTRIBUTING, Status(AgentState.PAUSED, pause=PauseInfo((PauseReason.VIDEO,), 1.0)))
)
ALWAYS_THERE = ["Why did it pause?", "Settings…", "Quit"]


def test_the_menu_says_state_and_reason(tray: Tray) -> None:
    tray.show_view(AUTO_PAUSED)
    assert texts(tray) == [
        "Paused",
        "A video is being played or recorded.",
        "Open DecentLLM",
        "Contribute anyway",
        "Pause",
        *ALWAYS_THERE,
    ]
    assert tray.icon() is None


def test_the_icon_says_what_was_shown_before_it_was_there(tray: Tray, desktop: Desktop) -> None:
    tray.show_view(AUTO_PAUSED)
    desktop.has_tray = True
    tray.start()
    icon = tray.icon()
    assert icon is not None
    assert icon.toolTip() == "DecentLLM: Paused. A video is being played or recorded."
    tray.show_view(view_of(Snapshot()))
    assert icon.toolTip() == "DecentLLM: Not contributing"


class LateHost:
    """A panel that is not there yet."""

    ready = False

    def is_ready(self) -> bool:
        return self.ready


def test_qt_is_not_asked_before_the_panel_is_there(monkeypatch: pytest.MonkeyPatch, qtbot: QtBot) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(QSystemTrayIcon, "isSystemTrayAvailable", lambda: not asked.append(True))
    host = LateHost()
    tray = Tray(host=host)
    tray.start()
    assert not asked
    assert not tray.is_available()
    host.ready = True
    tray.look_for_tray()
    assert asked
    assert tray.is_available()
    tray.stop()


def test_while_it_contributes_it_can_be_paused(tray: Tray) -> None:
    tray.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status_of("waiting"))))
    assert texts(tray) == ["Waiting for work", "Open DecentLLM", "Pause", *ALWAYS_THERE]


def test_while_it_serves_it_can_be_paused_after_the_answers(tray: Tray, qtbot: QtBot) -> None:
    tray.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status_of("serving"))))
    entries = {action.text(): action for action in tray.menu_actions()}
    assert [*entries][2:4] == ["Pause", "Pause after the current answers"]
    choices = entries["Pause after the current answers"].menu().actions()
    assert [action.text() for action in choices] == [choice.value for choice in AFTER_ANSWERS]
    with qtbot.waitSignal(tray.pause_chosen) as blocker:
        choices[0].trigger()
    assert blocker.args == [PauseChoice.UNTIL_RESUMED, True]


def test_while_answers_are_finished_the_menu_says_so_and_both_ways_out(tray: Tray) -> None:
    now_s = time.time()
    status = msgspec.structs.replace(status_of("serving"), leaves_at_s=now_s + 24)
    tray.show_view(view_of(Snapshot(Phase.FINISHING, status), Surroundings(now_s)))
    says = ["Pausing", "Finishing 3 answers, at most 24 s more."]
    assert texts(tray) == [*says, "Open DecentLLM", "Keep contributing", "Pause", *ALWAYS_THERE]


def test_while_it_does_not_it_can_contribute(tray: Tray) -> None:
    tray.show_view(view_of(Snapshot()))
    assert texts(tray) == ["Not contributing", "Open DecentLLM", "Contribute GPU", *ALWAYS_THERE]


def test_every_entry_asks_for_what_it_says(tray: Tray, qtbot: QtBot) -> None:
    tray.show_view(AUTO_PAUSED)
    entries = {action.text(): action for action in tray.menu_actions()}
    for text, signal in (
        ("Open DecentLLM", tray.window_wished),
        ("Why did it pause?", tray.history_wished),
        ("Settings…", tray.settings_wished),
        ("Quit", tray.quit_wished),
    ):
        with qtbot.waitSignal(signal):
            entries[text].trigger()
    with qtbot.waitSignal(tray.wished) as blocker:
        entries["Contribute anyway"].trigger()
    assert blocker.args == [Wish.ANYWAY]
    choices = entries["Pause"].menu().actions()
    assert [action.text() for action in choices] == [choice.value for choice in PauseChoice]
    with qtbot.waitSignal(tray.pause_chosen) as blocker:
        choices[3].trigger()
    assert blocker.args == [PauseChoice.TOMORROW, False]


def test_mnemonics_are_escaped(tray: Tray) -> None:
    view = view_of(Snapshot(Phase.CONTRIBUTING, status_of("serving")))
    tray.show_view(view)
    assert "&" not in view.headline
    object.__setattr__(view, "headline", "R&D")
    tray.show_view(view)
    assert texts(tray)[0] == "R&&D"


class Desktop:
    """Whether this desktop has a tray now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_tray = False
        monkeypatch.setattr(QSystemTrayIcon, "isSystemTrayAvailable", lambda: self.has_tray)


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Desktop:
    return Desktop(monkeypatch)


def test_without_a_tray_it_says_so_after_a_minute(tray: Tray, desktop: Desktop, qtbot: QtBot) -> None:
    with qtbot.assertNotEmitted(tray.missing):
        tray.start()
        for _ in range(MAX_LOOKS - 2):
            tray.look_for_tray()
    assert tray.is_being_looked_for()
    with qtbot.waitSignal(tray.missing):
        tray.look_for_tray()
    assert not tray.is_available()
    assert not tray.is_being_looked_for()


def test_a_tray_that_comes_late_is_used(tray: Tray, desktop: Desktop) -> None:
    tray.start()
    assert tray._look.interval() == LOOK_AGAIN_MS
    desktop.has_tray = True
    tray.look_for_tray()
    assert tray.is_available()
    assert tray._look.interval() == LATER_LOOK_MS


def test_a_tray_that_goes_is_noticed_and_one_that_comes_back_is_used(
    tray: Tray, desktop: Desktop, qtbot: QtBot
) -> None:
    desktop.has_tray = True
    tray.start()
    desktop.has_tray = False
    with qtbot.waitSignal(tray.missing):
        for _ in range(MAX_LOOKS):
            tray.look_for_tray()
    assert not tray.is_available()
    desktop.has_tray = True
    tray.look_for_tray()
    assert tray.is_available()
