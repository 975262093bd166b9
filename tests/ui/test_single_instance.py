"""One app per user, and what a second start can tell the first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PySide6.QtNetwork import QLocalSocket
from pytestqt.qtbot import QtBot

from client.ui.single_instance import MAX_REQUEST_BYTES, SingleInstance
from protocol.join_link import JoinLink
from tests.ui.conftest import LIMIT_MS

SECOND = """
import sys
from pathlib import Path
from client.ui.single_instance import SingleInstance
from protocol.join_link import parse_join_link
link = parse_join_link(sys.argv[2]) if sys.argv[2:] else None
sys.exit(not SingleInstance(Path(sys.argv[1])).show_first(link))
"""
LINK = "decentllm://pool.example.org/join?invite=abcdefgh"


@pytest.fixture
def first(tmp_path: Path, qtbot: QtBot) -> SingleInstance:
    instance = SingleInstance(tmp_path)
    assert instance.acquire()
    yield instance
    instance.release()


def test_the_first_instance_hears_of_the_second(first: SingleInstance, qtbot: QtBot, tmp_path: Path) -> None:
    second = SingleInstance(tmp_path)
    assert not second.acquire()
    with qtbot.waitSignal(first.show_wished, timeout=LIMIT_MS):
        asker = subprocess.Popen([sys.executable, "-c", SECOND, str(tmp_path)])
    assert asker.wait(LIMIT_MS / 1000) == 0
    first.release()
    assert second.acquire()
    second.release()


def test_a_second_start_hands_its_link_over(first: SingleInstance, qtbot: QtBot, tmp_path: Path) -> None:
    with qtbot.waitSignal(first.link_offered, timeout=LIMIT_MS) as blocker:
        asker = subprocess.Popen([sys.executable, "-c", SECOND, str(tmp_path), LINK])
    assert blocker.args == [JoinLink("http://pool.example.org", "", "abcdefgh")]
    assert asker.wait(LIMIT_MS / 1000) == 0


@pytest.mark.parametrize(
    "request_line",
    [b"rm -rf /", b"\xff\xfe", b"decentllm://", b"decentllm://x/join?pin=short", b"http://user:secret@x", b" "],
)
def test_what_is_no_link_only_shows_the_window(first: SingleInstance, qtbot: QtBot, request_line: bytes) -> None:
    with qtbot.assertNotEmitted(first.link_offered), qtbot.waitSignal(first.show_wished):
        first.take(request_line)


def talk(first: SingleInstance, data: bytes) -> QLocalSocket:
    socket = QLocalSocket()
    socket.connectToServer(first._name)
    assert socket.waitForConnected(LIMIT_MS)
    socket.write(data)
    socket.flush()
    return socket


def test_a_request_without_an_end_is_bounded_in_length(first: SingleInstance, qtbot: QtBot) -> None:
    with qtbot.assertNotEmitted(first.link_offered), qtbot.waitSignal(first.show_wished, timeout=LIMIT_MS):
        socket = talk(first, LINK.encode() + b"x" * 2 * MAX_REQUEST_BYTES)
    qtbot.waitUntil(lambda: socket.state() is QLocalSocket.LocalSocketState.UnconnectedState, timeout=LIMIT_MS)


def test_whoever_says_nothing_is_hung_up_on(first: SingleInstance, qtbot: QtBot) -> None:
    with qtbot.waitSignal(first.show_wished, timeout=LIMIT_MS):
        socket = talk(first, b"")
    qtbot.waitUntil(lambda: socket.state() is QLocalSocket.LocalSocketState.UnconnectedState, timeout=LIMIT_MS)


def test_a_link_in_pieces_is_put_together(first: SingleInstance, qtbot: QtBot) -> None:
    socket = talk(first, LINK[:20].encode())
    with qtbot.waitSignal(first.link_offered, timeout=LIMIT_MS) as blocker:
        socket.write(LINK[20:].encode() + b"\n")
        socket.flush()
    assert blocker.args[0].invite == "abcdefgh"


def test_a_path_too_long_for_a_socket_still_has_one_instance(qtbot: QtBot, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    instance = SingleInstance(folder)
    assert instance.acquire()
    assert not SingleInstance(folder).acquire()
    instance.release()
