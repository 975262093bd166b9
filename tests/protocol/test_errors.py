"""Errors of the wire: one sentence with code and numbers."""

from __future__ import annotations

from protocol.env import ConnectionClosed
from protocol.errors import CloseCode, FrameError, FrameFault, MessageError, MessageFault, ProtocolError


def test_whoever_catches_protocol_errors_catches_both() -> None:
    assert issubclass(FrameError, ProtocolError)
    assert issubclass(MessageError, ProtocolError)


def test_each_error_is_one_sentence_and_keeps_its_parts() -> None:
    frame, message = FrameError(FrameFault.CRC, "check sum"), MessageError(MessageFault.INVALID, "at $.name")
    assert (frame.code, frame.detail, str(frame)) == (
        FrameFault.CRC,
        "check sum",
        "data frame refused (crc): check sum",
    )
    assert str(message) == "message refused (invalid): at $.name"


def test_close_codes_are_in_the_private_range() -> None:
    assert all(4000 <= code <= 4999 for code in CloseCode)


def test_a_closed_connection_says_code_and_reason() -> None:
    assert str(ConnectionClosed(4406, "version")) == "connection closed (4406) version"
    assert str(ConnectionClosed(1006, "")) == "connection closed (1006)"
