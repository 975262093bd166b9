"""The window's tests run without a screen unless there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from client.app import Gui, GuiSettings
from client.autostart import FileAutostart
from client.desktop.session import DesktopSession
from client.status import AgentState
from client.supervisor_table import Phase
from client.ui.theme import apply_theme

LIMIT_MS = 20_000
"""For anything that a process has to do: far more than it needs on a loaded machine."""
FAKE_AGENT = (sys.executable, "-m", "tests.ui.agent_double")
FACTS_PROGRAM = (sys.executable, "-m", "tests.ui.facts_double")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake agent is started as a module of this repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def qapp(qapp: QApplication) -> QApplication:
    apply_theme(qapp)
    return qapp


class GuiDriver:
    """A whole app with a fake agent behind it, and what the fake recorded."""

    def __init__(self, qtbot: QtBot, settings: GuiSettings, record: Path) -> None:
        self.qtbot = qtbot
        self.record = record
        self.gui = Gui(settings)
        self.window = self.gui.window
        self.gui.start()

    def close(self) -> None:
        self.gui.close()
        self.window.deleteLater()
        self.gui.deleteLater()

    def press(self) -> None:
        self.window.button.click()

    def wait_for_phase(self, phase: Phase) -> None:
        self.qtbot.waitUntil(lambda: self.gui.agent.snapshot().phase is phase, timeout=LIMIT_MS)

    def wait_for_state(self, state: AgentState) -> None:
        self.qtbot.waitUntil(lambda: self.gui.agent.snapshot().status.state is state, timeout=LIMIT_MS)

    def wait_for_text(self, text: str) -> None:
        self.qtbot.waitUntil(lambda: any(text in shown for shown in shown_texts(self.window)), timeout=LIMIT_MS)

    def recorded(self, beginning: str) -> list[str]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [line for line in lines if line.startswith(beginning)]

    def wait_for_record(self, beginning: str, count: int = 1) -> None:
        self.qtbot.waitUntil(lambda: len(self.recorded(beginning)) >= count, timeout=LIMIT_MS)


def shown_texts(window: object) -> list[str]:
    from PySide6.QtWidgets import QLabel

    return [label.text() for label in window.findChildren(QLabel) if label.isVisibleTo(window)]  # type: ignore[attr-defined]


@pytest.fixture
def settings(tmp_path: Path) -> GuiSettings:
    return GuiSettings(
        join_url="http://127.0.0.1:8000",
        config_dir=tmp_path,
        log_dir=tmp_path,
        agent_program=FAKE_AGENT,
        facts_program=FACTS_PROGRAM,
        autostart=FileAutostart(tmp_path / "autostart" / "decentllm.desktop"),
        open_session=lambda: DesktopSession([]),
        agent_arguments=("--record", str(tmp_path / "record")),
    )


@pytest.fixture
def start_gui(qtbot: QtBot, settings: GuiSettings, tmp_path: Path) -> Iterator[Callable[..., GuiDriver]]:
    """Starts an app whose fake agent gets these arguments."""
    drivers: list[GuiDriver] = []

    def start(*arguments: str, **changes: object) -> GuiDriver:
        changed = replace(settings, agent_arguments=settings.agent_arguments + arguments, **changes)
        drivers.append(GuiDriver(qtbot, changed, tmp_path / "record"))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()
