"""Asks a short process what this machine would bring: looking for GPUs loads drivers, which the window must not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from PySide6.QtCore import QObject, QProcess, QTimer, Signal

from client.facts import Facts, decode_facts

logger = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 64 * 1024
LIMIT_MS = 60_000
"""A cold disk reads Python and the GPU's driver in 10 s or more."""


class FactsProcess(QObject):
    """One question at a time. Emits `found` once for each, with None when there was no answer that can be used."""

    found = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._process: QProcess | None = None
        self._limit = QTimer(self, singleShot=True, interval=LIMIT_MS)
        self._limit.timeout.connect(lambda: self._end(None))

    def is_looking(self) -> bool:
        return self._process is not None

    def ask(self, argv: Sequence[str]) -> None:
        """Nothing happens while an earlier question is open."""
        if self._process is not None:
            return
        program, *arguments = argv
        process = QProcess(self)
        process.setProgram(program)
        process.setArguments(arguments)
        process.setStandardErrorFile(QProcess.nullDevice())
        process.finished.connect(self._note_finished)
        process.errorOccurred.connect(self._note_error)
        self._process = process
        self._limit.start()
        process.start()

    def close(self) -> None:
        """Forget the question."""
        self._limit.stop()
        process, self._process = self._process, None
        if process is not None:
            process.blockSignals(True)
            process.kill()
            process.waitForFinished(_KILL_LIMIT_MS)
            process.deleteLater()

    def _note_finished(self) -> None:
        if self._process is not None:
            self._end(_facts_in(bytes(self._process.read(MAX_OUTPUT_BYTES).data())))

    def _note_error(self, error: QProcess.ProcessError) -> None:
        """Of all errors only this one is not followed by `finished`."""
        if error is QProcess.ProcessError.FailedToStart:
            self._end(None)

    def _end(self, facts: Facts | None) -> None:
        self.close()
        self.found.emit(facts)


def _facts_in(output: bytes) -> Facts | None:
    """The last line is the answer: a driver may have talked before."""
    lines = output.strip().splitlines()
    try:
        return decode_facts(lines[-1] if lines else b"")
    except msgspec.DecodeError as error:
        logger.info("what this machine would bring is not known: %s", error)
        return None


_KILL_LIMIT_MS = 2000
