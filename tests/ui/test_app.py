"""The app as a process of its own: single instance, no orphans, no heavy imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from client.app import GuiSettings, agent_argv
from client.ui.preferences import FILE_NAME, load_preferences
from client.ui.single_instance import SingleInstance
from tests.ui.conftest import LIMIT_MS, ROOT, GuiDriver, shown_texts

PROGRAM = """
import sys
from pathlib import Path
from client.app import GuiSettings, run_gui
folder = Path(sys.argv[1])
settings = GuiSettings(
    join_url="http://127.0.0.1:8000", config_dir=folder, log_dir=folder, start_contributing=True,
    agent_program=(sys.executable, "-m", "tests.fakes.fake_agent"),
    agent_arguments=("--record", str(folder / "record")),
)
sys.exit(run_gui(settings))
"""


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    apps: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        apps.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT))
        return apps[-1]

    yield start
    for app in apps:
        app.kill()
        app.wait()


def wait_for_record(qtbot: QtBot, folder: Path, line: str) -> None:
    record = folder / "record"
    qtbot.waitUntil(lambda: record.exists() and line in record.read_text(), timeout=LIMIT_MS)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_app_leaves_no_agent_behind(start_app: Callable, qtbot: QtBot, tmp_path: Path) -> None:
    app = start_app()
    wait_for_record(qtbot, tmp_path, "start")
    app.kill()
    wait_for_record(qtbot, tmp_path, "end")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_agent_leave(start_app: Callable, qtbot: QtBot, tmp_path: Path, number: int) -> None:
    app = start_app()
    wait_for_record(qtbot, tmp_path, "start")
    os.kill(app.pid, number)
    assert app.wait(LIMIT_MS / 1000) == 0
    wait_for_record(qtbot, tmp_path, "line Quit")


def test_a_second_app_shows_the_first_and_ends(start_app: Callable, qtbot: QtBot, tmp_path: Path) -> None:
    first = start_app()
    wait_for_record(qtbot, tmp_path, "start")
    second = start_app()
    assert second.wait(LIMIT_MS / 1000) == 0
    assert first.poll() is None
    assert (tmp_path / "record").read_text().count("start") == 1


def test_the_first_instance_hears_of_the_second(qtbot: QtBot, tmp_path: Path) -> None:
    first, second = SingleInstance(tmp_path), SingleInstance(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    code = "from client.ui.single_instance import SingleInstance; from pathlib import Path; import sys; "
    code += "sys.exit(not SingleInstance(Path(sys.argv[1])).show_first())"
    with qtbot.waitSignal(first.show_wished, timeout=LIMIT_MS):
        asker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    assert asker.wait(LIMIT_MS / 1000) == 0
    first.release()
    assert second.acquire()
    second.release()


def test_a_path_too_long_for_a_socket_still_has_one_instance(qtbot: QtBot, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    instance = SingleInstance(folder)
    assert instance.acquire()
    assert not SingleInstance(folder).acquire()
    instance.release()


def test_the_app_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "websockets", "httpx", "asyncio", "numpy", "PySide6.QtQml"}
    code = f"import sys, client.app; print(sorted(set(sys.modules) & {heavy!r}))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_agents_command_line() -> None:
    settings = GuiSettings(agent_arguments=("--max-memory", "4GB"), data_dir=Path("/data"))
    itself = [sys.executable, "-m", "client", "node", "run"]
    assert agent_argv(settings, "http://pool") == [
        *itself,
        *("--attached", "--join", "http://pool", "--data-dir", "/data".replace("/", os.sep), "--max-memory", "4GB"),
    ]


def test_a_frozen_app_starts_itself_as_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert agent_argv(GuiSettings(), "http://pool")[:3] == [sys.executable, "node", "run"]


def test_a_pasted_pool_is_joined_and_remembered(start_gui: Callable[..., GuiDriver], tmp_path: Path) -> None:
    driver = start_gui(join_url=None)
    assert driver.window.pool_form.isVisible()
    driver.window.pool_form.open_with("http://127.0.0.1:9000")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert load_preferences(tmp_path / FILE_NAME).join_url == "http://127.0.0.1:9000"
    again = start_gui(join_url=None)
    assert not again.window.pool_form.isVisible()


def test_a_pool_on_the_command_line_that_is_none_is_asked_for(start_gui: Callable[..., GuiDriver]) -> None:
    driver = start_gui(join_url="ftp://pool")
    assert any("must look like http://" in text for text in shown_texts(driver.window))
    assert driver.window.pool_form.isVisible()


def test_an_unreadable_settings_file_is_shown(start_gui: Callable[..., GuiDriver], tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("join_url =")
    driver = start_gui(join_url=None)
    assert any("gui.toml cannot be used" in text for text in shown_texts(driver.window))
    assert driver.window.pool_form.isVisible()
