"""The GUI's side of the agent, as a state machine without Qt, process or clock: events in, commands out.

`client/supervisor_table.py` is the machine; `client/ui/agent_process.py` is the shell that runs the commands. The agent
dies with the GUI because its standard input ends; nothing here has to see to that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from client.status import (
    MAX_TRANSITIONS,
    AgentState,
    History,
    Pause,
    Quit,
    Resume,
    SessionReading,
    SetRules,
    Status,
    Transition,
    decode_report,
    encode_line,
)
from client.supervisor_table import LISTENING, TRANSITIONS, Input, Order, Phase
from protocol.backoff import doubled_s
from protocol.pause import PauseRules

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 * 1024
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
    """The volunteer wants to contribute (also "try again"). `anyway`: whatever the machine is used for now."""

    anyway: bool = False


@dataclass(frozen=True, slots=True)
class PausePressed:
    """The volunteer wants the GPU back, for a while or (None) until ContributePressed; `after_answers`: in no hurry."""

    for_s: float | None = None
    after_answers: bool = False


@dataclass(frozen=True, slots=True)
class RulesChanged:
    """The volunteer's rules, from now on and for every agent that is started."""

    rules: PauseRules


@dataclass(frozen=True, slots=True)
class SessionRead:
    """What the desktop says about the person at the machine."""

    reading: SessionReading


@dataclass(frozen=True, slots=True)
class QuitPressed:
    """The volunteer quits the app."""


@dataclass(frozen=True, slots=True)
class PoolChanged:
    """What the agent is started with is different now: a running one must be replaced."""


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


