"""What the GUI shows and what it can ask for: JSON lines between the GUI and the agent. Free of Qt and asyncio."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from protocol.pause import PauseReason, PauseRules
from protocol.values import LayerRange

MAX_TRANSITIONS = 100
SOFT_LEAVE_S = 30.0
"""So long what runs here may take to end or to go on elsewhere, where nothing hurries."""


class AgentState(StrEnum):
    """What the node as a whole is doing, in the order a volunteer meets it."""

    STOPPED = "stopped"
    PREPARING = "preparing"
    """The runtime (torch and what it needs) is being downloaded and installed, once; bytes are in Status."""
    CONNECTING = "connecting"
    MEASURING = "measuring"
    WAITING = "waiting"
    """In the pool, with nothing to serve yet; `message` says what for."""
    DOWNLOADING = "downloading"
    LOADING = "loading"
    SERVING = "serving"
    PAUSED = "paused"
    """`Status.pause` says why and until when."""
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


class PauseInfo(msgspec.Struct, frozen=True):
    """Why the node does not serve now. Times are seconds since 1970.

    `detail` names what was seen, for the person at this machine only ("steam uses 87 % of the GPU"). `until_s` is the
    end of a manual pause that has one; `resumes_at_s` is when the node goes on if nothing stirs again."""

    reasons: tuple[PauseReason, ...]
    since_s: float
    detail: str = ""
    until_s: float | None = None
    resumes_at_s: float | None = None


class Transition(msgspec.Struct, frozen=True):
    """One change between serving and paused, for "Why did it pause?". Empty `reasons`: it went on."""

    at_s: float
    reasons: tuple[PauseReason, ...] = ()
    detail: str = ""


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The whole truth about the node at one moment. The bytes are those of PREPARING."""

    state: AgentState
    message: str = ""
    pool_name: str = ""
    devices: tuple[DeviceStatus, ...] = ()
    num_sessions: int = 0
    num_tokens: int = 0
    worker_pids: tuple[int, ...] = ()
    pause: PauseInfo | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    notice: str = ""
    """What happened a while ago, and is put right: a worker that did not answer."""
    leaves_at_s: float | None = None
    """It takes nothing new, and leaves as soon as nothing runs here, at the latest then (seconds since 1970)."""


class History(msgspec.Struct, frozen=True, tag="history"):
    """The last MAX_TRANSITIONS changes between serving and paused, oldest first; sent when there is a new one."""

    transitions: tuple[Transition, ...]


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Leave the pool cleanly and end the workers, so that their memory is free. None: until Resume.

    With `after_answers` what runs here has half a minute to end or to be handed over; nothing new is taken."""

    for_s: float | None = None
    after_answers: bool = False


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """End a manual pause. With `anyway` the reasons to pause that hold now do not count until they have passed once:
    the volunteer knows, and wants to contribute all the same."""

    anyway: bool = False


class SetRules(msgspec.Struct, frozen=True, tag="rules"):
    """The volunteer's own rules, from now on."""

    rules: PauseRules


class SessionReading(msgspec.Struct, frozen=True, tag="session"):
    """What only a program in the volunteer's desktop session can see; sent about every second while it changes.

    None: not known on this desktop. `idle_s` is the time since the last key or mouse movement."""

    idle_s: float | None = None
    is_fullscreen: bool | None = None
    is_locked: bool | None = None


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Leave the pool cleanly and end the agent. End-of-file on its standard input means the same, `at_once`: nobody is
    there to wait until all that runs here has been handed over."""

    at_once: bool = False


Report = Status | History
Command = Pause | Resume | SetRules | SessionReading | Quit

_encoder = msgspec.json.Encoder()
_report_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_command_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def encode_line(message: Report | Command) -> bytes:
    """The message as one line of JSON."""
    return _encoder.encode(message) + b"\n"


def decode_report(line: bytes) -> Report:
    """Raises msgspec.DecodeError (also for a line of another shape)."""
    return _report_decoder.decode(line)


def decode_command(line: bytes) -> Command:
    """Raises msgspec.DecodeError (also for a line of another shape)."""
    return _command_decoder.decode(line)
