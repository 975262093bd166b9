"""The lines between GUI and agent."""

from __future__ import annotations

import msgspec
import pytest

from client.status import (
    AgentState,
    Command,
    DeviceStatus,
    Pause,
    Quit,
    Resume,
    Status,
    decode_command,
    decode_status,
    encode_line,
)
from protocol.values import LayerRange


def test_a_status_survives_the_trip() -> None:
    device = DeviceStatus("cuda:0", "GPU\n<b>", AgentState.LOADING, "model", LayerRange(0, 12), 24, 5, 10)
    status = Status(AgentState.LOADING, "line 1\nline 2", "pool", (device,), 3, 10**15, (11, 12))
    assert decode_status(encode_line(status)) == status


@pytest.mark.parametrize("state", list(AgentState))
def test_every_state_survives_the_trip(state: AgentState) -> None:
    assert decode_status(encode_line(Status(state))).state is state


@pytest.mark.parametrize("command", [Pause(), Resume(), Quit()])
def test_a_command_survives_the_trip(command: Command) -> None:
    assert decode_command(encode_line(command)) == command


def test_a_message_is_one_line() -> None:
    line = encode_line(Status(AgentState.FAILED, "first\nsecond\r\n\u2028third"))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"1", b'{"type":"status"}', b'{"type":"status","state":1}'])
def test_what_is_no_status_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_status(line)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"type":"status","state":"serving"}', b'{"type":"format"}'])
def test_what_is_no_command_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(line)
