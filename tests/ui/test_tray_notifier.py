"""The tray as a StatusNotifierItem (GNOME, KDE, Wayland): a real app process, a private bus, a fake panel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
from PySide6.QtDBus import QDBusConnection
from pytestqt.qtbot import QtBot

from tests.fakes.private_bus import FakeWatcher, connected, needs_bus, private_bus, serve
from tests.ui.conftest import LIMIT_MS, ROOT

pytestmark = [
    needs_bus,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("Xvfb", "dbus-send")), reason="Xvfb or dbus-send is not installed"
    ),
]
WATCHER = "org.kde.StatusNotifierWatcher"
PROGRAM = """
import sys
from PySide6.QtCore import QSocketNotifier
from PySide6.QtWidgets import QApplication
from client.supervisor import Snapshot
from client.supervisor_table import Phase
from client.ui.tray import Tray
from client.ui.view import view_of
from tests.ui.agent_double import status_of
app = QApplication(["decentllm"])
app.setQuitOnLastWindowClosed(False)
tray = Tray()
say = lambda text: print(text, flush=True)
tray.window_wished.connect(lambda: say("open"))
tray.wished.connect(lambda wish: say(f"wish {wish.value}"))
tray.pause_chosen.connect(lambda choice: say(f"pause {choice.name}"))
show = lambda step: tray.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status_of(step))))
show("waiting")
tray.start()
say("started")
notifier = QSocketNotifier(0, QSocketNotifier.Type.Read)
notifier.activated.connect(lambda: show(line) if (line := sys.stdin.readline().strip()) else app.quit())
app.exec()
"""


@pytest.fixture
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


@pytest.fixture
def panel_bus(address: str, qtbot: QtBot) -> Iterator[QDBusConnection]:
    with connected(address) as bus:
        yield bus


@pytest.fixture
def display() -> Iterator[str]:
    reader, writer = os.pipe()
    argv = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    server = subprocess.Popen(argv, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as answers:
        yield f":{answers.readline().strip()}"
    server.kill()
    server.wait()


class App:
    """The app's process, seen from the panel."""

    def __init__(self, process: subprocess.Popen[str], environ: dict[str, str], qtbot: QtBot) -> None:
        self.process = process
        self.environ = environ
        self.qtbot = qtbot
        self.item = ""

    def send(self, path: str, method: str, *words: str) -> str:
        """What the item answers, as dbus-send prints it. Without blocking: the panel lives in this process."""
        argv = ["dbus-send", "--session", "--print-reply", f"--dest={self.item}", path, method, *words]
        # Into a file: an icon is more than a pipe holds, and nobody reads it meanwhile.
        with tempfile.TemporaryFile("w+") as output:
            sent = subprocess.Popen(argv, env=self.environ, stdout=output, stderr=output)
            self.qtbot.waitUntil(lambda: sent.poll() is not None, timeout=LIMIT_MS)
            output.seek(0)
            answer = output.read()
        assert sent.returncode == 0, answer
        return answer

    def property(self, name: str) -> str:
        return self.send(
            "/StatusNotifierItem",
            "org.freedesktop.DBus.Properties.Get",
            "string:org.kde.StatusNotifierItem",
            f"string:{name}",
        )

    def layout(self) -> str:
        words = ("int32:0", "int32:-1", "array:string:label")
        return self.send("/MenuBar", "com.canonical.dbusmenu.GetLayout", *words)

    def show(self, step: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def start_app(address: str, display: str, qtbot: QtBot) -> Iterator[object]:
    environ = dict(os.environ, DBUS_SESSION_BUS_ADDRESS=address, DISPLAY=display, QT_QPA_PLATFORM="xcb")
    environ["XDG_CURRENT_DESKTOP"] = "KDE"
    started: list[subprocess.Popen[str]] = []

    def start() -> App:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        argv = [sys.executable, "-c", PROGRAM]
        started.append(subprocess.Popen(argv, cwd=ROOT, env=environ, text=True, **pipes))
        return App(started[-1], environ, qtbot)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def watcher(panel_bus: QDBusConnection) -> FakeWatcher:
    watcher = FakeWatcher()
    serve(panel_bus, WATCHER, "/StatusNotifierWatcher", watcher)
    return watcher


@pytest.fixture
def app(start_app: object, watcher: FakeWatcher, qtbot: QtBot) -> App:
    app: App = start_app()  # type: ignore[operator]
    qtbot.waitUntil(lambda: bool(watcher.items), timeout=LIMIT_MS)
    app.item = watcher.items[0]
    assert app.said() == "started"
    return app


def item_id(layout: str, label: str) -> str:
    """The number that dbusmenu gave the entry with this label."""
    before = layout[: layout.index(f'string "{label}"')]
    return before[before.rindex("struct") :].split("int32")[1].split()[0]


def test_the_panel_sees_state_icon_and_menu(app: App, qtbot: QtBot) -> None:
    assert "DecentLLM: Waiting for work" in app.property("ToolTip")
    assert "int32 22" in app.property("IconPixmap")
    layout = app.layout()
    for label in ("Waiting for work", "Open DecentLLM", "Pause", "For 15 minutes", "Why did it pause?", "Quit"):
        assert f'string "{label}"' in layout


def test_the_state_changes_where_people_look(app: App, qtbot: QtBot) -> None:
    icon = app.property("IconPixmap")
    app.show("paused:video")
    qtbot.waitUntil(
        lambda: "DecentLLM: Paused. A video is being played or recorded." in app.property("ToolTip"), timeout=LIMIT_MS
    )
    qtbot.waitUntil(lambda: app.property("IconPixmap") != icon, timeout=LIMIT_MS)
    qtbot.waitUntil(lambda: 'string "Contribute anyway"' in app.layout(), timeout=LIMIT_MS)


def test_a_click_opens_the_window(app: App) -> None:
    app.send("/StatusNotifierItem", "org.kde.StatusNotifierItem.Activate", "int32:1", "int32:1")
    assert app.said() == "open"


def test_an_entry_of_the_menu_does_what_it_says(app: App) -> None:
    number = item_id(app.layout(), "For 15 minutes")
    words = (f"int32:{number}", "string:clicked", "variant:string:", "uint32:0")
    app.send("/MenuBar", "com.canonical.dbusmenu.Event", *words)
    assert app.said() == "pause QUARTER_HOUR"


def test_a_panel_that_starts_again_gets_the_icon_again(
    app: App, watcher: FakeWatcher, panel_bus: QDBusConnection, qtbot: QtBot
) -> None:
    assert panel_bus.unregisterService(WATCHER)
    watcher.items.clear()
    assert panel_bus.registerService(WATCHER)
    qtbot.waitUntil(lambda: bool(watcher.items), timeout=LIMIT_MS)


def test_a_panel_that_comes_late_gets_the_icon(start_app: object, panel_bus: QDBusConnection, qtbot: QtBot) -> None:
    app: App = start_app()  # type: ignore[operator]
    assert app.said() == "started"
    watcher = FakeWatcher()
    serve(panel_bus, WATCHER, "/StatusNotifierWatcher", watcher)
    qtbot.waitUntil(lambda: bool(watcher.items), timeout=LIMIT_MS)
