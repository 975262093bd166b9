"""What devices' disks have room for: learnt when a download did not fit, believed for a while. Pure."""

from __future__ import annotations

from coordinator.scheduler.state import Device, DeviceKey, State

BELIEVED_S = 6 * 3600.0
"""Then somebody may have made room. To be wrong costs a device that serves fewer layers the time of loading them."""


class DiskLimits:
    """`Device.disk_layers` is written here only. A node that comes again is asked anew."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._until_s: dict[DeviceKey, float] = {}

    def told(self, device: Device, max_layers: int, now_s: float) -> None:
        """The slice that it was to load did not fit on its disk; so many layers of that model would.

        Never as many as it failed with: layers differ, and it must not be asked for the same for ever."""
        if device.model is None or device.layers is None:
            return
        device.disk_layers = {**device.disk_layers, device.model: min(max_layers, len(device.layers) - 1)}
        self._until_s[device.key] = now_s + BELIEVED_S

    def forget(self, now_s: float) -> None:
        """What was told too long ago counts no more."""
        for key in [key for key, until_s in self._until_s.items() if until_s <= now_s]:
            del self._until_s[key]
            if key in self._state.devices:
                self._state.devices[key].disk_layers = {}
