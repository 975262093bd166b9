"""What processes take, read from /proc, and whether it grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MB = 1e6
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time."""

    at_s: float
    rss_bytes: int
    num_handles: int


@dataclass(frozen=True, slots=True)
class Trend:
    """A line fitted by least squares through the samples, and how they scatter around it."""

    seconds: float
    first_mb: float
    last_mb: float
    mb_per_hour: float
    first_handles: float
    last_handles: float
    handles_per_hour: float


@dataclass
class Watched:
    """The samples of one process's life."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def look(self, now_s: float) -> None:
        """Nothing is noted of a process that has just gone."""
        with suppress(OSError):
            self.samples.append(Sample(now_s, rss_bytes(self.pid), num_handles(self.pid)))

    def trend(self, warm_up_s: float) -> Trend | None:
        """Without the first seconds; None with fewer than ten samples left."""
        if not self.samples:
            return None
        begin_s = self.samples[0].at_s + warm_up_s
        rest = [sample for sample in self.samples if sample.at_s >= begin_s]
        if len(rest) < 10:
            return None
        times = [sample.at_s - begin_s for sample in rest]
        mb, handles = [s.rss_bytes / MB for s in rest], [float(s.num_handles) for s in rest]
        fifth = max(1, len(rest) // 5)
        return Trend(
            times[-1],
            mean(mb[:fifth]), mean(mb[-fifth:]), slope(times, mb) * HOUR_S,
            mean(handles[:fifth]), mean(handles[-fifth:]), slope(times, handles) * HOUR_S,
        )  # fmt: skip


def rss_bytes(pid: int) -> int:
    """Resident memory. Raises OSError when the process is gone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def num_handles(pid: int) -> int:
    """Open file handles. Raises OSError when the process is gone."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_s(pid: int) -> float:
    """Seconds of processor time until now. Raises OSError when the process is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line; 0 where all times are the same."""
    time_mean, value_mean = mean(times), mean(values)
    square = sum((time - time_mean) ** 2 for time in times)
    product = sum((t - time_mean) * (v - value_mean) for t, v in zip(times, values, strict=True))
    return product / square if square else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
