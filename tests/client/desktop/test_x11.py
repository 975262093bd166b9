"""Idle time and fullscreen windows on a virtual X server of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.desktop.source import SourceError
from client.desktop.x11 import X11Source

LIMIT_S = 30.0
needs_xvfb = pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed")
needs_windows = pytest.mark.skipif(
    shutil.which("openbox") is None or shutil.which("xdotool") is None, reason="openbox or xdotool is not installed"
)
WINDOW = """
import sys
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication(["game"])
window = QWidget()
window.showFullScreen() if sys.argv[1] == "full" else window.show()
app.exec()
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The system chooses the display's number."""
    reader, writer = os.pipe()
    argv = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    process = subprocess.Popen(argv, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as answers:
        monkeypatch.setenv("DISPLAY", f":{answers.readline().strip()}")
    monkeypatch.setenv("QT_QPA_PLATFORM", "xcb")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def source(server: subprocess.Popen[bytes]) -> Iterator[X11Source]:
    source = X11Source()
    yield source
    source.close()


def wait_for(condition: object) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.05)


def test_without_a_server_there_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":4095")
    with pytest.raises(SourceError, match="does not answer"):
        X11Source()


@needs_xvfb
def test_idle_time_grows(source: X11Source) -> None:
    first = source.idle_s()
    assert first is not None
    wait_for(lambda: (source.idle_s() or 0.0) > first)


@needs_xvfb
@needs_windows
def test_a_moved_mouse_starts_it_again(source: X11Source) -> None:
    wait_for(lambda: (source.idle_s() or 0.0) >= 0.5)
    subprocess.run(["xdotool", "mousemove", "100", "100"], check=True)
    wait_for(lambda: (source.idle_s() or 9.0) < 0.5)


@needs_xvfb
def test_without_a_window_manager_fullscreen_is_not_known(source: X11Source) -> None:
    assert source.is_fullscreen() is None
    assert source.is_locked() is None


@pytest.fixture
def manager(server: subprocess.Popen[bytes], source: X11Source) -> Iterator[None]:
    process = subprocess.Popen(["openbox"], stderr=subprocess.DEVNULL)
    wait_for(lambda: source.is_fullscreen() is not None)
    yield
    process.kill()
    process.wait()


@pytest.fixture
def show_window(manager: None) -> Iterator[object]:
    shown: list[subprocess.Popen[bytes]] = []

    def show(kind: str) -> int:
        shown.append(subprocess.Popen([sys.executable, "-c", WINDOW, kind]))
        return shown[-1].pid

    yield show
    for process in shown:
        process.kill()
        process.wait()


@needs_xvfb
@needs_windows
def test_a_program_that_fills_the_screen_is_seen_until_it_goes(source: X11Source, show_window: object) -> None:
    assert source.is_fullscreen() is False
    pid = show_window("full")  # type: ignore[operator]
    wait_for(source.is_fullscreen)
    own = X11Source(own_pid=pid)
    assert own.is_fullscreen() is False
    own.close()
    os.kill(pid, 9)
    wait_for(lambda: source.is_fullscreen() is False)


@needs_xvfb
@needs_windows
def test_an_ordinary_window_fills_nothing(source: X11Source, show_window: object) -> None:
    show_window("normal")  # type: ignore[operator]
    active = ["xdotool", "getactivewindow"]
    wait_for(lambda: subprocess.run(active, check=False, capture_output=True).returncode == 0)
    assert source.is_fullscreen() is False


@needs_xvfb
def test_a_window_that_does_not_exist_is_no_error(source: X11Source) -> None:
    with source._errors_ignored():
        assert source._property(0x7FFFFF0, "_NET_WM_STATE", 4) is None
    assert source.idle_s() is not None


@needs_xvfb
def test_a_server_that_goes_takes_nobody_with_it(server: subprocess.Popen[bytes]) -> None:
    """In a process of its own: before libX11 1.7 it would end."""
    code = (
        "import sys\nfrom client.desktop.x11 import X11Source\nsource = X11Source()\n"
        "print(source.idle_s() is not None, flush=True)\nsys.stdin.readline()\n"
        "print(source.idle_s(), source.is_fullscreen(), source.idle_s())\nsource.close()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "True\n"
        server.kill()
        server.wait()
        output, _ = reader.communicate("go on\n", timeout=LIMIT_S)
    assert output == "None None None\n"
    assert reader.returncode == 0
