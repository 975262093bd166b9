"""The GUI's side of the agent, as a state machine without Qt, process or clock: events in, commands out.

`TRANSITIONS` is the machine; `client/ui/agent_process.py` is the shell that runs the commands. The agent dies with
the GUI because its standard input ends; nothing here has to see to that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from client.status import AgentState, Pause, Quit, Resume, Status, decode_status, encode_line
from protocol.backoff import doubled_s

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 * 1024
START_LIMIT_S = 60.0
"""How long the agent may stay silent after a start: a cold disk reads Python and its packages in 10 s or more."""
PAUSE_LIMIT_S = 10.0
"""A volunteer who pauses wants the GPU back; an agent that has not let go by then is ended."""
QUIT_LIMIT_S = 10.0
STABLE_RUN_S = 60.0
"""A run this long was healthy: what ends it starts the back-off from the beginning."""
MAX_BACK_OFF_S = 60.0


class SupervisorError(Exception):
    """Base of this module's errors."""


class UnexpectedInput(SupervisorError):  # noqa: N818 - named as h11 and websockets name theirs
    """The table has no entry: the shell around the machine broke its promises."""

    def __init__(self, phase: Phase, given: Input) -> None:
        super().__init__(phase, given)
        self.phase = phase
        self.given = given

    def __str__(self) -> str:
        return f"{self.given.name} cannot happen while {self.phase.name}"


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class ContributePressed:
    """The volunteer wants to contribute (also "try again")."""


@dataclass(frozen=True, slots=True)
class PausePressed:
    """The volunteer wants the GPU back."""


@dataclass(frozen=True, slots=True)
class QuitPressed:
    """The volunteer quits the app."""


@dataclass(frozen=True, slots=True)
class PoolChanged:
    """The agent's command line is another one now: a running agent must be replaced."""


@dataclass(frozen=True, slots=True)
class OutputReceived:
    """Bytes from the agent's standard output, cut anywhere."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AgentExited:
    """The agent's process has ended; negative for a signal. All of its output was handed over before."""

    exit_status: int


@dataclass(frozen=True, slots=True)
class AgentNotStarted:
    """There was no process to begin with."""

    reason: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The time asked for by WakeAfter is over (being early is harmless)."""


UserEvent = ContributePressed | PausePressed | QuitPressed | PoolChanged
Event = UserEvent | OutputReceived | AgentExited | AgentNotStarted | TimePassed

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class StartAgent:
    """Start the agent's process."""


@dataclass(frozen=True, slots=True)
class SendLine:
    """Write to the agent's standard input."""

    line: bytes


@dataclass(frozen=True, slots=True)
class KillAgent:
    """End the agent's process at once. AgentExited follows."""


@dataclass(frozen=True, slots=True)
class WakeAfter:
    """Send TimePassed after this delay, instead of an earlier WakeAfter's."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Show:
    """The truth has changed."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Exit:
    """The agent is gone: the app can end."""


Command = StartAgent | SendLine | KillAgent | WakeAfter | Show | Exit

# ---------------------------------------------------------------- the machine


class Phase(Enum):
    """What the volunteer wished for and how far the agent has followed."""

    STOPPED = auto()
    """No process."""
    STARTING = auto()
    """Started or resumed, no answer so far."""
    CONTRIBUTING = auto()
    FAILED = auto()
    """The process lives and says that it cannot go on without the volunteer."""
    PAUSING = auto()
    PAUSED = auto()
    """The process lives, its workers do not: the GPU's memory is free."""
    ENDING = auto()
    """The process is on its way out, and nothing follows."""
    REPLACING = auto()
    """The process is on its way out, and a new one follows."""
    RESTARTING = auto()
    """The process ended by itself; a new one follows after the back-off."""
    LEAVING = auto()
    """The app quits as soon as the process has ended."""
    ENDED = auto()


