"""The page that says when the GPU is given back."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QTime
from PySide6.QtWidgets import QAbstractButton, QRadioButton
from pytestqt.qtbot import QtBot

from client.desktop.session import SourceNames
from client.ui.settings_rules import RulesPage
from protocol.pause import DEFAULT_RULES, Hours, PauseMode, PauseRules
from tests.ui.conftest import shown_texts


@pytest.fixture
def page(qtbot: QtBot) -> RulesPage:
    page = RulesPage()
    qtbot.addWidget(page)
    page.show()
    return page


def button(page: RulesPage, text: str) -> QAbstractButton:
    return next(found for found in page.findChildren(QAbstractButton) if found.text() == text)


def test_what_nobody_decided_is_shown_as_it_will_be(page: RulesPage) -> None:
    page.show_rules(PauseRules())
    assert button(page, "When nothing else needs the GPU").isChecked()
    assert (page._away.value(), page._others.value(), page._temperature.value()) == (3, 20, 83)
    assert not page._battery.isChecked()


def test_only_what_is_touched_is_decided(page: RulesPage, qtbot: QtBot) -> None:
    with qtbot.waitSignal(page.changed) as blocker:
        button(page, "Only when I am away").click()
    assert blocker.args == [PauseRules(mode=PauseMode.WHEN_AWAY)]
    with qtbot.waitSignal(page.changed) as blocker:
        page._away.setValue(10)
    assert blocker.args == [PauseRules(mode=PauseMode.WHEN_AWAY, away_after_s=600.0)]


def test_every_control_sets_its_rule(page: RulesPage) -> None:
    told: list[PauseRules] = []
    page.changed.connect(lambda rules: told.append(rules))
    page._others.setValue(35)
    page._temperature.setValue(70)
    page._battery.click()
    page.programs.add("blender")
    page._has_hours.click()
    page._start.setTime(QTime(20, 30))
    assert told[-1] == PauseRules(
        other_gpu_percent=35,
        max_temperature_c=70,
        run_on_battery=True,
        programs=("blender",),
        hours=Hours(20 * 60 + 30, 8 * 60),
    )
    page._has_hours.click()
    assert told[-1].hours is None


def test_showing_rules_is_no_wish(page: RulesPage, qtbot: QtBot) -> None:
    rules = PauseRules(mode=PauseMode.ALWAYS, programs=("a", "b"), hours=Hours(1, 2), run_on_battery=True)
    with qtbot.assertNotEmitted(page.changed):
        page.show_rules(rules)
    assert page.programs.names() == ("a", "b")
    assert page._start.time() == QTime(0, 1)


def test_hours_that_begin_as_they_end_are_none(page: RulesPage, qtbot: QtBot) -> None:
    page._has_hours.click()
    with qtbot.waitSignal(page.changed) as blocker:
        page._start.setTime(page._stop.time())
    assert blocker.args[0].hours is None


def test_what_does_not_matter_in_a_mode_cannot_be_changed(page: RulesPage) -> None:
    for mode, away, others in (
        (PauseMode.ALWAYS, False, False),
        (PauseMode.WHEN_FREE, False, True),
        (PauseMode.WHEN_AWAY, True, True),
    ):
        page.show_rules(PauseRules(mode=mode))
        assert (page._away.isEnabled(), page._others.isEnabled()) == (away, others)


def test_each_mode_has_one_plain_sentence(page: RulesPage) -> None:
    modes = page.findChildren(QRadioButton)
    assert len(modes) == len(PauseMode)
    texts = shown_texts(page)
    for mode in modes:
        assert mode.accessibleDescription() in texts


def test_which_readings_work_is_said(page: RulesPage) -> None:
    page.show_sources(SourceNames("the X server", "the X server", ""))
    assert "Whether you are there is seen through the X server." in shown_texts(page)
    page.show_sources(SourceNames())
    assert any("with this choice it would never contribute" in text for text in shown_texts(page))


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert DEFAULT_RULES.mode is PauseMode.WHEN_FREE
