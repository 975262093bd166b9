"""What can be wrong with something received.

    ProtocolError               the sender is to blame, this side is fine
    +-- FrameError              a binary data frame (code: FrameFault)
    +-- MessageError            a JSON control message (code: MessageFault)

`str(error)` is one plain sentence with numbers and field names, never with content.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class CloseCode(IntEnum):
    """Websocket close codes of this protocol (RFC 6455, section 7.4.2: 4000-4999 are private)."""

    BAD_MESSAGE = 4400
    NOT_ALLOWED = 4401
    """The node is not enrolled here, its invitation is no good, or the operator removed it."""
    BAD_TICKET = 4403
    PROTOCOL_VERSION = 4406
    REPLACED = 4409
    TOO_MANY_FAULTS = 4429


class FrameFault(StrEnum):
    SHORT_HEADER = "short_header"
    BAD_MAGIC = "bad_magic"
    BAD_VERSION = "bad_version"
    BAD_KIND = "bad_kind"
    BAD_DTYPE = "bad_dtype"
    BAD_SHAPE = "bad_shape"
    BAD_SEGMENT = "bad_segment"
    LENGTH_MISMATCH = "length_mismatch"
    TOO_LARGE = "too_large"
    CRC = "crc"
    UNKNOWN_SESSION = "unknown_session"
    EPOCH = "epoch"
    STAGE = "stage"
    SENDER = "sender"
    POSITION = "position"


class MessageFault(StrEnum):
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID = "invalid"
    UNEXPECTED = "unexpected"


class ProtocolError(Exception):
    """Something received does not follow the protocol."""


class FrameError(ProtocolError):
    """A data frame that is dropped and counted; `code` says why, `detail` gives limit and value seen."""

    def __init__(self, code: FrameFault, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"data frame refused ({self.code}): {self.detail}"


class MessageError(ProtocolError):
    """A control message that is refused; `detail` names the field."""

    def __init__(self, code: MessageFault, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"message refused ({self.code}): {self.detail}"
