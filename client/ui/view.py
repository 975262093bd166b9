"""What the window and the tray say, as a pure function of the supervisor's snapshot. Free of Qt.

Names and messages come from the network: they are shortened and stripped of control characters here, and shown as
plain text by the widgets.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from client.status import AgentState, DeviceStatus
from client.supervisor import Phase, Snapshot

MAX_NAME_CHARACTERS = 64
MAX_SENTENCE_CHARACTERS = 400
MAX_DEVICES = 32


class Icon(StrEnum):
    """Told apart by shape, not only by colour. The values are parts of file names."""

    IDLE = "idle"
    BUSY = "busy"
    SERVING = "serving"
    PAUSED = "paused"
    ATTENTION = "attention"


class Wish(StrEnum):
    """What the one big button asks for."""

    CONTRIBUTE = "contribute"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Progress:
    """`fraction` is None while the total is not known."""

    fraction: float | None
    text: str


@dataclass(frozen=True, slots=True)
class DeviceView:
    name: str
    state: str
    icon: Icon
    layers: str
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything that the window and the tray show."""

    icon: Icon
    headline: str
    subject: str
    """The model that the headline is about, if it is about one."""
    sentence: str
    pool_name: str
    button_text: str
    button_enabled: bool
    wish: Wish
    progress: Progress | None
    devices: tuple[DeviceView, ...]
    facts: tuple[Fact, ...]
    note: str
    tooltip: str


_STATE_NAMES = {
    AgentState.STOPPED: "Not contributing",
    AgentState.CONNECTING: "Connecting to the pool",
    AgentState.MEASURING: "Measuring your hardware",
    AgentState.WAITING: "Waiting for work",
    AgentState.DOWNLOADING: "Downloading",
    AgentState.LOADING: "Loading",
    AgentState.SERVING: "Serving",
    AgentState.PAUSED: "Paused",
    AgentState.FAILED: "Cannot contribute",
}
_STATE_SENTENCES = {
    AgentState.STOPPED: "Lend your GPU to the pool. You can take it back at any time.",
    AgentState.CONNECTING: "",
    AgentState.MEASURING: "Finding out how fast your devices are. This takes less than a minute.",
    AgentState.WAITING: "You are in the pool. It gives you layers as soon as it needs them.",
    AgentState.DOWNLOADING: "Fetching your layers. They are kept for next time.",
    AgentState.LOADING: "Putting the layers into your devices' memory.",
    AgentState.SERVING: "Thank you: people are being answered with your help.",
    AgentState.PAUSED: "Your devices' memory is free. The pool goes on without you.",
    AgentState.FAILED: "",
}
_STATE_ICONS = {
    AgentState.STOPPED: Icon.IDLE,
    AgentState.CONNECTING: Icon.BUSY,
    AgentState.MEASURING: Icon.BUSY,
    AgentState.WAITING: Icon.BUSY,
    AgentState.DOWNLOADING: Icon.BUSY,
    AgentState.LOADING: Icon.BUSY,
    AgentState.SERVING: Icon.SERVING,
    AgentState.PAUSED: Icon.PAUSED,
    AgentState.FAILED: Icon.ATTENTION,
}
_PHASE_HEADLINES = {
    Phase.STARTING: (Icon.BUSY, "Starting", ""),
    Phase.PAUSING: (Icon.BUSY, "Pausing", "Leaving the pool and freeing your devices' memory."),
    Phase.ENDING: (Icon.BUSY, "Pausing", "Leaving the pool and freeing your devices' memory."),
    Phase.REPLACING: (Icon.BUSY, "Starting again", ""),
    Phase.RESTARTING: (Icon.ATTENTION, "Stopped unexpectedly", ""),
    Phase.LEAVING: (Icon.BUSY, "Leaving the pool", "The app closes as soon as the pool knows."),
    Phase.ENDED: (Icon.IDLE, "Goodbye", ""),
}
"""Where the wish is ahead of the agent, its last report is not the truth any more."""

_WISH_IS_PAUSE = frozenset({Phase.STARTING, Phase.CONTRIBUTING, Phase.REPLACING, Phase.RESTARTING})
_WITH_DEVICES = frozenset({Phase.CONTRIBUTING, Phase.FAILED, Phase.PAUSING, Phase.PAUSED})
_NOT_MARKUP = str.maketrans({"<": "(", ">": ")", "&": "+"})
"""Some desktops render a tray's tooltip as HTML (freedesktop's StatusNotifierItem allows markup in it)."""
_WITH_BYTES = (AgentState.DOWNLOADING, AgentState.LOADING)


def view_of(snapshot: Snapshot) -> View:
    icon, headline, sentence = _headline(snapshot)
    subject = _subject(snapshot)
    status = snapshot.status
    pausing = snapshot.phase in _WISH_IS_PAUSE
    failed = icon is Icon.ATTENTION and not pausing
    pool_name = clean(status.pool_name, MAX_NAME_CHARACTERS)
    return View(
        icon=icon,
        headline=headline,
        subject=subject,
        sentence=sentence,
        pool_name=pool_name,
        button_text="Pause" if pausing else "Try again" if failed else "Contribute GPU",
        button_enabled=snapshot.phase not in (Phase.LEAVING, Phase.ENDED),
        wish=Wish.PAUSE if pausing else Wish.CONTRIBUTE,
        progress=_total_progress(snapshot),
        devices=_devices(snapshot),
        facts=_facts(snapshot),
        note=_note(snapshot.num_garbage_lines),
        tooltip=f"DecentLLM: {headline}{f' of {subject}' if subject else ''}".translate(_NOT_MARKUP),
    )


