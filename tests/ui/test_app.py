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

from client.app import GuiSettings, agent_launch, facts_argv
from client.arguments import JOIN_VARIABLE
from client.config import Direct
from client.ui.preferences import FILE_NAME, Preferences, load_preferences
from protocol.join_link import JoinLink
from tests.ui.conftest import LIMIT_MS, ROOT, GuiDriver, shown_texts

PROGRAM = """
import sys
from pathlib import Path
from client.app import GuiSettings, run_gui
folder = Path(sys.argv[1])
settings = GuiSettings(
    join_url="http://127.0.0.1:8000", config_dir=folder, log_dir=folder, start_contributing=True,
    agent_program=(sys.executable, "-m", "tests.ui.agent_double"),
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


def test_the_app_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "websockets", "httpx", "asyncio", "numpy", "cryptography", "pynvml"}
    heavy |= {"PySide6.QtQml", "PySide6.QtQuick", "PySide6.QtOpenGL"}
    code = f"import sys, client.app; print(sorted(set(sys.modules) & {heavy!r}))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


LINK = JoinLink("https://pool.example.org", "ab" * 32, "abcdefgh")


def test_the_agents_command_line_has_the_limits_but_not_the_link() -> None:
    settings = GuiSettings(agent_arguments=("--max-memory", "4GB"), data_dir=Path("/data"))
    preferences = Preferences(name="Ada", max_disk_bytes=10**10, max_memory_bytes=2**33, direct=Direct.OFF)
    launch = agent_launch(settings, preferences, LINK)
    assert launch.argv == (
        *(sys.executable, "-m", "client", "node", "run", "--attached"),
        *("--name", "Ada", "--max-memory", str(2**33), "--max-disk", str(10**10), "--direct", "off"),
        *("--data-dir", "/data".replace("/", os.sep), "--max-memory", "4GB"),
    )
    assert launch.variables == {JOIN_VARIABLE: f"decentllm://pool.example.org/join?pin={'ab' * 32}&invite=abcdefgh"}


def test_without_limits_the_agent_has_its_own_defaults() -> None:
    assert agent_launch(GuiSettings(), Preferences(), LINK).argv[-2:] == ("run", "--attached")


def test_a_frozen_app_starts_itself_as_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert agent_launch(GuiSettings(), Preferences(), LINK).argv[:3] == (sys.executable, "node", "run")
    assert facts_argv(GuiSettings(data_dir=Path("data"))) == [sys.executable, "node", "facts", "--data-dir", "data"]


def test_a_pasted_pool_is_joined_and_remembered(start_gui: Callable[..., GuiDriver], tmp_path: Path) -> None:
    driver = start_gui(join_url=None)
    assert driver.window.pool_form.isVisible()
    driver.window.pool_form.open_with("http://127.0.0.1:9000")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert load_preferences(tmp_path / FILE_NAME).link == JoinLink("http://127.0.0.1:9000")
    again = start_gui(join_url=None)
    assert not again.window.pool_form.isVisible()


def test_an_invitation_is_forgotten_once_the_pool_has_taken_it(
    start_gui: Callable[..., GuiDriver], tmp_path: Path
) -> None:
    driver = start_gui("--play", "connecting,serving", join_url=None)
    driver.window.pool_form.open_with(f"decentllm://127.0.0.1:9000/join?pin={'ab' * 32}&invite=abcdefgh")
    driver.press()
    driver.wait_for_text("Serving layers 0-11 of 24")
    assert load_preferences(tmp_path / FILE_NAME).link == JoinLink("https://127.0.0.1:9000", "ab" * 32)
    assert driver.recorded("join")[0].endswith("&invite=abcdefgh")
    assert "abcdefgh" not in "".join(path.read_text() for path in tmp_path.glob("gui.toml*"))


def test_an_invitation_is_kept_until_then(start_gui: Callable[..., GuiDriver], tmp_path: Path) -> None:
    driver = start_gui("--play", "failed", join_url=None)
    driver.window.pool_form.open_with("decentllm://127.0.0.1:9000/join?invite=abcdefgh")
    driver.press()
    driver.wait_for_text("its invitation has run out.")
    assert load_preferences(tmp_path / FILE_NAME).link == JoinLink("http://127.0.0.1:9000", "", "abcdefgh")


def test_a_pool_on_the_command_line_that_is_none_is_asked_for(start_gui: Callable[..., GuiDriver]) -> None:
    driver = start_gui(join_url="ftp://pool")
    assert any("pool's link begins with" in text for text in shown_texts(driver.window))
    assert driver.window.pool_form.isVisible()


def test_an_unreadable_settings_file_is_shown(start_gui: Callable[..., GuiDriver], tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("join_link =")
    driver = start_gui(join_url=None)
    assert any("gui.toml cannot be used" in text for text in shown_texts(driver.window))
    assert driver.window.pool_form.isVisible()
