"""Programs that come first."""

from __future__ import annotations

import psutil
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLineEdit, QListWidget
from pytestqt.qtbot import QtBot

from client.ui.settings_programs import MAX_PROGRAMS, ProgramChooser, ProgramList, running_programs


@pytest.fixture
def programs(qtbot: QtBot) -> ProgramList:
    programs = ProgramList()
    qtbot.addWidget(programs)
    programs.show()
    return programs


def test_a_program_is_added_by_name(programs: ProgramList, qtbot: QtBot) -> None:
    field = programs.findChild(QLineEdit)
    field.setText("  blender ")
    with qtbot.waitSignal(programs.changed) as blocker:
        qtbot.keyClick(field, Qt.Key.Key_Return)
    assert blocker.args == [("blender",)]
    assert field.text() == ""


@pytest.mark.parametrize("name", ["", "   ", "BLENDER"])
def test_nothing_and_the_same_again_are_left_out(programs: ProgramList, qtbot: QtBot, name: str) -> None:
    programs.show_names(("blender",))
    with qtbot.assertNotEmitted(programs.changed):
        programs.add(name)


def test_there_are_no_more_than_the_wire_takes(programs: ProgramList) -> None:
    for index in range(MAX_PROGRAMS + 5):
        programs.add(f"program {index}")
    assert len(programs.names()) == MAX_PROGRAMS


def test_what_is_selected_can_be_removed(programs: ProgramList, qtbot: QtBot) -> None:
    programs.show_names(("a", "b"))
    assert not programs._remove.isEnabled()
    programs.findChild(QListWidget).setCurrentRow(0)
    with qtbot.waitSignal(programs.changed) as blocker:
        programs._remove.click()
    assert blocker.args == [("b",)]


def test_this_very_program_runs() -> None:
    assert psutil.Process().name() in running_programs()


def test_a_running_program_is_chosen(qtbot: QtBot) -> None:
    chooser = ProgramChooser(["bash", "blender", "firefox"])
    qtbot.addWidget(chooser)
    chooser.show()
    assert not chooser._ok.isEnabled()
    chooser._search.setText("BLEN")
    shown = [row for row in range(3) if not chooser._list.item(row).isHidden()]
    assert shown == [1]
    chooser._list.setCurrentRow(1)
    with qtbot.waitSignal(chooser.chosen) as blocker:
        chooser._ok.click()
    assert blocker.args == ["blender"]


def test_the_chooser_opens_with_what_runs(programs: ProgramList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ui.settings_programs.running_programs", lambda: ["game"])
    programs._choose.click()
    chooser = programs.findChild(ProgramChooser)
    chooser._list.setCurrentRow(0)
    chooser._ok.click()
    assert programs.names() == ("game",)
