"""What closing the window means."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from client.ui.close_question import CloseQuestion
from client.ui.preferences import CloseAction


@pytest.fixture
def question(qtbot: QtBot) -> CloseQuestion:
    question = CloseQuestion()
    qtbot.addWidget(question)
    question.show()
    return question


@pytest.mark.parametrize(("name", "action"), [("keep", CloseAction.KEEP), ("quit", CloseAction.QUIT)])
def test_both_answers_are_told(question: CloseQuestion, qtbot: QtBot, name: str, action: CloseAction) -> None:
    with qtbot.waitSignal(question.answered) as blocker:
        getattr(question, name).click()
    assert blocker.args == [action]


def test_no_answer_is_none(question: CloseQuestion, qtbot: QtBot) -> None:
    with qtbot.assertNotEmitted(question.answered), qtbot.waitSignal(question.rejected):
        qtbot.keyClick(question, Qt.Key.Key_Escape)
