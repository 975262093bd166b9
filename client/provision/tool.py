"""Running the tools of a preparation: one child at a time, its output kept, its whole family ended on cancelling."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

MAX_KEPT_LINES = 40
MAX_LINE_BYTES = 2**16


class ToolFailed(Exception):  # noqa: N818 - reads as what happened
    """The tool ended with an error; `lines` are the last ones it wrote."""

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        super().__init__(status, tuple(lines))
        self.status = status
        self.lines = tuple(lines)

    def __str__(self) -> str:
        return f"status {self.status}: {' / '.join(self.lines[-3:])}"


async def run_tool(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Run to the end; returns its last lines. Raises ToolFailed; OSError if it cannot be started.

    When cancelled, the tool and its children are ended before the cancellation goes on."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
        limit=MAX_LINE_BYTES,
        start_new_session=sys.platform != "win32",
    )
    try:
        lines = await _read(process)
        status = await process.wait()
    except BaseException:
        _end_family(process)
        await process.wait()
        raise
    if status != 0:
        raise ToolFailed(status, lines)
    return lines


async def _read(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None, "its output is a pipe"
    kept: deque[str] = deque(maxlen=MAX_KEPT_LINES)
    rest = b""
    while piece := await process.stdout.read(MAX_LINE_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-MAX_LINE_BYTES:]
        _keep(kept, lines)
    _keep(kept, [rest])
    return list(kept)


def _keep(kept: deque[str], lines: Sequence[bytes]) -> None:
    for line in lines:
        if text := line.decode(errors="replace").strip():
            log.info("%s", text)
            kept.append(text)


def _end_family(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
