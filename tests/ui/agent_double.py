"""An agent without pool, torch or network: speaks client/status.py over stdin and stdout, and misbehaves on demand.

    python -m tests.ui.agent_double --play serving --record FILE --crash-after serving

`--record` gets a line for each thing that happens: `start PID`, `join LINK`, `line TYPE`, `eof`, `end`. Rules and the
desktop's readings are recorded as `rules JSON` and `reading JSON`. What the node is asked for
besides (--join, DECENTLLM_JOIN and the limits) is taken and not looked at.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from pathlib import Path

import msgspec

from client.status import (
    AgentState,
    Command,
    DeviceStatus,
    History,
    Pause,
    PauseInfo,
    Quit,
    Resume,
    SessionReading,
    SetRules,
    Status,
    Transition,
    decode_command,
    encode_line,
)
from protocol.pause import PauseReason
from protocol.values import LayerRange

MODEL = "Qwen2.5-Coder-0.5B-Instruct"
TOTAL_BYTES = 1_260_000_000
JOURNEY = "connecting,measuring,waiting,downloading:0,downloading:41,downloading:83,loading:50,serving"


def status_of(step: str) -> Status:
    """`downloading:41` and the like: a state and, for bytes, a percentage; `paused:video` has that reason.
    `finishing` serves and is about to leave."""
    if step == "finishing":
        return msgspec.structs.replace(status_of("serving"), leaves_at_s=time.time() + 24)
    name, _, rest = step.partition(":")
    state = AgentState(name)
    percent = rest if rest.isdigit() else "0"
    message = "The pool refused this node: its invitation has run out." if state is AgentState.FAILED else ""
    serving = state is AgentState.SERVING
    return Status(
        state=state,
        message=message,
        pool_name="Friends of the llama",
        devices=() if state in (AgentState.CONNECTING, AgentState.PREPARING) else (_device(state, int(percent)),),
        num_sessions=3 if serving else 0,
        num_tokens=128_934 if serving else 0,
        worker_pids=() if state in (AgentState.PAUSED, AgentState.STOPPED) else (os.getpid(),),
        pause=_pause(rest) if state is AgentState.PAUSED else None,
        done_bytes=TOTAL_BYTES * int(percent) // 100 if state is AgentState.PREPARING else 0,
        total_bytes=TOTAL_BYTES if state is AgentState.PREPARING else 0,
    )


def _pause(reason: str) -> PauseInfo:
    detail = "steam uses 87 % of the GPU" if reason == PauseReason.OTHER_GPU_USE else ""
    return PauseInfo((PauseReason(reason or "manual"),), time.time(), detail)


def _device(state: AgentState, percent: int) -> DeviceStatus:
    assigned = state in (AgentState.DOWNLOADING, AgentState.LOADING, AgentState.SERVING)
    return DeviceStatus(
        device_id="cuda:0",
        name="NVIDIA GeForce RTX 4090",
        state=state,
        model_name=MODEL if assigned else "",
        layers=LayerRange(0, 12) if assigned else None,
        num_layers=24 if assigned else 0,
        done_bytes=TOTAL_BYTES * percent // 100,
        total_bytes=TOTAL_BYTES,
    )


class AgentDouble:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._steps: list[str] = []
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def run(self) -> int:
        self._record(f"start {os.getpid()}")
        self._record(f"join {os.environ.get('DECENTLLM_JOIN', '')}")
        if self._options.silent:
            time.sleep(3600)
        if self._options.garbage:
            self._write(b'not json\n\xff\xfe\n{"type":"pause"}\n[]\n' + b"x" * 200_000 + b"\n")
        for _ in range(self._options.flood):
            self._write(encode_line(status_of("waiting")))
        threading.Thread(target=self._read, daemon=True).start()
        self._steps = self._options.play.split(",")
        while (line := self._next_line()) != b"":
            if not self._obey(decode_command(line)):
                break
        self._record("end")
        return 0

    def _next_line(self) -> bytes:
        """The GUI's next line, playing the journey while there is none. Empty at the end of file."""
        while self._steps:
            try:
                return self._inbox.get(timeout=self._options.step_delay)
            except queue.Empty:
                self._play(self._steps.pop(0))
        return self._inbox.get()

    def _play(self, step: str) -> None:
        self._write(encode_line(status_of(step)))
        if step.startswith("paused:"):
            pause = status_of(step).pause
            assert pause is not None
            self._write(encode_line(History((Transition(pause.since_s, pause.reasons, pause.detail),))))
        if step == self._options.crash_after and self._may_crash():
            os._exit(3)

    def _may_crash(self) -> bool:
        starts = [line for line in self._options.record.read_text().splitlines() if line.startswith("start")]
        return len(starts) <= self._options.crash_times

    def _obey(self, command: Command) -> bool:
        if isinstance(command, SetRules):
            self._record(f"rules {msgspec.json.encode(command.rules).decode()}")
            return True
        if isinstance(command, SessionReading):
            self._record(f"reading {msgspec.json.encode(command).decode()}")
            return True
        self._record(f"line {type(command).__name__}")
        if isinstance(command, Pause):
            self._record(f"for {command.for_s}")
            self._record(f"after answers {command.after_answers}")
            self._steps = self._pause_steps(command.after_answers)
        elif isinstance(command, Resume):
            self._record(f"anyway {command.anyway}")
            self._steps = ["serving"] if command.anyway else self._options.play.split(",")
        return not isinstance(command, Quit) or self._options.ignore_quit

    def _pause_steps(self, after_answers: bool) -> list[str]:
        if after_answers:
            return ["finishing"] if self._options.endless else ["finishing", "paused"]
        return [] if self._options.ignore_pause else ["paused"]

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            self._inbox.put(line)
        self._record("eof")
        self._inbox.put(b"")

    def _record(self, text: str) -> None:
        with self._options.record.open("a") as file:
            file.write(text + "\n")

    @staticmethod
    def _write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--attached", action="store_true")
    for name in ("--name", "--max-memory", "--max-disk", "--direct"):
        parser.add_argument(name)
    parser.add_argument("--join", default=os.environ.get("DECENTLLM_JOIN", ""))
    parser.add_argument("--record", type=Path, default=Path(os.devnull))
    parser.add_argument("--play", default=JOURNEY)
    parser.add_argument("--step-delay", type=float, default=0.0)
    parser.add_argument("--crash-after", default="")
    parser.add_argument("--crash-times", type=int, default=1_000)
    parser.add_argument("--flood", type=int, default=0)
    for flag in ("--silent", "--garbage", "--ignore-pause", "--ignore-quit", "--endless"):
        parser.add_argument(flag, action="store_true")
    return AgentDouble(parser.parse_args()).run()


if __name__ == "__main__":
    # Not sys.exit: the thread that waits for stdin holds its lock, and the interpreter would abort after waiting 1 s.
    os._exit(main())
