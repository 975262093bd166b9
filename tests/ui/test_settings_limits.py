"""The page that says how much of the machine is used."""

from __future__ import annotations

import pytest
from PySide6.QtWidgets import QAbstractButton
from pytestqt.qtbot import QtBot

from client.config import Direct
from client.ui.preferences import Preferences
from client.ui.settings_limits import LimitsPage
from tests.ui.conftest import shown_texts


@pytest.fixture
def page(qtbot: QtBot) -> LimitsPage:
    page = LimitsPage()
    qtbot.addWidget(page)
    page.show()
    return page


def button(page: LimitsPage, text: str) -> QAbstractButton:
    return next(found for found in page.findChildren(QAbstractButton) if found.text() == text)


def told_by(page: LimitsPage) -> list[Preferences]:
    told: list[Preferences] = []
    page.changed.connect(lambda preferences: told.append(preferences))
    return told


def test_without_a_limit_the_size_waits(page: LimitsPage) -> None:
    told = told_by(page)
    assert not page._memory.isEnabled()
    button(page, "Use at most").click()
    assert page._memory.isEnabled()
    page._memory.setValue(6.5)
    assert told[-1].max_memory_bytes == round(6.5 * 2**30)
    button(page, "Use at most").click()
    assert told[-1].max_memory_bytes is None


def test_the_disk_is_limited_as_the_agent_limits_it_unless_told(page: LimitsPage) -> None:
    told = told_by(page)
    assert page._disk.value() == 50.0
    page._disk.setValue(20)
    assert told[-1].max_disk_bytes == 20 * 10**9


def test_direct_links_say_who_sees_the_address(page: LimitsPage) -> None:
    told = told_by(page)
    assert any("see this computer's IP address" in text for text in shown_texts(page))
    button(page, "With any pool").click()
    assert told[-1].direct is Direct.ON


def test_the_name_is_cleaned_and_told_when_it_is_written(page: LimitsPage, qtbot: QtBot) -> None:
    page._name.setText("  Ada's\ttower ")
    with qtbot.waitSignal(page.changed) as blocker:
        page._name.editingFinished.emit()
    assert blocker.args[0].name == "Ada's tower"
    with qtbot.assertNotEmitted(page.changed):
        page.show_preferences(Preferences(name="Ada"))


def test_the_folder_is_shown_and_opened(page: LimitsPage, qtbot: QtBot) -> None:
    assert not button(page, "Open").isVisible()
    page.show_folder("/data/weights")
    assert "They are in /data/weights" in shown_texts(page)
    with qtbot.waitSignal(page.folder_wished):
        button(page, "Open").click()


def test_what_counts_later_says_so_and_can_count_now(page: LimitsPage, qtbot: QtBot) -> None:
    sentence = "These settings count from the next start of contributing."
    assert sentence not in shown_texts(page)
    page.show_pending(True)
    assert sentence in shown_texts(page)
    with qtbot.waitSignal(page.restart_wished):
        button(page, "Start again with them now").click()
