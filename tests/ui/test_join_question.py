"""A link that was opened asks first."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from client.ui.join_question import JoinQuestion
from client.ui.plan import plan_of
from client.ui.preferences import Preferences
from protocol.join_link import JoinLink
from tests.ui.conftest import shown_texts
from tests.ui.facts_double import FACTS

PINNED = JoinLink("https://pool.example.org:8443", "ab" * 32, "abcdefgh")


def ask(qtbot: QtBot, link: JoinLink, now_in: str = "") -> JoinQuestion:
    question = JoinQuestion(link, now_in)
    question.show_plan(plan_of(None, False, Preferences()))
    qtbot.addWidget(question)
    question.show()
    return question


def test_it_names_host_fingerprint_and_the_pool_that_would_be_left(qtbot: QtBot) -> None:
    texts = shown_texts(ask(qtbot, PINNED, "Friends of the llama"))
    assert "Contribute this computer to the pool at pool.example.org:8443?" in texts
    assert "You are now in the pool Friends of the llama; you would leave it." in texts
    assert any(text.replace("\n", "") == ":".join(["AB"] * 32) for text in texts)
    assert "The link holds an invitation." in texts
    assert not any("abcdefgh" in text for text in texts)
    assert any("what runs models" in text for text in texts)


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        (JoinLink("https://pool.example.org"), "Encrypted, with a certificate of a public authority."),
        (JoinLink("http://127.0.0.1:8000"), "The pool is on this computer."),
        (JoinLink("http://10.0.0.7:8000"), "Not encrypted: everybody on the way can read and change what is sent."),
    ],
)
def test_it_says_how_safe_the_way_is(qtbot: QtBot, link: JoinLink, sentence: str) -> None:
    texts = shown_texts(ask(qtbot, link))
    assert sentence in texts
    assert "You are in no pool so far." in texts


def test_the_answer_by_mistake_is_no(qtbot: QtBot) -> None:
    question = ask(qtbot, PINNED)
    with qtbot.assertNotEmitted(question.agreed), qtbot.waitSignal(question.rejected):
        qtbot.keyClick(question, Qt.Key.Key_Return)


def test_only_yes_is_yes(qtbot: QtBot) -> None:
    question = ask(qtbot, PINNED)
    with qtbot.waitSignal(question.agreed) as blocker:
        question.agree.click()
    assert blocker.args == [PINNED]


def test_a_pools_name_is_no_markup(qtbot: QtBot) -> None:
    question = ask(qtbot, PINNED, "<b>x</b>\n")
    assert {label.textFormat() for label in question.findChildren(QLabel)} == {Qt.TextFormat.PlainText}


def test_it_grows_with_what_is_found_out_later(qtbot: QtBot) -> None:
    question = ask(qtbot, PINNED)
    question.show_plan(plan_of(FACTS, False, Preferences()))
    qtbot.waitUntil(lambda: question.height() >= question.layout().totalHeightForWidth(question.width()))
    labels = [label for label in question.findChildren(QLabel) if label.isVisible()]
    qtbot.waitUntil(lambda: all(label.height() >= label.heightForWidth(label.width()) for label in labels))
