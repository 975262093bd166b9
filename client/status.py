"""What the GUI shows and what it can ask for: JSON lines between the GUI and the agent. Free of Qt and asyncio."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from protocol.values import LayerRange


class AgentState(StrEnum):
    """What the node as a whole is doing, in the order a volunteer meets it."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    MEASURING = "measuring"
    WAITING = "waiting"
    """In the pool, with nothing to serve yet; `message` says what for."""
    DOWNLOADING = "downloading"
    LOADING = "loading"
    SERVING = "serving"
    PAUSED = "paused"
    FAILED = "failed"
    """Cannot go on without the volunteer; `message` says why."""


class DeviceStatus(msgspec.Struct, frozen=True):
    """One device. `layers` of `num_layers` of `model_name`, once assigned; bytes while downloading or loading."""

    device_id: str
    name: str
    state: AgentState
    model_name: str = ""
    layers: LayerRange | None = None
    num_layers: int = 0
    done_bytes: int = 0
    total_bytes: int = 0


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The whole truth about the node at one moment."""

    state: AgentState
    message: str = ""
    pool_name: str = ""
    devices: tuple[DeviceStatus, ...] = ()
    num_sessions: int = 0
    num_tokens: int = 0
    worker_pids: tuple[int, ...] = ()


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Leave the pool cleanly and end the workers, so that their memory is free."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Join the pool again."""


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Leave the pool cleanly and end the agent. End-of-file on its standard input means the same."""


Command = Pause | Resume | Quit

_encoder = msgspec.json.Encoder()
_status_decoder = msgspec.json.Decoder(Status)
_command_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def encode_line(message: Status | Command) -> bytes:
    """The message as one line of JSON."""
    return _encoder.encode(message) + b"\n"


def decode_status(line: bytes) -> Status:
    """Raises msgspec.DecodeError (also for a line of another shape)."""
    return _status_decoder.decode(line)


def decode_command(line: bytes) -> Command:
    """Raises msgspec.DecodeError (also for a line of another shape)."""
    return _command_decoder.decode(line)
