"""The lines between GUI and agent."""

from __future__ import annotations

import msgspec
import pytest

from client.status import (
    AgentState,
    Command,
    DeviceStatus,
    History,
    Pause,
    PauseInfo,
    Quit,
    Resume,
    SessionReading,
    SetRules,
    Status,
    Transition,
    decode_command,
    decode_report,
    encode_line,
)
from protocol.pause import Hours, PauseMode, PauseReason, PauseRules
from protocol.values import LayerRange

RULES = PauseRules(mode=PauseMode.WHEN_AWAY, programs=("steam",), hours=Hours(0, 60))


def test_a_status_survives_the_trip() -> None:
    device = DeviceStatus("cuda:0", "GPU\n<b>", AgentState.LOADING, "model", LayerRange(0, 12), 24, 5, 10)
    pause = PauseInfo((PauseReason.MANUAL, PauseReason.HOT), 1.5, "the GPU is at 90 °C", 2.5, 3.5)
    status = Status(
        AgentState.LOADING, "line 1\nline 2", "pool", (device,), 3, 10**15, (11, 12), pause, 5, 6, leaves_at_s=7.5
    )
    assert decode_report(encode_line(status)) == status


@pytest.mark.parametrize("state", list(AgentState))
def test_every_state_survives_the_trip(state: AgentState) -> None:
    assert decode_report(encode_line(Status(state))).state is state


def test_a_history_survives_the_trip() -> None:
    history = History((Transition(1.5, (PauseReason.VIDEO,), "firefox plays a video"), Transition(2.5)))
    assert decode_report(encode_line(history)) == history


@pytest.mark.parametrize(
    "command",
    [
        Pause(),
        Pause(900.0),
        Pause(900.0, after_answers=True),
        Resume(),
        Resume(anyway=True),
        SetRules(RULES),
        SessionReading(),
        SessionReading(1.5, True, False),
        Quit(),
    ],
)
def test_a_command_survives_the_trip(command: Command) -> None:
    assert decode_command(encode_line(command)) == command


def test_a_message_is_one_line() -> None:
    line = encode_line(Status(AgentState.FAILED, "first\nsecond\r\n\u2028third"))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b"1",
        b'{"type":"status"}',
        b'{"type":"status","state":1}',
        b'{"type":"history"}',
        b'{"type":"pause"}',
    ],
)
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_report(line)


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b'{"type":"status","state":"serving"}', b'{"type":"format"}', b'{"type":"rules"}',
     b'{"type":"rules","rules":{"other_gpu_percent":0}}', b'{"type":"rules","rules":{"x":0}}'],
)  # fmt: skip
def test_what_is_no_command_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(line)