UserEvent = ContributePressed | PausePressed | QuitPressed | PoolChanged | RulesChanged | SessionRead
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the view is a function of, but the time and the settings."""

    phase: Phase = Phase.STOPPED
    status: Status = Status(state=AgentState.STOPPED)
    problem: str = ""
    restart_in_s: int | None = None
    num_garbage_lines: int = 0
    num_tokens: int = 0
    """Served since the app started: the agent counts from 0 again after each pause."""
    history: tuple[Transition, ...] = ()
    """Oldest first; of all agents since the app started."""


_EXPECTED_EXITS = frozenset(
    {Phase.FAILED, Phase.FINISHING, Phase.PAUSING, Phase.PAUSED, Phase.ENDING, Phase.REPLACING, Phase.LEAVING}
)
_STOPPED = Status(state=AgentState.STOPPED)
_NO_ANSWER = "The background process did not answer and was ended."


class Supervisor:
    """One per app. `now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        self._phase = Phase.STOPPED
        self._status = _STOPPED
        self._problem = ""
        self._lines = LineBuffer()
        self._history: tuple[Transition, ...] = ()
        self._rules = PauseRules()
        self._pause_for_s: float | None = None
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
        commands = self._tell(event)
        commands += [command for given in self._inputs(event) for command in self._step(given)]
        if self._deadline_s is not None and (self._deadline_s != deadline_s or isinstance(event, TimePassed)):
            commands.append(WakeAfter(self._wake_delay_s()))
        if (snapshot := self.snapshot()) != self._shown:
            self._shown = snapshot
            commands.append(Show(snapshot))
        return commands

    def snapshot(self) -> Snapshot:
        remaining_s = max(0.0, (self._deadline_s or 0.0) - self._now_s)
        restart_in_s = math.ceil(remaining_s) if self._phase is Phase.RESTARTING else None
        return Snapshot(
            phase=self._phase,
            status=self._status,
            problem=self._problem,
            restart_in_s=restart_in_s,
            num_garbage_lines=self._num_garbage_lines,
            num_tokens=self._num_past_tokens + self._status.num_tokens,
            history=self._history,
        )

    def _wake_delay_s(self) -> float:
        remaining_s = max(0.0, (self._deadline_s or 0.0) - self._now_s)
        return min(1.0, remaining_s) if self._phase is Phase.RESTARTING else remaining_s

    def _tell(self, event: Event) -> list[Command]:
        """What changes no phase is passed on to an agent that listens; the rules go to each new one."""
        if isinstance(event, RulesChanged):
            self._rules = event.rules
            return [self._rules_line()] if self._phase in LISTENING else []
        if isinstance(event, SessionRead) and self._phase in LISTENING:
            return [SendLine(encode_line(event.reading))]
        return []

    def _rules_line(self) -> SendLine:
        return SendLine(encode_line(SetRules(self._rules)))

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
            case ContributePressed() | PausePressed() | QuitPressed() | PoolChanged():
                self._problem = ""
                yield self._user_input(event)

    def _user_input(self, event: ContributePressed | PausePressed | QuitPressed | PoolChanged) -> Input:
        match event:
            case ContributePressed(anyway):
                self._pause_for_s = None
                return Input.CONTRIBUTE_ANYWAY if anyway else Input.CONTRIBUTE
            case PausePressed(for_s, after_answers):
                self._pause_for_s = for_s
                return Input.PAUSE_AFTER_ANSWERS if after_answers else Input.PAUSE
            case QuitPressed():
                return Input.QUIT
            case PoolChanged():
                return Input.CHANGE_POOL

    def _read(self, line: bytes) -> Iterator[Input]:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise msgspec.DecodeError(f"longer than {MAX_LINE_BYTES} bytes")
            report = decode_report(line)
        except msgspec.DecodeError as error:
            self._num_garbage_lines += 1
            logger.warning("a line from the agent was not understood (%s): %.80r", error, line[:80])
            return
        if isinstance(report, History):
            self._history = _merged(self._history, report.transitions)
            return
        self._take(report)
        self._problem = ""
        yield self._report_input(report)

    def _report_input(self, status: Status) -> Input:
        if status.state is AgentState.FAILED:
            return Input.REPORTED_FAILED
        if status.state in (AgentState.PAUSED, AgentState.STOPPED) and not status.worker_pids:
            return Input.REPORTED_PAUSED
        if self._phase is Phase.PAUSED and self._pause_for_s is not None:
            return Input.PAUSE_OVER
        return Input.REPORTED

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
        if not do.keeps_limit:
            self._deadline_s = None if limit_s is None else self._now_s + limit_s
        return tuple(command for order in do.orders for command in self._commands(order))

    def _commands(self, order: Order) -> tuple[Command, ...]:
        match order:
            case Order.START:
                return self._start()
            case Order.PAUSE | Order.PAUSE_AFTER_ANSWERS:
                waits = order is Order.PAUSE_AFTER_ANSWERS
                return (SendLine(encode_line(Pause(self._pause_for_s, waits))),)
            case Order.RESUME | Order.RESUME_ANYWAY:
                return (SendLine(encode_line(Resume(anyway=order is Order.RESUME_ANYWAY))),)
            case Order.QUIT:
                return (SendLine(encode_line(Quit())),)
            case Order.KILL:
                return (KillAgent(),)
            case Order.EXIT:
                return (Exit(),)

    def _start(self) -> tuple[Command, ...]:
        """The rules are the first thing that a new agent hears."""
        self._started_s = self._now_s
        self._take(_STOPPED)
        self._num_garbage_lines = 0
        return StartAgent(), self._rules_line()

    def _back_off_s(self) -> float:
        # 1, 2, 4, ... s, as Folding@home waits after lost units (cbang Group.cpp, unitComplete).
        return doubled_s(1.0, self._num_failures - 1, MAX_BACK_OFF_S)


def _merged(known: tuple[Transition, ...], told: tuple[Transition, ...]) -> tuple[Transition, ...]:
    """A new agent may know less than its predecessor told, and tells the same again."""
    return tuple(sorted({*known, *told}, key=lambda transition: transition.at_s)[-MAX_TRANSITIONS:])


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
