"""The page about the app itself."""

from __future__ import annotations

import pytest
from PySide6.QtWidgets import QAbstractButton
from pytestqt.qtbot import QtBot

from client.ui.preferences import CloseAction, Preferences
from client.ui.settings_app import AppPage
from tests.ui.conftest import shown_texts


@pytest.fixture
def page(qtbot: QtBot) -> AppPage:
    page = AppPage()
    qtbot.addWidget(page)
    page.show()
    return page


def button(page: AppPage, text: str) -> QAbstractButton:
    return next(found for found in page.findChildren(QAbstractButton) if found.text() == text)


def test_starting_at_login_is_asked_for_and_shown_as_it_is(page: AppPage, qtbot: QtBot) -> None:
    page.show_autostart(False)
    box = button(page, "Start DecentLLM when I log in")
    with qtbot.waitSignal(page.autostart_wished) as blocker:
        box.click()
    assert blocker.args == [True]
    with qtbot.assertNotEmitted(page.autostart_wished):
        page.show_autostart(False, "Starting at login could not be changed: disk full.")
    assert not box.isChecked()
    assert "Starting at login could not be changed: disk full." in shown_texts(page)


def test_hidden_matters_only_with_autostart(page: AppPage) -> None:
    hidden = button(page, "In the tray, without this window")
    for is_on in (False, True):
        page.show_autostart(is_on)
        assert hidden.isEnabled() is is_on


def test_what_closing_means_is_chosen(page: AppPage, qtbot: QtBot) -> None:
    assert button(page, "Ask me").isChecked()
    with qtbot.waitSignal(page.changed) as blocker:
        button(page, "Keep running in the tray").click()
    assert blocker.args == [Preferences(close_action=CloseAction.KEEP)]
