"""Why did it pause?"""

from __future__ import annotations

from datetime import datetime

import pytest
from PySide6.QtWidgets import QTableWidget
from pytestqt.qtbot import QtBot

from client.status import Transition
from client.ui.history_window import HistoryWindow, row_of
from protocol.pause import PauseReason
from tests.ui.conftest import shown_texts

NOW_S = datetime(2027, 1, 14, 17, 30).timestamp()


@pytest.fixture
def window(qtbot: QtBot) -> HistoryWindow:
    window = HistoryWindow()
    qtbot.addWidget(window)
    window.show()
    return window


def test_the_newest_change_comes_first(window: HistoryWindow) -> None:
    changes = (Transition(NOW_S - 3600, (PauseReason.VIDEO,), "vlc"), Transition(NOW_S - 60))
    window.show_history(changes, NOW_S)
    table = window.findChild(QTableWidget)
    assert [table.item(0, column).text() for column in range(3)] == ["17:29", "It went on.", ""]
    assert [table.item(1, column).text() for column in range(3)] == [
        "16:30",
        "A video is being played or recorded.",
        "vlc",
    ]
    assert table.accessibleName()


def test_nothing_so_far_is_said(window: HistoryWindow) -> None:
    window.show_history((), NOW_S)
    assert any("has not paused by itself" in text for text in shown_texts(window))
    assert not window.findChild(QTableWidget).isVisible()


def test_all_reasons_are_told_and_what_was_seen_is_one_line() -> None:
    change = Transition(NOW_S, (PauseReason.HOT, PauseReason.BATTERY), "84 °C\n\u202e")
    assert row_of(change, NOW_S) == ("17:30", "The GPU is too hot. The computer runs on battery.", "84 °C")
