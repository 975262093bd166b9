"""Asking a short process what this machine would bring."""

from __future__ import annotations

import sys

import pytest
from pytestqt.qtbot import QtBot

from client.ui.facts_process import FactsProcess
from tests.ui.conftest import FACTS_PROGRAM, LIMIT_MS
from tests.ui.facts_double import FACTS


@pytest.fixture
def process(qtbot: QtBot) -> FactsProcess:
    process = FactsProcess()
    yield process
    process.close()


def test_the_last_line_is_the_answer(process: FactsProcess, qtbot: QtBot) -> None:
    with qtbot.waitSignal(process.found, timeout=LIMIT_MS) as blocker:
        process.ask(FACTS_PROGRAM)
        assert process.is_looking()
    assert blocker.args == [FACTS]
    assert not process.is_looking()


@pytest.mark.parametrize(
    "argv", [(*FACTS_PROGRAM, "--fail"), (*FACTS_PROGRAM, "--garbage"), ("/no such program",), ("/bin/sh", "-c", ":")]
)
def test_whatever_goes_wrong_there_are_no_facts(process: FactsProcess, qtbot: QtBot, argv: tuple[str, ...]) -> None:
    with qtbot.waitSignal(process.found, timeout=LIMIT_MS) as blocker:
        process.ask(argv)
    assert blocker.args == [None]


def test_a_process_that_never_ends_is_ended(process: FactsProcess, qtbot: QtBot) -> None:
    process._limit.setInterval(50)
    with qtbot.waitSignal(process.found, timeout=LIMIT_MS) as blocker:
        process.ask((sys.executable, "-c", "import time; time.sleep(3600)"))
    assert blocker.args == [None]


def test_two_questions_at_once_are_one(process: FactsProcess, qtbot: QtBot) -> None:
    answers: list[object] = []
    process.found.connect(lambda facts: answers.append(facts))
    process.ask(FACTS_PROGRAM)
    process.ask(FACTS_PROGRAM)
    qtbot.waitUntil(lambda: bool(answers), timeout=LIMIT_MS)
    assert answers == [FACTS]
    assert not process.is_looking()
