"""Room that devices keep for sessions which have lost their chain: the KV there is worth computing over again."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from coordinator.scheduler.state import Device, DeviceKey, DeviceState, Kept, State
from protocol.values import SessionId

KEEP_S = 10.0
"""So long devices keep a session's KV for it while it waits for another chain: what lasts longer is mostly the download
of the lost layers, and meanwhile the room is wanted by others."""


class KeptRoom:
    """Keeps `state.kept`. `reserve(device, num_tokens)` counts the reservation, negative ones too."""

    def __init__(self, state: State, reserve: Callable[[Device, int], None]) -> None:
        self._state = state
        self._reserve = reserve

    def keep(
        self, session_id: SessionId, devices: Iterable[DeviceKey], num_tokens: int, until_s: float = math.inf
    ) -> None:
        """From now on exactly this is kept for the session."""
        self.release(session_id)
        ready = tuple(key for key in devices if self._is_ready(key))
        for key in ready:
            self._reserve(self._state.devices[key], num_tokens)
        if ready:
            self._state.kept[session_id] = Kept(ready, num_tokens, until_s)

    def release(self, session_id: SessionId) -> None:
        """Nothing is kept for it. Harmless if nothing was."""
        kept = self._state.kept.pop(session_id, None)
        if kept is not None:
            for key in kept.devices:
                self._reserve(self._state.devices[key], -kept.num_tokens)

    def lost(self, devices: Collection[DeviceKey]) -> None:
        """These devices keep nothing any more; call it while they are still listed."""
        for session_id, kept in list(self._state.kept.items()):
            rest = [key for key in kept.devices if key not in devices]
            if len(rest) < len(kept.devices):
                self.keep(session_id, rest, kept.num_tokens, kept.until_s)

    def overdue(self, now_s: float) -> list[SessionId]:
        """Releases what was kept for long enough; for whom."""
        overdue = [session_id for session_id, kept in self._state.kept.items() if kept.until_s <= now_s]
        for session_id in overdue:
            self.release(session_id)
        return overdue

    def _is_ready(self, key: DeviceKey) -> bool:
        device = self._state.devices.get(key)
        return device is not None and device.state is DeviceState.READY
