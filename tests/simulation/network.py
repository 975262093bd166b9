"""The virtual network with everything that goes wrong in a real one.

Within one connection order and integrity hold, as in TCP: messages are held up, or lost with their connection. What
a broken or hostile node does to its own frames (lose, repeat, swap, spoil, say old ones again) is `Mischief`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.frames import decode_frame, is_probe
from tests.fakes.virtual_network import VirtualConnection, VirtualNetwork, _End, _serve

MEMORY = 16
"""Messages that a node which repeats old ones remembers."""
ECHOED = ("tokenssampled", "sessionopened")
ECHO_S = (0.02, 0.1, 0.3, 1.0)
NEVER_REPEATED = ("hello", "heartbeat", "leaving")


@dataclass
class Mischief:
    """What a node does to what it sends, each with a probability per message."""

    lose: float = 0.0
    repeat: float = 0.0
    swap: float = 0.0
    spoil: float = 0.0
    say_again: float = 0.0
    skip: float = 0.0
    """Loses rows behind which others of the same prompt will come: the receiver can see that they are missing."""
    echo: float = 0.0
    """Says the last tokens of a session, or that it is open, again a moment later."""
    texts: bool = False
    """To its control messages, too."""


@dataclass
class _Habit:
    mischief: Mischief
    kept: deque[str | bytes] = field(default_factory=lambda: deque(maxlen=MEMORY))
    swapped: str | bytes | None = None


class SimConnection(VirtualConnection):
    """A connection whose sender may misbehave, and which can be listened to."""

    def __init__(self, network: SimNetwork, ours: _End, theirs: _End) -> None:
        super().__init__(network, ours, theirs)
        self._sim = network
        self._habit: _Habit | None = None

    async def send(self, data: str | bytes) -> None:
        self._sim.tap(self, data)
        mischief = self._sim.mischief.get(self.ours.host)
        if mischief is None:
            await super().send(data)
            return
        if isinstance(data, str) and any(f'"{kind}"' in data for kind in ECHOED):
            self._echo(data, mischief.echo)
        for message in self._spoilt(data, mischief):
            await super().send(message)

    def _echo(self, data: str, probability: float) -> None:
        rng = self._sim.rng
        if rng.random() < probability:
            asyncio.get_running_loop().call_later(rng.choice(ECHO_S), self._say_late, data)

    def _say_late(self, data: str) -> None:
        if self.ours.closed is None:
            self.theirs.num_under_way += 1
            self._sim.deliver(self.ours, self.theirs, lambda: self._arrive(data))

    def _spoilt(self, data: str | bytes, mischief: Mischief) -> list[str | bytes]:
        """What is sent instead."""
        if isinstance(data, str) and (not mischief.texts or any(f'"{kind}"' in data for kind in NEVER_REPEATED)):
            return [data]
        if self._habit is None or self._habit.mischief is not mischief:
            self._habit = _Habit(mischief)
        habit, rng = self._habit, self._sim.rng
        out: list[str | bytes] = [data]
        for what in ("lose", "repeat", "swap", "spoil", "say_again", "skip"):
            if rng.random() < getattr(mischief, what):
                self._sim.num_mischiefs[self.ours.host, what] += 1
                out = getattr(self, f"_{what}")(data, habit)
                break
        habit.kept.append(data)
        if habit.swapped is not None and habit.swapped is not data:
            out, habit.swapped = [*out, habit.swapped], None
        return out

    def _lose(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        return []

    def _skip(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        segments = decode_frame(data).segments if isinstance(data, bytes) and not is_probe(data) else ()
        has_more = [
            s.position + s.num_tokens < self._sim.prompt_lengths.get((s.session_id, s.epoch), 0) for s in segments
        ]
        return [] if has_more and all(has_more) else [data]

    def _repeat(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        return [data, data]

    def _swap(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        if habit.swapped is not None:
            return [data]
        habit.swapped = data
        return []

    def _spoil(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        if isinstance(data, str):
            return [data]
        at = self._sim.rng.randrange(len(data))
        return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]]

    def _say_again(self, data: str | bytes, habit: _Habit) -> list[str | bytes]:
        return [data, self._sim.rng.choice(habit.kept)] if habit.kept else [data]


@dataclass
class _Due:
    """What should have arrived at this end of a connection, and is held up."""

    sender: str
    receiver: _End
    num: int = 0


Tap = Callable[[SimConnection, str | bytes], None]


class SimNetwork(VirtualNetwork):
    """`mischief`: by host. `tap` hears what is sent, before anything happens to it."""

    def __init__(self, rng: random.Random, latency_s: tuple[float, float]) -> None:
        super().__init__(rng, latency_s)
        self.mischief: dict[str, Mischief] = {}
        self.num_mischiefs: Counter[tuple[str, str]] = Counter()
        self.prompt_lengths: dict[tuple[str, int], int] = {}
        """By session and epoch; whoever taps the coordinator's messages knows them."""
        self.tap: Tap = lambda connection, data: None
        self._blocked: Counter[tuple[str, str]] = Counter()
        self._due: dict[int, _Due] = {}
        self._delays_s: dict[str, float] = {}
        self._dark: set[str] = set()

    # ------------------------------------------------------------ faults

    def block(self, source: str, target: str) -> None:
        """One way: what is sent from now on arrives when `unblock` says so."""
        self._blocked[source, target] += 1

    def unblock(self, source: str, target: str) -> None:
        self._blocked[source, target] -= 1
        self._blocked = +self._blocked
        self._flush()

    def sever(self, one: str, other: str) -> None:
        """Connections between the two are reset."""
        for connection in list(self.connections):
            if {connection.ours.host, connection.theirs.host} == {one, other}:
                connection.drop()

    def delay(self, host: str, delay_s: float) -> None:
        """Everything from and to this host takes longer by that."""
        self._delays_s[host] = delay_s

    def power_off(self, host: str) -> None:
        """What it has sent and has not heard yet is lost, and nobody is told."""
        self._dark.add(host)

    def power_on(self, host: str) -> None:
        """Its connections of before are unknown to it."""
        self._dark.discard(host)
        self.cut(host)

    # ------------------------------------------------------------ as VirtualNetwork

    def release(self, host: str) -> None:
        self._held.pop(host, None)
        self._flush()

    def deliver(self, sender: _End, receiver: _End, arrive: Callable[[], None]) -> None:
        extra_s = self._delays_s.get(sender.host, 0.0) + self._delays_s.get(receiver.host, 0.0)
        if extra_s:
            now_s = asyncio.get_running_loop().time()
            receiver.arrive_at_s = max(receiver.arrive_at_s, now_s + extra_s)
        super().deliver(sender, receiver, arrive)

    def _arrive_unless_held(self, sender: str, receiver: _End) -> None:
        """Whatever holds it up, it arrives behind what was sent before it."""
        waiting = self._due.setdefault(id(receiver), _Due(sender, receiver))
        waiting.num += 1
        self._take(waiting)

    def _flush(self) -> None:
        for waiting in list(self._due.values()):
            self._take(waiting)

    def _take(self, waiting: _Due) -> None:
        sender, receiver = waiting.sender, waiting.receiver
        is_lost = sender in self._dark or receiver.host in self._dark
        while waiting.num and (is_lost or not self._is_cut(sender, receiver.host, one_way=True)):
            arrive = receiver.under_way.popleft()
            waiting.num -= 1
            if not is_lost:
                arrive()
        if not waiting.num:
            self._due.pop(id(receiver), None)

    def open(self, host: str, port: int, caller: str, max_size_bytes: int) -> VirtualConnection | None:
        listening = self.listeners.get((host, port))
        if listening is None or self._is_cut(caller, listening.host):
            return None
        ours, theirs = _End(caller, max_size_bytes), _End(listening.host, listening.max_size_bytes)
        accepted = SimConnection(self, theirs, ours)
        listening.accepted.append(accepted)
        task = asyncio.get_running_loop().create_task(_serve(listening.handler, accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections = [c for c in self.connections if c.ours.closed is None or c.theirs.closed is None]
        self.connections.append(SimConnection(self, ours, theirs))
        return self.connections[-1]

    def _is_cut(self, source: str, target: str, *, one_way: bool = False) -> bool:
        if {source, target} & (self._dark | self._held.keys()):
            return True
        return (source, target) in self._blocked or (not one_way and (target, source) in self._blocked)
