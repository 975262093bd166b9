"""How far devices are with what they were told to do, and which of them have been silent about it for too long.

A worker that hangs closes no connection, and its node goes on answering. Whoever is slow is not given up, only who gets
no further at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.scheduler.events import SliceProgress
from coordinator.scheduler.state import Device, DeviceState, State

MEASURE_LIMIT_S = 300.0
"""A benchmark takes under 20 s. On a slow machine that does it for the first time, with everything to be compiled or
read from a slow disk, it may take minutes."""
DOWNLOAD_LIMIT_S = 300.0
"""Without one more byte. What is told is whole chunks, of at most 16 MiB: a line of 60 kB/s needs that long for one."""
LOAD_LIMIT_S = 900.0
"""Without one more byte in memory. After the last one the worker tries out and compiles what is fastest on its device,
and says nothing until it is done."""
RATE_AFTER_S = 5.0
"""A download has shown its rate after so long."""
MOST_BETWEEN_S = 10.0
"""Time passes in steps of a second or so. Longer ones are a coordinator that stood still, and nobody could answer."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A device and how long it has said nothing."""

    device: Device
    generation: int
    """0: it was to measure."""
    message: str


class Deadlines:
    """Of one pool's devices. What it keeps of each is in `Device.progress`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._looked_at_s: float | None = None

    def heard(self, device: Device, event: SliceProgress, now_s: float) -> None:
        """A device says how far it is. Downloads of one node's devices may take turns (client/agent/weights.py), so
        that the progress of one shows that the others only wait."""
        progress = device.progress
        if (event.loading, event.done_bytes) > (progress.is_loading, progress.done_bytes):
            progress.is_loading, progress.done_bytes = event.loading, event.done_bytes
            for other in [device] if event.loading else self._downloading(device):
                other.progress.grew_at_s = now_s
        if event.loading:
            device.lacking_bytes = 0.0
            return
        device.lacking_bytes = float(max(0, event.total_bytes - event.done_bytes))
        if progress.first is None:
            progress.first = now_s, event.done_bytes
        first_s, first_bytes = progress.first
        if now_s >= first_s + RATE_AFTER_S and event.done_bytes > first_bytes:
            device.fetch_bytes_per_s = (event.done_bytes - first_bytes) / (now_s - first_s)

    def overdue(self, now_s: float) -> list[Overdue]:
        """Those to be given up now."""
        self._forgive(now_s)
        found = []
        for device in self._waited_for():
            if now_s >= device.progress.grew_at_s + _limit_s(device):
                generation = 0 if device.state is DeviceState.MEASURING else device.generation
                found.append(Overdue(device, generation, _sentence(device)))
        return found

    def _forgive(self, now_s: float) -> None:
        """Time that the coordinator itself missed counts against nobody."""
        missed_s = 0.0 if self._looked_at_s is None else now_s - self._looked_at_s - MOST_BETWEEN_S
        self._looked_at_s = now_s
        if missed_s > 0.0:
            for device in self._waited_for():
                device.progress.grew_at_s = min(now_s, device.progress.grew_at_s + missed_s)

    def _waited_for(self) -> Iterable[Device]:
        return self._state.in_state(DeviceState.MEASURING, DeviceState.ASSIGNED)

    def _downloading(self, device: Device) -> list[Device]:
        others = self._state.devices.of_node(device.key.node_id)
        return [d for d in others if d.state is DeviceState.ASSIGNED and not d.progress.is_loading]


def _limit_s(device: Device) -> float:
    if device.state is DeviceState.MEASURING:
        return MEASURE_LIMIT_S
    return LOAD_LIMIT_S if device.progress.is_loading else DOWNLOAD_LIMIT_S


def _sentence(device: Device) -> str:
    limit = f"{_limit_s(device) / 60.0:.0f} minutes"
    if device.state is DeviceState.MEASURING:
        return f"It did not finish its measurement within {limit}."
    if device.progress.is_loading:
        return f"It got no further with loading its layers for {limit}."
    return f"Its download got no further for {limit}."
