"""The shell around the supervisor: runs its commands on a QProcess and a timer, and feeds it what happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, Signal

from client.supervisor import (
    AgentExited,
    AgentNotStarted,
    Command,
    Event,
    Exit,
    KillAgent,
    OutputReceived,
    SendLine,
    Show,
    Snapshot,
    StartAgent,
    Supervisor,
    TimePassed,
    UserEvent,
    WakeAfter,
)

logger = logging.getLogger(__name__)

MAX_LOG_BYTES = 5 * 1024 * 1024
_SHOW_EVERY_MS = 250
_KILL_LIMIT_MS = 2000


@dataclass(frozen=True, slots=True)
class Launch:
    """What the agent is started with. `variables` are for what a command line would show to all users (proc(5):
    /proc/PID/cmdline is world-readable, environ is not)."""

    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


class AgentProcess(QObject):
    """`launch` is asked for at each start, so that a changed setting counts from the next one."""

    changed = Signal(Snapshot)
    """At most 4 times a second, however fast the agent talks: more costs the processor and tells nobody more."""
    finished = Signal()

    def __init__(self, launch: Callable[[], Launch], log_file: Path | None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._launch = launch
        self._log_file = log_file
        self._supervisor = Supervisor()
        self._process: QProcess | None = None
        self._wake = QTimer(self, singleShot=True)
        self._wake.timeout.connect(lambda: self.handle(TimePassed()))
        self._show = QTimer(self, singleShot=True, interval=_SHOW_EVERY_MS)
        self._show.timeout.connect(lambda: self.changed.emit(self.snapshot()))

    def snapshot(self) -> Snapshot:
        return self._supervisor.snapshot()

    def press(self, event: UserEvent) -> None:
        """The volunteer asked for something; shown at once, without waiting for the next regular update."""
        self.handle(event)
        self.changed.emit(self.snapshot())

    def handle(self, event: Event) -> None:
        for command in self._supervisor.handle(event, time.monotonic()):
            self._run(command)

    def close(self) -> None:
        """End what is still there: the app ends now. The agent's workers end with it."""
        self._wake.stop()
        self._show.stop()
        process, self._process = self._process, None
        if process is None:
            return
        process.blockSignals(True)
        process.closeWriteChannel()
        if not process.waitForFinished(_KILL_LIMIT_MS):
            process.kill()
            process.waitForFinished(_KILL_LIMIT_MS)

    def _run(self, command: Command) -> None:
        match command:
            case StartAgent():
                self._start()
            case SendLine(line) if self._process is not None:
                self._process.write(line)
            case KillAgent() if self._process is not None:
                self._process.kill()
            case WakeAfter(delay_s):
                # Rounded up: a timer that fires early only costs a second one.
                self._wake.start(int(delay_s * 1000) + 1)
            case Show() if not self._show.isActive():
                self._show.start()
            case Exit():
                self.finished.emit()

    def _start(self) -> None:
        launch = self._launch()
        program, *arguments = launch.argv
        process = QProcess(self)
        process.setProgram(program)
        process.setArguments(arguments)
        process.setProcessEnvironment(_environment(launch.variables))
        self._send_errors_to_log(process)
        process.readyReadStandardOutput.connect(self._read)
        process.finished.connect(self._note_finished)
        process.errorOccurred.connect(self._note_error)
        self._process = process
        logger.info("starting the agent: %s", program)
        process.start()

    def _send_errors_to_log(self, process: QProcess) -> None:
        if self._log_file is None:
            process.setProcessChannelMode(QProcess.ProcessChannelMode.ForwardedErrorChannel)
            return
        keep_log_small(self._log_file)
        process.setStandardErrorFile(str(self._log_file), QProcess.OpenModeFlag.Append)

    def _read(self) -> None:
        if self._process is not None:
            self.handle(OutputReceived(bytes(self._process.readAllStandardOutput().data())))

    def _note_finished(self, code: int, how: QProcess.ExitStatus) -> None:
        self._read()
        self._forget()
        # Qt gives the signal's number as the code of a crash.
        self.handle(AgentExited(-code if how is QProcess.ExitStatus.CrashExit else code))

    def _note_error(self, error: QProcess.ProcessError) -> None:
        """Of all errors only this one is not followed by `finished`."""
        if error is QProcess.ProcessError.FailedToStart and self._process is not None:
            reason = self._process.errorString()
            self._forget()
            self.handle(AgentNotStarted(reason))

    def _forget(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.blockSignals(True)
            process.deleteLater()


def _environment(variables: Mapping[str, str]) -> QProcessEnvironment:
    environment = QProcessEnvironment.systemEnvironment()
    for name, value in variables.items():
        environment.insert(name, value)
    return environment


def keep_log_small(path: Path) -> None:
    """One older log is kept."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
