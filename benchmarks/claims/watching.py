"""What a watched scheduler notes, one JSON line each, and the sums that the rows are made of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import speed_of


class Held(msgspec.Struct, frozen=True, tag=True):
    """A node is to hold these layers. Times are of time.monotonic, which all processes of a machine share."""

    at_s: float
    node_id: str
    layers: str
    reason: str


class Worked(msgspec.Struct, frozen=True, tag=True):
    """Live work of a node since it last said so."""

    at_s: float
    node_id: str
    compute_s: float
    num_steps: int
    num_rows: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """A request got its chain; `took_s` is how long the scheduler thought about the event."""

    at_s: float
    node_ids: tuple[str, ...]
    took_s: float


class Planned(msgspec.Struct, frozen=True, tag=True):
    """Everything was planned anew."""

    at_s: float
    took_s: float


class Benchmarked(msgspec.Struct, frozen=True, tag=True):
    """How fast a node measured itself to be: the fields of cost.Speed."""

    at_s: float
    node_id: str
    step_s: float
    row_s: float
    prefill_s: float
    head_s: float


Note = Held | Worked | Started | Planned | Benchmarked

_notes: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)


class Watch:
    """Writes notes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(path.open("ab", buffering=0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def note(self, event: ev.Event, commands: Sequence[cmd.Command], took_s: float) -> None:
        for one in notes_of(event, commands, took_s, time.monotonic()):
            self._file.write(msgspec.json.encode(one) + b"\n")


def notes_of(event: ev.Event, commands: Sequence[cmd.Command], took_s: float, at_s: float) -> Iterable[Note]:
    """What is worth a note."""
    if isinstance(event, ev.StepsSeen):
        rows = event.num_decode_rows + event.num_prompt_tokens
        yield Worked(at_s, event.device.node_id, event.compute_s, event.num_steps, rows)
    elif isinstance(event, ev.Replan):
        yield Planned(at_s, took_s)
    elif isinstance(event, ev.DeviceMeasured):
        speed = speed_of(event.benchmark)
        yield Benchmarked(at_s, event.device.node_id, speed.step_s, speed.row_s, speed.prefill_s, speed.head_s)
    for command in commands:
        if isinstance(command, cmd.Assign):
            yield Held(at_s, command.device.node_id, str(command.layers), command.reason)
        elif isinstance(command, cmd.StartChain):
            yield Started(at_s, tuple(stage.device.node_id for stage in command.chain), took_s)


def read_notes(path: Path, from_s: float = 0.0) -> list[Note]:
    """Those since then. A line that is just being written is left for the next time."""
    *lines, _ = path.read_bytes().split(b"\n")
    notes = [_notes.decode(line) for line in lines]
    return [note for note in notes if note.at_s >= from_s]


def busy_s(notes: Iterable[Note]) -> dict[str, float]:
    """Seconds that each node has computed, by node id."""
    sums: dict[str, float] = defaultdict(float)
    for note in notes:
        if isinstance(note, Worked):
            sums[note.node_id] += note.compute_s
    return dict(sums)
