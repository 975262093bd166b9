"""The real tray app: Contribute and Pause clicked on a virtual screen, with a real coordinator, agent and worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from client.app import Gui, GuiSettings
from client.autostart import FileAutostart
from client.desktop.session import DesktopSession
from client.status import AgentState, Status
from client.ui.theme import apply_theme
from client.ui.view import Wish
from client.ui.window import save_picture
from demo.local_pool import ROOT, LocalPool, is_running, local_pool
from protocol.pause import PauseReason
from tests.fakes.fake_nvml import SCRIPT_VARIABLE, FakeGpu, FakeProcess, write_script
from tests.integration.conftest import GEMMA, Served

LIMIT_MS = 180_000


@pytest.fixture(scope="module")
def empty_pool(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A pool that has a model and waits for its first volunteer."""
    model = str(models_folder / GEMMA)
    with local_pool(tmp_path_factory.mktemp("tray"), [model], "--name", "Friends of open models") as pool:
        yield Served(pool, GEMMA)


@pytest.fixture(scope="module")
def tiny_pool(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with local_pool(tmp_path_factory.mktemp("tray-tiny"), [str(tiny_folder)]) as pool:
        yield Served(pool, tiny_folder.name)


StartGui = Callable[..., Gui]


@pytest.fixture
def start_gui(qapp: QApplication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartGui]:
    """Starts the app for a pool, with these words for its agent; ended with the test."""
    monkeypatch.chdir(ROOT)
    apply_theme(qapp)
    started: list[Gui] = []

    def start(pool: LocalPool, *arguments: str) -> Gui:
        settings = GuiSettings(
            join_url=pool.url,
            agent_arguments=("--name", "Ada's computer", *arguments),
            data_dir=tmp_path / "data",
            config_dir=tmp_path / "config",
            log_dir=tmp_path / "log",
            autostart=FileAutostart(tmp_path / "autostart.desktop"),
            open_session=lambda: DesktopSession([]),
        )
        started.append(Gui(settings))
        started[-1].start()
        return started[-1]

    yield start
    for gui in started:
        gui.close()
        gui.window.deleteLater()
        gui.deleteLater()


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A GPU that is watched but not contributed, and how much of it another program uses."""
    script = tmp_path / "nvml.json"
    monkeypatch.setenv(SCRIPT_VARIABLE, str(script))

    def play(percent: int) -> None:
        others = [FakeProcess(os.getpid(), sm=percent)] if percent else []
        write_script(script, FakeGpu(is_offered=False, processes=others))

    play(0)
    return play


def status(gui: Gui) -> Status:
    return gui.agent.snapshot().status


def wait_for(qtbot: QtBot, gui: Gui, state: AgentState) -> None:
    qtbot.waitUntil(lambda: status(gui).state is state, timeout=LIMIT_MS)


def click(qtbot: QtBot, gui: Gui) -> None:
    """As a person who means it: a second click that comes faster than this counts as part of a double click."""
    qtbot.wait(QApplication.doubleClickInterval() + 50)
    qtbot.mouseClick(gui.window.button, Qt.MouseButton.LeftButton)


def shown_texts(gui: Gui) -> list[str]:
    return [label.text() for label in gui.window.findChildren(QLabel)]


def names_in(pool: LocalPool) -> list[str]:
    return [node["name"] for node in pool.state()["nodes"]]


def test_contribute_then_pause_then_contribute_again(
    qtbot: QtBot, start_gui: StartGui, empty_pool: Served, tmp_path: Path
) -> None:
    gui = start_gui(empty_pool.pool, "--cpu")
    assert "Contribute" in gui.window.button.text()
    click(qtbot, gui)
    wait_for(qtbot, gui, AgentState.SERVING)
    serving = status(gui)
    assert serving.pool_name == "Friends of open models"
    assert str(serving.devices[0].layers) == "0-17"
    assert "Pause" in gui.window.button.text()
    assert empty_pool.complete("hello", max_tokens=8)["usage"]["completion_tokens"] == 8
    qtbot.waitUntil(lambda: "8" in shown_texts(gui), timeout=LIMIT_MS)
    picture(gui, tmp_path)

    worker = serving.worker_pids[0]
    assert is_running(worker)
    click(qtbot, gui)
    wait_for(qtbot, gui, AgentState.PAUSED)
    assert not is_running(worker), "only a worker that has ended has given its memory back"
    assert status(gui).worker_pids == ()
    qtbot.waitUntil(lambda: names_in(empty_pool.pool) == [], timeout=LIMIT_MS)
    assert "Contribute" in gui.window.button.text()

    click(qtbot, gui)
    wait_for(qtbot, gui, AgentState.SERVING)
    assert status(gui).worker_pids[0] != worker
    assert empty_pool.complete("hello", max_tokens=8)["usage"]["completion_tokens"] == 8


def picture(gui: Gui, folder: Path) -> None:
    """Into the folder of the published screenshots when they are being renewed, else where nobody looks."""
    target = Path(os.environ.get("DECENTLLM_SCREENSHOTS", folder)) / "tray-window.png"
    save_picture(gui.window, target)
    assert target.stat().st_size > 5_000


def test_a_game_gets_the_gpu_and_the_app_says_so_until_it_is_quiet_again(
    qtbot: QtBot, start_gui: StartGui, tiny_pool: Served, game: Callable[[int], None]
) -> None:
    gui = start_gui(tiny_pool.pool, "--nvml-module", "tests.fakes.fake_nvml")
    click(qtbot, gui)
    wait_for(qtbot, gui, AgentState.SERVING)
    worker = status(gui).worker_pids[0]

    game(85)
    wait_for(qtbot, gui, AgentState.PAUSED)
    pause = status(gui).pause
    assert pause is not None and pause.reasons == (PauseReason.OTHER_GPU_USE,)
    assert not is_running(worker)
    qtbot.waitUntil(lambda: "85 %" in " ".join(shown_texts(gui)), timeout=LIMIT_MS)
    assert "Paused" in gui.tray.menu_actions()[0].text()
    qtbot.waitUntil(lambda: names_in(tiny_pool.pool) == [], timeout=LIMIT_MS)

    game(0)
    qtbot.waitUntil(lambda: (p := status(gui).pause) is not None and p.resumes_at_s is not None, timeout=LIMIT_MS)
    gui.tray.wished.emit(Wish.ANYWAY)
    wait_for(qtbot, gui, AgentState.SERVING)
    changes = gui.agent.snapshot().history
    assert [bool(change.reasons) for change in changes[-2:]] == [True, False]


def test_the_app_outlives_its_agent_and_leaves_no_worker_behind(
    qtbot: QtBot, start_gui: StartGui, tiny_pool: Served
) -> None:
    gui = start_gui(tiny_pool.pool, "--cpu")
    click(qtbot, gui)
    wait_for(qtbot, gui, AgentState.SERVING)
    worker = status(gui).worker_pids[0]
    agent = psutil.Process(worker).ppid()
    os.kill(agent, signal.SIGKILL)
    qtbot.waitUntil(lambda: not is_running(worker), timeout=LIMIT_MS)
    qtbot.waitUntil(lambda: status(gui).state is not AgentState.SERVING, timeout=LIMIT_MS)
    wait_for(qtbot, gui, AgentState.SERVING)
    assert status(gui).worker_pids[0] != worker


def test_the_app_outlives_the_coordinator_says_so_and_serves_again_when_it_is_back(
    qtbot: QtBot, start_gui: StartGui, tiny_folder: Path, tmp_path: Path
) -> None:
    with local_pool(tmp_path / "pool", [str(tiny_folder)]) as pool:
        gui = start_gui(pool, "--cpu")
        click(qtbot, gui)
        wait_for(qtbot, gui, AgentState.SERVING)
        pool.coordinator.process.kill()
        wait_for(qtbot, gui, AgentState.CONNECTING)
        qtbot.waitUntil(lambda: "does not answer" in " ".join(shown_texts(gui)), timeout=LIMIT_MS)
        port = urlsplit(pool.url).port
    assert port is not None
    with local_pool(tmp_path / "pool", [str(tiny_folder)], port=port):
        wait_for(qtbot, gui, AgentState.SERVING)
        gui.close()
