"""The real tray app: Contribute and Pause clicked on a virtual screen, with a real coordinator, agent and worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from client.app import Gui, GuiSettings
from client.status import AgentState, Status
from client.ui.theme import apply_theme
from client.ui.window import save_picture
from demo.local_pool import ROOT, LocalPool, is_running, local_pool
from tests.integration.conftest import GEMMA, Served

LIMIT_MS = 180_000


@pytest.fixture(scope="module")
def empty_pool(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A pool that has a model and waits for its first volunteer."""
    model = str(models_folder / GEMMA)
    with local_pool(tmp_path_factory.mktemp("tray"), [model], "--name", "Friends of open models") as pool:
        yield Served(pool, GEMMA)


@pytest.fixture
def gui(empty_pool: Served, qapp: QApplication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gui]:
    monkeypatch.chdir(ROOT)
    apply_theme(qapp)
    gui = Gui(
        GuiSettings(
            join_url=empty_pool.pool.url,
            agent_arguments=("--cpu", "--name", "Ada's computer"),
            data_dir=tmp_path / "data",
            config_dir=tmp_path / "config",
            log_dir=tmp_path / "log",
        )
    )
    gui.start()
    yield gui
    gui.close()
    gui.window.deleteLater()
    gui.deleteLater()


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
    qtbot: QtBot, gui: Gui, empty_pool: Served, tmp_path: Path
) -> None:
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