def clean(text: str, max_characters: int) -> str:
    """One line without control, format (bidirectional overrides, zero-width) or unpaired characters, shortened."""
    shown = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in text[: 4 * max_characters])
    shown = " ".join(shown.split())
    return shown if len(shown) <= max_characters else shown[: max_characters - 1] + "…"


def format_bytes(num_bytes: int) -> str:
    """Decimal units, as file managers and network plans count."""
    size = float(max(0, num_bytes))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("bytes", "kB") or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _headline(snapshot: Snapshot) -> tuple[Icon, str, str]:
    phase, status = snapshot.phase, snapshot.status
    if phase in _PHASE_HEADLINES:
        icon, headline, sentence = _PHASE_HEADLINES[phase]
        return icon, headline, _with_restart(snapshot) or sentence
    state = AgentState.PAUSED if phase is Phase.PAUSED else status.state
    message = clean(status.message, MAX_SENTENCE_CHARACTERS)
    if state is AgentState.FAILED:
        return Icon.ATTENTION, _STATE_NAMES[state], _failure(message)
    return _STATE_ICONS[state], _state_text(state, status.devices), message or _STATE_SENTENCES[state]


def _with_restart(snapshot: Snapshot) -> str:
    if snapshot.restart_in_s is None:
        return snapshot.problem
    return f"{snapshot.problem} Starting it again in {max(1, snapshot.restart_in_s)} s."


def _failure(message: str) -> str:
    reason = message or "The background process did not say why."
    return f"{reason}\nOnce that is put right, press “Try again”. The log has the details."


def _state_text(state: AgentState, devices: tuple[DeviceStatus, ...]) -> str:
    busy = [device for device in devices if device.state is state]
    if state is AgentState.SERVING and len(busy) == 1:
        return f"Serving {_layers_text(busy[0])}".rstrip()
    if state is AgentState.SERVING and busy:
        return f"Serving on {len(busy)} devices"
    progress = _sum_progress(state, busy)
    if progress is not None and progress.fraction is not None:
        return f"{_STATE_NAMES[state]} {progress.fraction:.0%}"
    return _STATE_NAMES[state]


def _subject(snapshot: Snapshot) -> str:
    status = snapshot.status
    if snapshot.phase is not Phase.CONTRIBUTING or status.state is not AgentState.SERVING:
        return ""
    names = {device.model_name for device in status.devices if device.state is AgentState.SERVING}
    return clean(names.pop(), MAX_NAME_CHARACTERS) if len(names) == 1 else ""


def _layers_text(device: DeviceStatus) -> str:
    if device.layers is None:
        return ""
    total = f" of {device.num_layers:,}" if device.num_layers > 0 else ""
    return f"layers {device.layers}{total}"


def _total_progress(snapshot: Snapshot) -> Progress | None:
    if snapshot.phase is not Phase.CONTRIBUTING:
        return None
    state = snapshot.status.state
    return _sum_progress(state, [device for device in snapshot.status.devices if device.state is state])


def _sum_progress(state: AgentState, devices: list[DeviceStatus]) -> Progress | None:
    if state not in _WITH_BYTES:
        return None
    done = sum(max(0, device.done_bytes) for device in devices)
    total = sum(max(0, device.total_bytes) for device in devices)
    if total <= 0:
        return Progress(None, _STATE_NAMES[state])
    # Only what is whole counts as whole: 99.9 % must not be shown as 100 %.
    fraction = min(100 * done // total, 100) / 100
    return Progress(fraction, f"{format_bytes(min(done, total))} of {format_bytes(total)}")


def _devices(snapshot: Snapshot) -> tuple[DeviceView, ...]:
    if snapshot.phase not in _WITH_DEVICES:
        return ()
    return tuple(_device(device) for device in snapshot.status.devices[:MAX_DEVICES])


def _device(device: DeviceStatus) -> DeviceView:
    model = clean(device.model_name, MAX_NAME_CHARACTERS)
    layers = _layers_text(device)
    return DeviceView(
        name=clean(device.name, MAX_NAME_CHARACTERS) or clean(device.device_id, MAX_NAME_CHARACTERS),
        state=_STATE_NAMES[device.state],
        icon=_STATE_ICONS[device.state],
        layers=f"{layers[:1].upper()}{layers[1:]} · {model}" if layers and model else layers or model,
        progress=_sum_progress(device.state, [device]),
    )


def _facts(snapshot: Snapshot) -> tuple[Fact, ...]:
    return (
        Fact("Answers in progress", f"{max(0, snapshot.status.num_sessions):,}"),
        Fact("Tokens served", f"{max(0, snapshot.num_tokens):,}"),
    )


def _note(num_garbage_lines: int) -> str:
    if not num_garbage_lines:
        return ""
    lines = "1 line" if num_garbage_lines == 1 else f"{num_garbage_lines:,} lines"
    return f"{lines} from the background process could not be understood."
