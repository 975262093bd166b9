"""An agent as the tray app runs it: its status lines with their times, and the clicks that can be sent to it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from client.status import AgentState, Command, Quit, Status, Transition, decode_report, encode_line
from demo.local_pool import ROOT, is_running

LIMIT_S = 600.0
FROM_SOURCE = (sys.executable, "-m", "client", "node", "run")


@dataclass(frozen=True)
class Seen:
    """A status and when it came (time.monotonic, which is the same clock for all processes of a Linux machine)."""

    at_s: float
    status: Status


class AttachedAgent(AbstractContextManager["AttachedAgent"]):
    """Started with the block, ended with it."""

    def __init__(self, join: str, data_dir: Path, *options: str, program: Sequence[str] = FROM_SOURCE) -> None:
        argv = [*program, "--attached", "--data-dir", str(data_dir), *options]
        self.started_s = time.monotonic()
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self._log = (data_dir.parent / f"{data_dir.name}.log").open("ab")
        self._process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "DECENTLLM_JOIN": join},
        )
        self.seen: list[Seen] = []
        self.transitions: tuple[Transition, ...] = ()
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last(self) -> Status:
        return self.seen[-1].status

    def send(self, command: Command) -> float:
        """A click; returns its time."""
        assert self._process.stdin is not None
        at_s = time.monotonic()
        self._process.stdin.write(encode_line(command))
        self._process.stdin.flush()
        return at_s

    def wait(self, condition: Callable[[Status], bool], since_s: float = 0.0, timeout_s: float = LIMIT_S) -> Seen:
        """The first status after `since_s` that is as wanted. Raises TimeoutError, also when the agent has ended."""
        deadline_s = time.monotonic() + timeout_s
        with self._news:
            while True:
                for seen in self.seen:
                    if seen.at_s >= since_s and condition(seen.status):
                        return seen
                if not self._news.wait(timeout=1.0) and (
                    time.monotonic() > deadline_s or self._process.poll() is not None
                ):
                    raise TimeoutError(f"the agent's last word was {self.seen[-1:]}")

    def wait_for(self, state: AgentState, since_s: float = 0.0) -> Seen:
        return self.wait(lambda status: status.state is state, since_s)

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self.send(Quit())
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(10)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = decode_report(line)
            with self._news:
                if isinstance(report, Status):
                    self.seen.append(Seen(time.monotonic(), report))
                else:
                    self.transitions = report.transitions
                self._news.notify_all()


def wait_ended(pids: tuple[int, ...], timeout_s: float = 60.0) -> float:
    """When the last of these processes was gone (looked at every 2 ms)."""
    deadline_s = time.monotonic() + timeout_s
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{pids} still run")
        time.sleep(0.002)
    return time.monotonic()