class Input(Enum):
    """What an event means to the machine."""

    CONTRIBUTE = auto()
    PAUSE = auto()
    QUIT = auto()
    CHANGE_POOL = auto()
    REPORTED = auto()
    REPORTED_PAUSED = auto()
    REPORTED_FAILED = auto()
    EXITED = auto()
    DEADLINE = auto()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the view is a function of."""

    phase: Phase = Phase.STOPPED
    status: Status = Status(state=AgentState.STOPPED)
    problem: str = ""
    restart_in_s: int | None = None
    num_garbage_lines: int = 0
    num_tokens: int = 0
    """Served since the app started: the agent counts from 0 again after each pause."""


@dataclass(frozen=True, slots=True)
class Do:
    """What a transition does: commands, and how long the new phase may last."""

    commands: tuple[Command, ...] = ()
    limit_s: float | None = None


_NOTHING = Do()
_START = Do((StartAgent(),), START_LIMIT_S)
_RESUME = Do((SendLine(encode_line(Resume())),), START_LIMIT_S)
# Pause first: an agent that has failed ends what is left of its attempt before it begins a new one.
_TRY_AGAIN = Do((SendLine(encode_line(Pause())), SendLine(encode_line(Resume()))), START_LIMIT_S)
_PAUSE = Do((SendLine(encode_line(Pause())),), PAUSE_LIMIT_S)
_AWAIT_PAUSE = Do((), PAUSE_LIMIT_S)
_QUIT = Do((SendLine(encode_line(Quit())),), QUIT_LIMIT_S)
_KILL = Do((KillAgent(),))
_EXIT = Do((Exit(),))

_P, _I = Phase, Input
Transition = tuple[Phase, Do] | None
"""None: stay, and leave a running deadline alone."""

TRANSITIONS: dict[Phase, dict[Input, Transition]] = {
    _P.STOPPED: {
        _I.CONTRIBUTE: (_P.STARTING, _START),
        _I.PAUSE: None,
        _I.QUIT: (_P.ENDED, _EXIT),
        _I.CHANGE_POOL: None,
    },
    _P.STARTING: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_PAUSED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_FAILED: (_P.FAILED, _NOTHING),
        _I.EXITED: (_P.RESTARTING, _NOTHING),
        _I.DEADLINE: (_P.REPLACING, _KILL),
    },
    _P.CONTRIBUTING: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: None,
        # The answer to a Pause that a Resume has overtaken, or the agent's own reason to pause.
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: (_P.FAILED, _NOTHING),
        _I.EXITED: (_P.RESTARTING, _NOTHING),
    },
    _P.FAILED: {
        _I.CONTRIBUTE: (_P.STARTING, _TRY_AGAIN),
        _I.PAUSE: (_P.PAUSING, _PAUSE),
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.REPLACING, _QUIT),
        _I.REPORTED: (_P.CONTRIBUTING, _NOTHING),
        _I.REPORTED_PAUSED: (_P.PAUSED, _NOTHING),
        _I.REPORTED_FAILED: None,
        # It said why it cannot go on: a restart would fail in the same way.
        _I.EXITED: (_P.STOPPED, _NOTHING),
    },
    _P.PAUSING: {
        _I.CONTRIBUTE: (_P.STARTING, _RESUME),
        _I.PAUSE: None,
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.ENDING, _QUIT),
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: (_P.PAUSED, _NOTHING),
        # It failed before it heard of the pause: it serves nothing either way.
        _I.REPORTED_FAILED: (_P.PAUSED, _NOTHING),
        _I.EXITED: (_P.STOPPED, _NOTHING),
        _I.DEADLINE: (_P.ENDING, _KILL),
    },
    _P.PAUSED: {
        _I.CONTRIBUTE: (_P.STARTING, _RESUME),
        _I.PAUSE: None,
        _I.QUIT: (_P.LEAVING, _QUIT),
        _I.CHANGE_POOL: (_P.ENDING, _QUIT),
        # The answer to a Resume that a Pause has overtaken: the last answer is still to come.
        _I.REPORTED: (_P.PAUSING, _AWAIT_PAUSE),
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.STOPPED, _NOTHING),
    },
    _P.ENDING: {
        _I.CONTRIBUTE: (_P.REPLACING, _KILL),
        _I.PAUSE: None,
        _I.QUIT: (_P.LEAVING, _KILL),
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.STOPPED, _NOTHING),
        _I.DEADLINE: (_P.ENDING, _KILL),
    },
    _P.REPLACING: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: (_P.ENDING, _KILL),
        _I.QUIT: (_P.LEAVING, _KILL),
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.STARTING, _START),
        _I.DEADLINE: (_P.REPLACING, _KILL),
    },
    _P.RESTARTING: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: (_P.STOPPED, _NOTHING),
        _I.QUIT: (_P.ENDED, _EXIT),
        _I.CHANGE_POOL: (_P.STARTING, _START),
        _I.DEADLINE: (_P.STARTING, _START),
    },
    _P.LEAVING: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: None,
        _I.QUIT: None,
        _I.CHANGE_POOL: None,
        _I.REPORTED: None,
        _I.REPORTED_PAUSED: None,
        _I.REPORTED_FAILED: None,
        _I.EXITED: (_P.ENDED, _EXIT),
        _I.DEADLINE: (_P.LEAVING, _KILL),
    },
    _P.ENDED: {
        _I.CONTRIBUTE: None,
        _I.PAUSE: None,
        _I.QUIT: None,
        _I.CHANGE_POOL: None,
    },
}

_USER_INPUTS: dict[type, Input] = {
    ContributePressed: Input.CONTRIBUTE,
    PausePressed: Input.PAUSE,
    QuitPressed: Input.QUIT,
    PoolChanged: Input.CHANGE_POOL,
}
_EXPECTED_EXITS = frozenset({_P.FAILED, _P.PAUSING, _P.PAUSED, _P.ENDING, _P.REPLACING, _P.LEAVING})
_STOPPED = Status(state=AgentState.STOPPED)
_NO_ANSWER = "The background process did not answer and was ended."


class Supervisor:
    """One per app. `now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        self._phase = Phase.STOPPED
        self._status = _STOPPED
        self._problem = ""
        self._lines = LineBuffer()
        self._num_garbage_lines = 0
        self._num_past_tokens = 0
        self._num_failures = 0
        self._started_s = 0.0
        self._deadline_s: float | None = None
        self._now_s = 0.0
        self._shown = self.snapshot()

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """What the event makes necessary, in order."""
        self._now_s = now_s
        deadline_s = self._deadline_s
        commands = [command for given in self._inputs(event) for command in self._step(given)]
        if self._deadline_s is not None and (self._deadline_s != deadline_s or isinstance(event, TimePassed)):
            commands.append(WakeAfter(self._wake_delay_s()))
        if (snapshot := self.snapshot()) != self._shown:
            self._shown = snapshot
            commands.append(Show(snapshot))
        return commands

    def snapshot(self) -> Snapshot:
        remaining_s = max(0.0, (self._deadline_s or 0.0) - self._now_s)
        restart_in_s = math.ceil(remaining_s) if self._phase is Phase.RESTARTING else None
        num_tokens = self._num_past_tokens + self._status.num_tokens
        return Snapshot(self._phase, self._status, self._problem, restart_in_s, self._num_garbage_lines, num_tokens)

    def _wake_delay_s(self) -> float:
        remaining_s = max(0.0, (self._deadline_s or 0.0) - self._now_s)
        return min(1.0, remaining_s) if self._phase is Phase.RESTARTING else remaining_s

    # ------------------------------------------------------------ events to inputs

    def _inputs(self, event: Event) -> Iterator[Input]:
        match event:
            case OutputReceived(data):
                for line in self._lines.feed(data):
                    yield from self._read(line)
            case AgentExited(exit_status):
                yield self._note_exit(_exit_sentence(exit_status))
            case AgentNotStarted(reason):
                yield self._note_exit(f"The background process could not be started: {reason}")
            case TimePassed():
                yield from self._check_deadline()
            case _:
                self._problem = ""
                yield _USER_INPUTS[type(event)]

    def _read(self, line: bytes) -> Iterator[Input]:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise msgspec.DecodeError(f"longer than {MAX_LINE_BYTES} bytes")
            status = decode_status(line)
        except msgspec.DecodeError as error:
            self._num_garbage_lines += 1
            logger.warning("a line from the agent was not understood (%s): %.80r", error, line[:80])
            return
        self._take(status)
        self._problem = ""
        yield _report_input(status)

    def _note_exit(self, sentence: str) -> Input:
        if self._phase not in _EXPECTED_EXITS:
            self._problem = sentence
            healthy = self._now_s - self._started_s >= STABLE_RUN_S
            self._num_failures = 1 if healthy else self._num_failures + 1
        if self._phase is not Phase.FAILED:
            self._take(_STOPPED)
        self._lines = LineBuffer()
        return Input.EXITED

    def _take(self, status: Status) -> None:
        if status.num_tokens < self._status.num_tokens:
            self._num_past_tokens += self._status.num_tokens
        self._status = status

    def _check_deadline(self) -> Iterator[Input]:
        if self._deadline_s is None or self._now_s < self._deadline_s:
            return
        if self._phase is Phase.STARTING:
            self._problem = _NO_ANSWER
        self._deadline_s = None
        yield Input.DEADLINE

    # ------------------------------------------------------------ inputs to commands

    def _step(self, given: Input) -> tuple[Command, ...]:
        try:
            transition = TRANSITIONS[self._phase][given]
        except KeyError:
            raise UnexpectedInput(self._phase, given) from None
        if transition is None:
            return ()
        self._phase, do = transition
        limit_s = self._back_off_s() if self._phase is Phase.RESTARTING else do.limit_s
        self._deadline_s = None if limit_s is None else self._now_s + limit_s
        if do is _START:
            self._started_s = self._now_s
            self._take(_STOPPED)
            self._num_garbage_lines = 0
        return do.commands

    def _back_off_s(self) -> float:
        # 1, 2, 4, ... s, as Folding@home waits after lost units (cbang Group.cpp, unitComplete).
        return doubled_s(1.0, self._num_failures - 1, MAX_BACK_OFF_S)


def _report_input(status: Status) -> Input:
    if status.state is AgentState.FAILED:
        return Input.REPORTED_FAILED
    if status.state in (AgentState.PAUSED, AgentState.STOPPED) and not status.worker_pids:
        return Input.REPORTED_PAUSED
    return Input.REPORTED


def _exit_sentence(exit_status: int) -> str:
    how = f"signal {-exit_status}" if exit_status < 0 else f"exit status {exit_status}"
    return f"The background process stopped unexpectedly ({how})."


class LineBuffer:
    """Cuts a byte stream into lines, keeping at most MAX_LINE_BYTES + 1 bytes of each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines completed by `data`, without their ends. A line that was too long comes cut, yet still too long."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: MAX_LINE_BYTES + 1]
        return [line for line in lines if line.strip()]
