"""Polling the desktop, only while somebody needs to know."""

from __future__ import annotations

import pytest
from pytestqt.qtbot import QtBot

from client.desktop.session import SourceNames
from client.status import SessionReading
from client.ui.preferences import Preferences
from client.ui.session_watch import SessionWatch
from protocol.pause import PauseMode, PauseRules


class FakeSession:
    def __init__(self) -> None:
        self.reading = SessionReading(1.0, False, None)
        self.num_refreshes = 0
        self.is_closed = False

    def refresh(self) -> None:
        self.num_refreshes += 1

    def read(self) -> SessionReading:
        return self.reading

    def names(self) -> SourceNames:
        return SourceNames("a", "b", "c")

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def watch(qtbot: QtBot, session: FakeSession) -> SessionWatch:
    watch = SessionWatch(lambda: session)
    yield watch
    watch.close()


def rules(mode: PauseMode) -> Preferences:
    return Preferences(rules=PauseRules(mode=mode))


@pytest.mark.parametrize(
    ("mode", "is_listening", "runs"),
    [
        (PauseMode.ALWAYS, True, False),
        (PauseMode.WHEN_FREE, True, True),
        (PauseMode.WHEN_AWAY, True, True),
        (PauseMode.WHEN_AWAY, False, False),
    ],
)
def test_it_runs_only_if_the_rules_need_it(
    watch: SessionWatch, session: FakeSession, mode: PauseMode, is_listening: bool, runs: bool
) -> None:
    watch.follow(rules(mode), is_listening)
    assert watch.is_running() is runs
    assert bool(session.num_refreshes) is runs


def test_news_are_told_and_the_same_again_is_not(watch: SessionWatch, session: FakeSession) -> None:
    told: list[SessionReading] = []
    watch.read.connect(lambda reading: told.append(reading))
    watch.follow(rules(PauseMode.WHEN_FREE), True)
    watch.poll()
    assert told == [session.reading]
    session.reading = SessionReading(2.0, True, None)
    watch.poll()
    assert told[-1] is session.reading


def test_a_new_agent_is_told_again(watch: SessionWatch) -> None:
    told: list[SessionReading] = []
    watch.read.connect(lambda reading: told.append(reading))
    for is_listening in (True, False, True):
        watch.follow(rules(PauseMode.WHEN_FREE), is_listening)
    assert len(told) == 2


def test_whoever_looks_sees_the_sources_and_the_agent_hears_nothing(watch: SessionWatch, qtbot: QtBot) -> None:
    with qtbot.assertNotEmitted(watch.read), qtbot.waitSignal(watch.named) as blocker:
        watch.look(True)
    assert blocker.args == [SourceNames("a", "b", "c")]
    assert watch.is_running()
    watch.look(False)
    assert not watch.is_running()


def test_the_session_is_closed_with_it(watch: SessionWatch, session: FakeSession) -> None:
    watch.look(True)
    watch.close()
    assert session.is_closed
    assert not watch.is_running()
