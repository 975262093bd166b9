"""The volunteer's own pause on the wall clock."""

from __future__ import annotations

from pytestqt.qtbot import QtBot

from client.ui.manual_pause import ManualPauseClock
from client.ui.pause_choice import ManualPause


class Wall:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_it_ends_when_the_wall_clock_says_so_even_after_a_sleep(qtbot: QtBot) -> None:
    wall = Wall()
    clock = ManualPauseClock(wall)
    clock.hold(ManualPause(2000.0))
    with qtbot.assertNotEmitted(clock.over):
        clock.look()
    wall.now_s = 2000.0
    with qtbot.waitSignal(clock.over):
        clock.look()
    assert clock.pause is None


def test_it_looks_by_itself(qtbot: QtBot) -> None:
    wall = Wall()
    clock = ManualPauseClock(wall)
    with qtbot.waitSignal(clock.over):
        clock.hold(ManualPause(1000.02))
        wall.now_s = 1001.0


def test_a_pause_without_an_end_never_ends(qtbot: QtBot) -> None:
    wall = Wall()
    clock = ManualPauseClock(wall)
    clock.hold(ManualPause())
    wall.now_s = 10**9
    with qtbot.assertNotEmitted(clock.over):
        clock.look()
    assert clock.pause == ManualPause()


def test_a_pause_that_ended_while_the_app_was_away_is_over_at_once(qtbot: QtBot) -> None:
    clock = ManualPauseClock(Wall())
    with qtbot.waitSignal(clock.over):
        clock.hold(ManualPause(999.0))
