"""The whole app against a fake agent in a real process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from PySide6.QtCore import QProcess, Qt

from client.status import AgentState
from client.supervisor_table import Phase
from client.ui.agent_process import MAX_LOG_BYTES, keep_log_small
from client.ui.view import Wish
from client.ui.window import save_picture
from protocol.join_link import JoinLink
from protocol.pause import PauseRules
from tests.ui.conftest import GuiDriver, shown_texts

StartGui = Callable[..., GuiDriver]


def test_one_click_serves(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    save_picture(driver.window, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 5000
    assert len(driver.recorded("start")) == 1


def test_twenty_fast_clicks_start_one_agent(start_gui: StartGui) -> None:
    driver = start_gui()
    for _ in range(20):
        driver.qtbot.mouseClick(driver.window.button, Qt.MouseButton.LeftButton)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert len(driver.recorded("start")) == 1


def test_pause_and_resume(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    driver.press()
    driver.wait_for_text("Paused")
    assert driver.window.button.text() == "Contribute GPU"
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert driver.recorded("line") == ["line Pause", "line Resume"]
    assert len(driver.recorded("start")) == 1


def test_fifty_fast_changes_of_mind_end_in_the_last(start_gui: StartGui) -> None:
    driver = start_gui("--play", "serving")
    for _ in range(50):
        driver.press()
        driver.press()
    driver.wait_for_phase(Phase.PAUSED)
    driver.wait_for_record("line Pause", 50)
    driver.wait_for_text("Paused")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert len(driver.recorded("start")) == 1


def test_a_crash_is_shown_within_a_second_and_mended(start_gui: StartGui) -> None:
    driver = start_gui("--play", "connecting,serving", "--crash-after", "serving", "--crash-times", "1")
    driver.press()
    driver.wait_for_phase(Phase.RESTARTING)
    driver.qtbot.waitUntil(lambda: any("exit status 3" in text for text in shown_texts(driver.window)), timeout=1000)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert len(driver.recorded("start")) == 2


@pytest.mark.expected_logs("was not understood")
def test_garbage_is_reported_and_not_fatal(start_gui: StartGui) -> None:
    driver = start_gui("--garbage")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    driver.wait_for_text("5 lines from the background process could not be understood.")


def test_a_flood_does_not_freeze_the_window(start_gui: StartGui) -> None:
    driver = start_gui("--flood", "20000")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")


def test_a_failure_is_shown_with_what_to_do(start_gui: StartGui) -> None:
    driver = start_gui("--play", "connecting,failed")
    driver.press()
    driver.wait_for_text("its invitation has run out.")
    driver.wait_for_text("press “Try again”")
    assert driver.window.button.text() == "Try again"


def test_an_agent_that_cannot_be_started_is_shown(start_gui: StartGui, tmp_path: Path) -> None:
    driver = start_gui(agent_program=(str(tmp_path / "no such program"),))
    driver.press()
    driver.wait_for_text("The background process could not be started")


def test_an_agent_that_does_not_let_go_is_ended(start_gui: StartGui, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = start_gui("--ignore-pause")
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    driver.gui.agent.handle = _hurried(driver)  # type: ignore[method-assign]
    driver.press()
    driver.wait_for_phase(Phase.STOPPED)
    driver.wait_for_text("Paused")


def _hurried(driver: GuiDriver) -> Callable[[object], None]:
    """An hour passes between any two events: every limit is over at once."""
    agent, hours = driver.gui.agent, iter(range(10**6, 10**9, 3600))

    def handle(event: object) -> None:
        for command in agent._supervisor.handle(event, float(next(hours))):
            agent._run(command)
        agent._wake.start(0)

    return handle


def test_quit_lets_the_agent_leave(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    with driver.qtbot.waitSignal(driver.gui.agent.finished, timeout=20_000):
        driver.gui.quit()
    assert driver.recorded("line") == ["line Quit"]
    assert len(driver.recorded("end")) == 1


def test_closing_the_window_without_a_tray_leaves_the_pool(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    with driver.qtbot.waitSignal(driver.gui.agent.finished, timeout=20_000):
        driver.gui.tray.stop()
        driver.window.close()


def test_the_app_ends_what_is_left_of_the_agent(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_state(AgentState.SERVING)
    driver.gui.close()
    assert len(driver.recorded("eof")) == 1
    assert not [child for child in driver.gui.agent.findChildren(QProcess) if child.state().value]


def test_another_pool_gets_another_agent(start_gui: StartGui) -> None:
    driver = start_gui(join_url=None)
    driver.window.pool_chosen.emit(JoinLink("http://127.0.0.1:1"))
    driver.window.wished.emit(Wish.CONTRIBUTE)
    driver.wait_for_state(AgentState.SERVING)
    driver.window.pool_chosen.emit(JoinLink("http://127.0.0.1:2"))
    driver.wait_for_record("start", 2)
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert driver.recorded("join") == ["join decentllm://127.0.0.1:1/join", "join decentllm://127.0.0.1:2/join"]


def test_the_invitation_is_in_the_environment_and_on_no_command_line(start_gui: StartGui, tmp_path: Path) -> None:
    link = "decentllm://127.0.0.1:1/join?invite=abcdefgh"
    driver = start_gui(join_url=link)
    launch = driver.gui._launch()
    assert not any("abcdefgh" in word for word in launch.argv)
    assert "abcdefgh" not in repr(launch)
    driver.press()
    driver.wait_for_record("join")
    assert driver.recorded("join") == [f"join {link}"]


def test_what_is_asked_for_comes_before_everything_else(start_gui: StartGui) -> None:
    driver = start_gui()
    driver.press()
    driver.wait_for_record("rules")
    driver.wait_for_state(AgentState.SERVING)
    assert driver.recorded("rules") == [f"rules {msgspec.json.encode(PauseRules()).decode()}"]


def test_preparing_shows_bytes_and_can_be_cancelled(start_gui: StartGui) -> None:
    driver = start_gui("--play", "preparing:41")
    driver.press()
    driver.wait_for_text("Preparing 41%")
    assert "517 MB of 1.3 GB" in shown_texts(driver.window)
    assert driver.window.button.text() == "Cancel"
    driver.press()
    driver.wait_for_phase(Phase.PAUSED)
    assert driver.window.button.text() == "Contribute GPU"


def test_a_pause_of_the_agents_own_says_why_and_can_be_overruled(start_gui: StartGui) -> None:
    driver = start_gui("--play", "serving,paused:other_gpu_use")
    driver.press()
    driver.wait_for_text("Another program is using the GPU.")
    assert any("steam uses 87 % of the GPU" in text for text in shown_texts(driver.window))
    assert driver.gui.agent.snapshot().phase is Phase.CONTRIBUTING
    driver.qtbot.waitUntil(lambda: bool(driver.gui.agent.snapshot().history), timeout=20_000)
    driver.window.button.click()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert driver.recorded("anyway") == ["anyway True"]


def test_a_log_that_has_grown_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    keep_log_small(log)
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.log.1"]
    keep_log_small(log)
