"""Which of this node's workers hangs: it owes something, is silent, and does nothing. Pure.

Work-based: a worker that owes nothing is never suspected. One that is silent although it owes something is asked
whether it is there, which it answers between two forwards. What it does meanwhile is seen from outside: a worker that
computes, compiles or reads uses the processor (a driver's wait for a GPU spins, too), a stopped or deadlocked one does
not. So there are two limits, of silence and of silence without any use of the processor. Time counts in looks: a
machine that slept, or was so busy that the agent itself was late, has lost one look and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from protocol.values import DeviceId

LOOK_S = 1.0
DOUBT_S = 2.0
"""Silent for so long, a worker that owes something is looked at more closely."""
ASK_SHARE = 0.5
"""Of either limit: then the worker is asked. What is left is more than a worker that waits for orders needs."""
IDLE_SHARE = 0.01
"""Of one core: what a process uses that does nothing but wait for a lock or a timer."""
SAFETY = 4.0
"""Times the longest silence that this worker came back from: what a step is allowed to take."""
LEAST_QUIET_S = 10.0


class Owed(Enum):
    """What a worker owes."""

    NOTHING = auto()
    STEP = auto()
    """Or to say that it has opened a session, which takes it no time at all."""
    FIRST_STEP = auto()
    """Nothing has come out of these layers yet: kernels are compiled and captured with the first rows."""
    COMMAND = auto()
    """To measure, plan or load."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`quiet_s`: silent and using no processor. `silent_s`: silent, whatever it does."""

    quiet_s: float
    silent_s: float


LIMITS = {
    Owed.STEP: Limits(60.0, 300.0),
    Owed.FIRST_STEP: Limits(60.0, 900.0),
    Owed.COMMAND: Limits(120.0, 1800.0),
}
"""The most. A chunk of a prompt takes minutes on a slow processor, compiling for a card as long; neither is quiet. A
disk that spins up or a network file system is quiet for half a minute. Learnt is less: see Watch.limits."""


class Finding(Enum):
    FINE = auto()
    ASK = auto()
    HANGS = auto()


@dataclass(slots=True)
class Watch:
    """One worker. All times are credited in looks, in seconds."""

    silent_s: float = 0.0
    quiet_s: float = 0.0
    longest_s: float = 0.0
    """The longest silence in which it owed a step, and after which it went on."""
    has_worked: bool = False
    owed: Owed = Owed.NOTHING
    is_asked: bool = False
    cpu_s: float | None = None

    @property
    def is_doubted(self) -> bool:
        return self.silent_s >= DOUBT_S

    @property
    def limits(self) -> Limits:
        """Of a worker that has been seen at work, its own pauses say what is long."""
        most = LIMITS[self.owed]
        if self.owed is not Owed.STEP:
            return most
        return Limits(min(most.quiet_s, max(LEAST_QUIET_S, SAFETY * self.longest_s)), most.silent_s)

    def heard(self, *, worked: bool) -> None:
        """It said something; `worked`: rows or tokens."""
        if worked:
            self.has_worked = True
            self.longest_s = max(self.longest_s, self.silent_s)
        self._forget()

    def look(self, owed: Owed, elapsed_s: float, cpu_s: float | None) -> Finding:
        """`cpu_s`: what it has used of processors since its start; None: not known, so it may be at work."""
        if owed is not self.owed:
            self._forget()
            self.owed = owed
        if owed is Owed.NOTHING:
            return Finding.FINE
        was_doubted = self.is_doubted
        self.silent_s += elapsed_s
        if was_doubted:
            self._note_use(elapsed_s, cpu_s)
        return self._judge()

    def _note_use(self, elapsed_s: float, cpu_s: float | None) -> None:
        before, self.cpu_s = self.cpu_s, cpu_s
        if before is None or cpu_s is None or cpu_s - before > IDLE_SHARE * elapsed_s:
            self.quiet_s = 0.0
        else:
            self.quiet_s += elapsed_s

    def _judge(self) -> Finding:
        limits = self.limits
        if self.is_asked and (self.quiet_s >= limits.quiet_s or self.silent_s >= limits.silent_s):
            return Finding.HANGS
        is_due = self.quiet_s >= ASK_SHARE * limits.quiet_s or self.silent_s >= ASK_SHARE * limits.silent_s
        if is_due and not self.is_asked:
            self.is_asked = True
            return Finding.ASK
        return Finding.FINE

    def _forget(self) -> None:
        self.silent_s = self.quiet_s = 0.0
        self.is_asked = False
        self.cpu_s = None


@dataclass(slots=True)
class Watchdog:
    """All workers of a node."""

    _watches: dict[DeviceId, Watch] = field(default_factory=dict)
    _looked_s: float | None = None

    @property
    def doubted(self) -> list[DeviceId]:
        """Whose use of the processor is worth reading before the next look."""
        return [device_id for device_id, watch in self._watches.items() if watch.is_doubted]

    def begins(self, device_id: DeviceId) -> None:
        """A worker that is new, or that is to load other layers: what was learnt of it is of no use."""
        self._watches[device_id] = Watch()

    def heard(self, device_id: DeviceId, *, worked: bool = False) -> None:
        watch = self._watches.get(device_id)
        if watch is not None:
            watch.heard(worked=worked)

    def has_worked(self, device_id: DeviceId) -> bool:
        """Whether anything has come out of its layers."""
        watch = self._watches.get(device_id)
        return watch is not None and watch.has_worked

    def silent_s(self, device_id: DeviceId) -> float | None:
        """For how long it has said nothing although it owes a step; None if what it owes may take any time."""
        watch = self._watches.get(device_id)
        return watch.silent_s if watch is not None and watch.owed is Owed.STEP else None

    def look(
        self, owed: Callable[[DeviceId], Owed], cpu_s: Mapping[DeviceId, float | None], now_s: float
    ) -> Iterable[tuple[DeviceId, Finding]]:
        """What is found of each worker, about every LOOK_S."""
        since_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        elapsed_s = min(max(since_s, 0.0), 2 * LOOK_S)
        found = [(key, watch.look(owed(key), elapsed_s, cpu_s.get(key))) for key, watch in self._watches.items()]
        return [(device_id, finding) for device_id, finding in found if finding is not Finding.FINE]
