"""What the window and the tray say, as a pure function of the supervisor's snapshot and the settings. Free of Qt.

Names and messages come from the network: they are shortened and stripped of control characters here, and shown as
plain text by the widgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from client.status import AgentState, DeviceStatus, PauseInfo
from client.supervisor import Snapshot
from client.supervisor_table import Phase
from client.ui import pause_text
from client.ui.pause_choice import ManualPause
from client.ui.plan import Plan
from client.ui.text import MAX_NAME_CHARACTERS, MAX_SENTENCE_CHARACTERS, clean, format_bytes
from protocol.pause import PauseReason

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
    ANYWAY = "anyway"
    """Contribute although the machine is used for something else."""
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the snapshot does not know: the time (seconds since 1970), the pause by hand, what would happen."""

    now_s: float = 0.0
    pause: ManualPause | None = None
    plan: Plan | None = None


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
    """The model that the headline is about, or why it is paused."""
    sentence: str
    pool_name: str
    button_text: str
    button_enabled: bool
    wish: Wish
    can_pause: bool
    """The menu with times to pause for is there."""
    can_finish: bool
    """So is the one for pausing after the answers that run."""
    progress: Progress | None
    devices: tuple[DeviceView, ...]
    facts: tuple[Fact, ...]
    note: str
    reason: str
    """Why it is paused, or what happened a while ago, for the tray; mostly empty."""
    tooltip: str
    plan: Plan | None = None
    """Shown before the first contribution, instead of devices and figures."""
    is_counting_down: bool = False
    """The sentence changes by the second."""
    is_finishing: bool = False
    """So does the tray's: it is half a minute at most."""


_STATE_NAMES = {
    AgentState.STOPPED: "Not contributing",
    AgentState.PREPARING: "Preparing",
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
    AgentState.PREPARING: "Fetching what runs models on this computer. This is done once.",
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
    AgentState.PREPARING: Icon.BUSY,
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
    Phase.PAUSING: (Icon.BUSY, "Pausing", pause_text.LEAVING),
    Phase.ENDING: (Icon.BUSY, "Pausing", pause_text.LEAVING),
    Phase.REPLACING: (Icon.BUSY, "Starting again", ""),
    Phase.RESTARTING: (Icon.ATTENTION, "Stopped unexpectedly", ""),
    Phase.LEAVING: (Icon.BUSY, "Leaving the pool", "The app closes as soon as the pool knows."),
    Phase.ENDED: (Icon.IDLE, "Goodbye", ""),
}
"""Where the wish is ahead of the agent, its last report is not the truth any more."""

_WISH_IS_PAUSE = frozenset({Phase.STARTING, Phase.CONTRIBUTING, Phase.REPLACING, Phase.RESTARTING})
_CAN_PAUSE = _WISH_IS_PAUSE | {Phase.FINISHING, Phase.PAUSING, Phase.PAUSED, Phase.FAILED}
_WITH_DEVICES = frozenset({Phase.CONTRIBUTING, Phase.FAILED, Phase.FINISHING, Phase.PAUSING, Phase.PAUSED})
_NOT_MARKUP = str.maketrans({"<": "(", ">": ")", "&": "+"})
"""Some desktops render a tray's tooltip as HTML (freedesktop's StatusNotifierItem allows markup in it)."""
_WITH_BYTES = (AgentState.DOWNLOADING, AgentState.LOADING)


