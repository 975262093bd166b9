"""The changes between serving and paused, and nothing else."""

from __future__ import annotations

from client.agent.history import with_change
from client.agent.policy import LOOKING, Verdict
from client.status import MAX_TRANSITIONS, History, Transition, decode_report, encode_line
from protocol.pause import PauseReason

SERVE = Verdict(serve=True)
GAME = Verdict(False, (PauseReason.OTHER_GPU_USE,), "factorio uses 80 % of the GPU")
MORE = Verdict(False, (PauseReason.OTHER_GPU_USE, PauseReason.BATTERY), "on battery")
EMPTY = History(())


def test_a_pause_is_kept_with_its_reasons_and_what_was_seen() -> None:
    assert with_change(EMPTY, SERVE, GAME, 5.0) == History((Transition(5.0, GAME.reasons, GAME.detail),))


def test_going_on_is_kept_without_reasons() -> None:
    assert with_change(EMPTY, GAME, SERVE, 6.0) == History((Transition(6.0),))


def test_a_pause_at_the_start_is_kept() -> None:
    assert with_change(EMPTY, LOOKING, GAME, 1.0).transitions[0].reasons == GAME.reasons


def test_no_change_is_not_kept() -> None:
    for before, after in [(SERVE, SERVE), (GAME, MORE), (LOOKING, SERVE), (LOOKING, LOOKING)]:
        assert with_change(EMPTY, before, after, 1.0) is EMPTY


def test_only_the_last_changes_are_kept_and_they_fit_into_a_line() -> None:
    history = EMPTY
    for number in range(MAX_TRANSITIONS + 20):
        before, after = (SERVE, GAME) if number % 2 == 0 else (GAME, SERVE)
        history = with_change(history, before, after, float(number))
    assert [change.at_s for change in history.transitions] == [float(n) for n in range(20, MAX_TRANSITIONS + 20)]
    assert decode_report(encode_line(history)) == history
    assert len(encode_line(history)) < 60_000
