from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from client.provision.tool import MAX_KEPT_LINES, ToolFailed, run_tool
from demo.local_pool import is_running


async def test_the_last_lines_are_kept() -> None:
    code = "for number in range(100): print('line', number)"
    lines = await run_tool([sys.executable, "-c", code], {})
    assert len(lines) == MAX_KEPT_LINES
    assert lines[-1] == "line 99"


async def test_a_failure_has_the_status_and_what_was_said_on_either_stream() -> None:
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ToolFailed) as caught:
        await run_tool([sys.executable, "-c", code], {})
    assert caught.value.status == 3
    assert set(caught.value.lines) == {"out", "err"}


async def test_the_environment_is_ours_and_the_given_one() -> None:
    code = "import os; print(os.environ['GIVEN'], 'PATH' in os.environ)"
    assert await run_tool([sys.executable, "-c", code], {"GIVEN": "yes"}) == ["yes True"]


async def test_a_line_without_an_end_is_cut_and_does_not_fill_the_memory() -> None:
    code = "import sys; sys.stdout.write('x' * 3_000_000)"
    (line,) = await run_tool([sys.executable, "-c", code], {})
    assert len(line) <= 2**16


async def test_cancelling_ends_the_tool_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, pathlib, subprocess, sys, threading\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait(600)'])\n"
        f"target = pathlib.Path({str(pids)!r})\n"
        "target.with_suffix('.new').write_text(f'{os.getpid()} {child.pid}')\n"
        "target.with_suffix('.new').rename(target)\n"
        "threading.Event().wait(600)\n"
    )
    running = asyncio.create_task(run_tool([sys.executable, "-c", code], {}))
    async with asyncio.timeout(60):
        while not pids.exists():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while any(is_running(int(pid)) for pid in pids.read_text().split()):
            await asyncio.sleep(0.01)


async def test_a_tool_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="no-such-tool"):
        await run_tool(["/no-such-tool"], {})
