"""The texts: a pure function, tested without Qt."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from client.status import AgentState, DeviceStatus, PauseInfo, Status
from client.supervisor import Snapshot
from client.supervisor_table import Phase
from client.ui.pause_choice import ManualPause
from client.ui.plan import plan_of
from client.ui.preferences import Preferences
from client.ui.view import MAX_DEVICES, Icon, Surroundings, View, Wish, view_of
from protocol.pause import PauseReason
from protocol.values import LayerRange
from tests.ui.agent_double import status_of

BUSY_STATES = (AgentState.CONNECTING, AgentState.MEASURING, AgentState.WAITING, AgentState.LOADING)


def contributing(step: str) -> View:
    return view_of(Snapshot(Phase.CONTRIBUTING, status_of(step)))


def downloading(done: int, total: int) -> View:
    device = DeviceStatus("cpu", "CPU", AgentState.DOWNLOADING, done_bytes=done, total_bytes=total)
    return view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.DOWNLOADING, devices=(device,))))


def test_stopped_offers_to_contribute() -> None:
    view = view_of(Snapshot())
    assert (view.headline, view.button_text, view.wish) == ("Not contributing", "Contribute GPU", Wish.CONTRIBUTE)
    assert view.icon is Icon.IDLE


def test_serving_says_layers_and_model() -> None:
    view = view_of(Snapshot(Phase.CONTRIBUTING, status_of("serving"), num_tokens=128_934))
    assert (view.headline, view.subject) == ("Serving layers 0-11 of 24", "Qwen2.5-Coder-0.5B-Instruct")
    assert view.tooltip == "DecentLLM: Serving layers 0-11 of 24 of Qwen2.5-Coder-0.5B-Instruct"
    assert (view.button_text, view.icon) == ("Pause", Icon.SERVING)
    assert [fact.value for fact in view.facts] == ["3", "128,934"]


def test_a_worker_that_was_restarted_is_told_in_the_window_and_in_the_tray() -> None:
    sentence = "The worker did not answer and was restarted."
    status = msgspec.structs.replace(status_of("serving"), notice=f"{sentence}\n")
    view = view_of(Snapshot(Phase.CONTRIBUTING, status))
    assert (view.note, view.reason, view.headline) == (sentence, sentence, "Serving layers 0-11 of 24")
    assert view_of(Snapshot(Phase.STOPPED, status)).note == ""
    paused = PauseInfo((PauseReason.VIDEO,), NOW_S)
    both = view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.PAUSED, pause=paused, notice=sentence)))
    assert both.reason == "A video is being played or recorded."


def test_serving_on_two_devices_counts_them() -> None:
    device = status_of("serving").devices[0]
    view = view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.SERVING, devices=(device, device))))
    assert view.headline == "Serving on 2 devices"
    assert view.devices[1].layers == "Layers 0-11 of 24 · Qwen2.5-Coder-0.5B-Instruct"


def test_downloading_says_how_much() -> None:
    view = downloading(410_000_000, 1_000_000_000)
    assert view.headline == "Downloading 41%"
    assert view.progress is not None
    assert (view.progress.fraction, view.progress.text) == (0.41, "410 MB of 1.0 GB")


def test_nearly_all_is_not_all() -> None:
    assert downloading(9_999, 10_000).headline == "Downloading 99%"


@pytest.mark.parametrize(("done", "total"), [(5, 0), (-5, -1), (0, 0)])
def test_an_unknown_total_gives_no_percentage(done: int, total: int) -> None:
    view = downloading(done, total)
    assert view.headline == "Downloading"
    assert view.progress is not None
    assert view.progress.fraction is None


def test_more_than_everything_is_everything() -> None:
    progress = downloading(20, 10).progress
    assert progress is not None
    assert (progress.fraction, progress.text) == (1.0, "10 bytes of 10 bytes")


@pytest.mark.parametrize("state", BUSY_STATES)
def test_on_the_way_the_button_pauses(state: AgentState) -> None:
    view = contributing(state.value)
    assert (view.icon, view.wish, view.button_enabled) == (Icon.BUSY, Wish.PAUSE, True)


def test_waiting_says_what_for() -> None:
    status = Status(AgentState.WAITING, message="The pool has all layers covered.")
    assert view_of(Snapshot(Phase.CONTRIBUTING, status)).sentence == "The pool has all layers covered."


def test_a_failure_says_why_and_what_to_do() -> None:
    view = view_of(Snapshot(Phase.FAILED, status_of("failed")))
    assert view.sentence.startswith("The pool refused this node: its invitation has run out.")
    assert "press “Try again”" in view.sentence
    assert (view.button_text, view.wish, view.icon) == ("Try again", Wish.CONTRIBUTE, Icon.ATTENTION)


def test_a_crash_says_when_it_goes_on() -> None:
    view = view_of(Snapshot(Phase.RESTARTING, problem="It stopped.", restart_in_s=4))
    assert (view.headline, view.sentence) == ("Stopped unexpectedly", "It stopped. Starting it again in 4 s.")
    assert (view.wish, view.icon) == (Wish.PAUSE, Icon.ATTENTION)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.PAUSING, Phase.LEAVING, Phase.ENDING, Phase.REPLACING])
def test_an_old_report_is_not_shown_as_the_truth(phase: Phase) -> None:
    view = view_of(Snapshot(phase, status_of("serving")))
    assert "Serving" not in view.headline + view.tooltip
    assert view.icon is Icon.BUSY


def test_every_phase_and_state_has_a_view() -> None:
    for phase in Phase:
        for state in AgentState:
            view = view_of(Snapshot(phase, status_of(state.value)))
            assert view.headline
            assert view.button_text


def test_markup_never_reaches_the_tooltip() -> None:
    device = DeviceStatus("cpu", "<b>CPU</b>", AgentState.SERVING, "<img src=file:///x>&", LayerRange(0, 1), 1)
    view = view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.SERVING, devices=(device,))))
    assert not set(view.tooltip) & set("<>&")
    assert view.devices[0].name == "<b>CPU</b>"


def test_hundreds_of_devices_are_cut() -> None:
    device = status_of("serving").devices[0]
    view = view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.SERVING, devices=(device,) * 500)))
    assert len(view.devices) == MAX_DEVICES


def test_garbage_is_mentioned() -> None:
    assert view_of(Snapshot(num_garbage_lines=1)).note == "1 line from the background process could not be understood."
    assert view_of(Snapshot()).note == ""


NOW_S = 1_800_000_000.0


def auto_paused(*reasons: PauseReason, **fields: object) -> View:
    pause = PauseInfo(reasons, NOW_S - 60, **fields)
    snapshot = Snapshot(Phase.CONTRIBUTING, Status(AgentState.PAUSED, pause=pause))
    return view_of(snapshot, Surroundings(NOW_S))


def test_preparing_says_how_much_and_can_be_cancelled() -> None:
    view = contributing("preparing:41")
    assert (view.headline, view.button_text, view.wish) == ("Preparing 41%", "Cancel", Wish.PAUSE)
    assert view.progress is not None
    assert view.progress.text == "517 MB of 1.3 GB"


def test_preparing_says_what_the_agent_says_about_it() -> None:
    status = Status(AgentState.PREPARING, "Testing what was installed.")
    view = view_of(Snapshot(Phase.CONTRIBUTING, status))
    assert view.sentence == "Testing what was installed."
    assert view.progress is not None
    assert view.progress.fraction is None


def test_an_automatic_pause_says_why_and_offers_to_contribute_anyway() -> None:
    view = auto_paused(PauseReason.OTHER_GPU_USE, detail="steam uses 87 % of the GPU")
    assert (view.headline, view.subject) == ("Paused", "Another program is using the GPU.")
    assert view.sentence.startswith("steam uses 87 % of the GPU\nIt goes on by itself")
    assert (view.button_text, view.wish, view.icon) == ("Contribute anyway", Wish.ANYWAY, Icon.PAUSED)
    assert view.tooltip == "DecentLLM: Paused. Another program is using the GPU."
    assert "steam" not in view.tooltip + view.reason
    assert view.can_pause


@pytest.mark.parametrize("reason", [reason for reason in PauseReason if reason is not PauseReason.MANUAL])
def test_every_reason_has_a_sentence_and_says_when_it_goes_on(reason: PauseReason) -> None:
    view = auto_paused(reason)
    assert view.reason.endswith(".")
    assert view.sentence.startswith("It goes on by itself")


def test_the_wait_is_counted_down_and_stays_out_of_the_tray() -> None:
    view = auto_paused(PauseReason.VIDEO, resumes_at_s=NOW_S + 42)
    assert view.sentence == "It goes on by itself in 42 s, if nothing stirs again."
    assert view.is_counting_down
    assert "42" not in view.tooltip
    assert not auto_paused(PauseReason.HOURS, resumes_at_s=NOW_S + 5 * 3600).is_counting_down


def test_a_pause_without_reasons_is_still_one() -> None:
    view = view_of(Snapshot(Phase.CONTRIBUTING, Status(AgentState.PAUSED)))
    assert (view.headline, view.wish, view.icon) == ("Paused", Wish.ANYWAY, Icon.PAUSED)


def test_a_pause_by_hand_says_its_end() -> None:
    snapshot = Snapshot(Phase.PAUSED, Status(AgentState.PAUSED, pause=PauseInfo((PauseReason.MANUAL,), NOW_S)))
    view = view_of(snapshot, Surroundings(NOW_S, ManualPause(NOW_S + 900)))
    assert view.headline.startswith("Paused until ")
    assert (view.button_text, view.wish, view.can_pause) == ("Contribute GPU", Wish.CONTRIBUTE, True)
    assert view.tooltip.startswith("DecentLLM: Paused until ")


FINISHING = Status(AgentState.SERVING, num_sessions=2, leaves_at_s=NOW_S + 24)


def test_a_pause_after_answers_says_what_it_waits_for_and_can_be_taken_back() -> None:
    view = view_of(Snapshot(Phase.FINISHING, FINISHING), Surroundings(NOW_S, ManualPause()))
    assert (view.headline, view.sentence) == ("Pausing", "Finishing 2 answers, at most 24 s more.")
    assert view.tooltip == "DecentLLM: Pausing. Finishing 2 answers, at most 24 s more."
    assert (view.reason, view.icon) == (view.sentence, Icon.BUSY)
    assert (view.button_text, view.wish) == ("Keep contributing", Wish.CONTRIBUTE)
    assert (view.can_pause, view.can_finish) == (True, False)
    assert view.is_counting_down
    assert view.is_finishing


def test_an_agent_that_leaves_softly_by_itself_says_so_too_and_can_be_paused_at_once() -> None:
    view = view_of(Snapshot(Phase.CONTRIBUTING, FINISHING), Surroundings(NOW_S))
    assert (view.headline, view.sentence) == ("Pausing", "Finishing 2 answers, at most 24 s more.")
    assert (view.button_text, view.wish) == ("Pause", Wish.PAUSE)


@pytest.mark.parametrize("step", ["serving", "waiting", "downloading:41", "paused:video"])
def test_only_where_answers_may_run_they_can_be_finished_first(step: str) -> None:
    assert contributing(step).can_finish is (step == "serving")


def test_a_pause_that_only_the_agent_knows_can_be_ended() -> None:
    status = Status(AgentState.PAUSED, pause=PauseInfo((PauseReason.MANUAL,), NOW_S))
    view = view_of(Snapshot(Phase.CONTRIBUTING, status))
    assert (view.headline, view.button_text, view.wish) == ("Paused", "Contribute GPU", Wish.ANYWAY)


def test_a_remembered_pause_is_shown_without_an_agent() -> None:
    view = view_of(Snapshot(), Surroundings(NOW_S, ManualPause()))
    assert (view.headline, view.icon, view.can_pause) == ("Paused", Icon.PAUSED, True)
    assert view.plan is None


def test_before_the_first_click_there_is_a_plan_and_later_none() -> None:
    plan = plan_of(None, False, Preferences())
    assert view_of(Snapshot(), Surroundings(plan=plan)).plan is plan
    for phase in Phase:
        if phase is not Phase.STOPPED:
            assert view_of(Snapshot(phase, status_of("serving")), Surroundings(plan=plan)).plan is None


def test_view_and_supervisor_need_no_qt() -> None:
    modules = "client.ui.view, client.ui.plan, client.supervisor, client.facts, client.autostart"
    code = f"import sys, {modules}; sys.exit(any('PySide6' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