def view_of(snapshot: Snapshot, around: Surroundings = Surroundings()) -> View:
    said = _headline(snapshot, around)
    button_text, wish = _button(snapshot, said.icon)
    reason = _reason(snapshot, around)
    notice = _notice(snapshot)
    subject = said.subject
    told = f". {reason}" if reason else f" of {subject}" if subject else ""
    is_idle = snapshot.phase is Phase.STOPPED and said.icon is Icon.IDLE
    is_finishing = _is_finishing(snapshot)
    return View(
        icon=said.icon,
        headline=said.headline,
        subject=subject,
        sentence=said.sentence,
        pool_name=clean(snapshot.status.pool_name, MAX_NAME_CHARACTERS),
        button_text=button_text,
        button_enabled=snapshot.phase not in (Phase.LEAVING, Phase.ENDED),
        wish=wish,
        can_pause=snapshot.phase in _CAN_PAUSE or _is_resting(snapshot, around),
        can_finish=snapshot.phase is Phase.CONTRIBUTING and snapshot.status.state is AgentState.SERVING,
        progress=_total_progress(snapshot),
        devices=_devices(snapshot),
        facts=_facts(snapshot),
        note=" ".join(part for part in (notice, _note(snapshot.num_garbage_lines)) if part),
        reason=reason or notice,
        tooltip=f"DecentLLM: {said.headline}{told}".translate(_NOT_MARKUP),
        plan=around.plan if is_idle else None,
        is_counting_down=is_finishing or _is_counting_to_the_end(snapshot, around.now_s),
        is_finishing=is_finishing,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    icon: Icon
    headline: str
    sentence: str
    subject: str = ""


def _headline(snapshot: Snapshot, around: Surroundings) -> _Said:
    phase, status = snapshot.phase, snapshot.status
    if phase in _PHASE_HEADLINES:
        icon, headline, sentence = _PHASE_HEADLINES[phase]
        return _Said(icon, headline, _with_restart(snapshot) or sentence)
    if _is_finishing(snapshot):
        return _Said(Icon.BUSY, "Pausing", pause_text.finishing_sentence(status, around.now_s))
    if _is_auto_paused(snapshot):
        return _auto_paused(status.pause, around.now_s)
    if phase is Phase.PAUSED or _is_resting(snapshot, around) or status.state is AgentState.PAUSED:
        return _paused_by_hand(status.pause, around)
    message = clean(status.message, MAX_SENTENCE_CHARACTERS)
    if status.state is AgentState.FAILED:
        return _Said(Icon.ATTENTION, _STATE_NAMES[status.state], _failure(message))
    text = _state_text(status.state, status.devices, _total_progress(snapshot))
    return _Said(_STATE_ICONS[status.state], text, message or _STATE_SENTENCES[status.state], _subject(snapshot))


def _auto_paused(pause: PauseInfo | None, now_s: float) -> _Said:
    lines = (pause_text.detail_of(pause), pause_text.automatic_pause_sentence(pause, now_s))
    return _Said(Icon.PAUSED, "Paused", "\n".join(line for line in lines if line), pause_text.reason_of(pause))


def _paused_by_hand(pause: PauseInfo | None, around: Surroundings) -> _Said:
    until_s = _pause_end_s(pause, around)
    headline = pause_text.manual_pause_headline(until_s, around.now_s)
    return _Said(Icon.PAUSED, headline, pause_text.manual_pause_sentence(until_s, around.pause, around.now_s))


def _pause_end_s(pause: PauseInfo | None, around: Surroundings) -> float | None:
    """What the agent says counts, as long as it lives."""
    if pause is not None and pause.until_s is not None:
        return pause.until_s
    return around.pause.until_s if around.pause is not None else None


def _is_finishing(snapshot: Snapshot) -> bool:
    """Nothing new is taken, as the volunteer wishes, or for a reason that is in no hurry."""
    goes = snapshot.phase is Phase.CONTRIBUTING and snapshot.status.leaves_at_s is not None
    return goes or snapshot.phase is Phase.FINISHING


def _is_counting_to_the_end(snapshot: Snapshot, now_s: float) -> bool:
    return _is_auto_paused(snapshot) and pause_text.is_counting_down(snapshot.status.pause, now_s)


def _is_auto_paused(snapshot: Snapshot) -> bool:
    """The volunteer wants to contribute, and the agent has a reason not to."""
    status = snapshot.status
    if snapshot.phase is not Phase.CONTRIBUTING or status.state is not AgentState.PAUSED:
        return False
    return status.pause is None or PauseReason.MANUAL not in status.pause.reasons


def _is_resting(snapshot: Snapshot, around: Surroundings) -> bool:
    """Paused by hand, with no process behind it: the app was started again, or the agent had to be ended."""
    has_failed = snapshot.status.state is AgentState.FAILED
    return snapshot.phase is Phase.STOPPED and around.pause is not None and not has_failed


def _reason(snapshot: Snapshot, around: Surroundings) -> str:
    if _is_finishing(snapshot):
        return pause_text.finishing_sentence(snapshot.status, around.now_s)
    if _is_auto_paused(snapshot):
        return pause_text.reason_of(snapshot.status.pause)
    is_paused = snapshot.phase is Phase.PAUSED or _is_resting(snapshot, around)
    return pause_text.SENTENCES[PauseReason.MANUAL] if is_paused else ""


def _button(snapshot: Snapshot, icon: Icon) -> tuple[str, Wish]:
    is_paused = snapshot.status.state is AgentState.PAUSED
    if snapshot.phase is Phase.CONTRIBUTING and is_paused:
        return ("Contribute anyway" if _is_auto_paused(snapshot) else "Contribute GPU"), Wish.ANYWAY
    if snapshot.phase is Phase.FINISHING:
        return "Keep contributing", Wish.CONTRIBUTE
    if snapshot.phase in _WISH_IS_PAUSE:
        is_preparing = snapshot.phase is Phase.CONTRIBUTING and snapshot.status.state is AgentState.PREPARING
        return ("Cancel" if is_preparing else "Pause"), Wish.PAUSE
    return ("Try again" if icon is Icon.ATTENTION else "Contribute GPU"), Wish.CONTRIBUTE


def _with_restart(snapshot: Snapshot) -> str:
    if snapshot.restart_in_s is None:
        return snapshot.problem
    return f"{snapshot.problem} Starting it again in {max(1, snapshot.restart_in_s)} s."


def _failure(message: str) -> str:
    reason = message or "The background process did not say why."
    return f"{reason}\nOnce that is put right, press “Try again”. The log has the details."


def _state_text(state: AgentState, devices: tuple[DeviceStatus, ...], progress: Progress | None) -> str:
    busy = [device for device in devices if device.state is state]
    if state is AgentState.SERVING and len(busy) == 1:
        return f"Serving {_layers_text(busy[0])}".rstrip()
    if state is AgentState.SERVING and busy:
        return f"Serving on {len(busy)} devices"
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
    status = snapshot.status
    if status.state is AgentState.PREPARING:
        return _progress(status.state, status.done_bytes, status.total_bytes)
    return _sum_progress(status.state, [device for device in status.devices if device.state is status.state])


def _sum_progress(state: AgentState, devices: list[DeviceStatus]) -> Progress | None:
    if state not in _WITH_BYTES:
        return None
    done = sum(max(0, device.done_bytes) for device in devices)
    return _progress(state, done, sum(max(0, device.total_bytes) for device in devices))


def _progress(state: AgentState, done: int, total: int) -> Progress:
    done = max(0, done)
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


def _notice(snapshot: Snapshot) -> str:
    return clean(snapshot.status.notice, MAX_SENTENCE_CHARACTERS) if snapshot.phase is Phase.CONTRIBUTING else ""


def _note(num_garbage_lines: int) -> str:
    if not num_garbage_lines:
        return ""
    lines = "1 line" if num_garbage_lines == 1 else f"{num_garbage_lines:,} lines"
    return f"{lines} from the background process could not be understood."
