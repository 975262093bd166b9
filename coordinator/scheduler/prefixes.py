"""Which devices have seen which prompts' beginnings: there they may be cached, and only the rest is to compute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from coordinator.scheduler.state import Device, DeviceKey

MAX_BLOCKS = 1024
"""Per device; what it saw longest ago is forgotten first."""


class Prefixes:
    """Hashes are running ones: whoever has a block's hash has all blocks before it."""

    def __init__(self) -> None:
        self._seen: dict[DeviceKey, tuple[int, OrderedDict[int, None]]] = {}
        self._owners: dict[int, dict[DeviceKey, None]] = {}

    def remember(self, device: Device, hashes: Sequence[int]) -> None:
        """A request with these blocks has run over the device."""
        if not device.has_prefix_cache:
            return
        if device.key not in self._seen or self._seen[device.key][0] != device.generation:
            self.forget(device.key)
            self._seen[device.key] = (device.generation, OrderedDict())
        blocks = self._seen[device.key][1]
        for block in hashes:
            blocks[block] = None
            blocks.move_to_end(block)
            self._owners.setdefault(block, {})[device.key] = None
        while len(blocks) > MAX_BLOCKS:
            self._disown(blocks.popitem(last=False)[0], device.key)

    def forget(self, key: DeviceKey) -> None:
        """The device's memory is gone, or is not what it was."""
        _, blocks = self._seen.pop(key, (0, OrderedDict()))
        for block in blocks:
            self._disown(block, key)

    def owners(self, block: int) -> list[DeviceKey]:
        """Devices that have seen the prefix which ends with this block."""
        return list(self._owners.get(block, ()))

    def is_fresh(self, device: Device) -> bool:
        """Whether what is remembered of it is of the slice that it has now."""
        return self._seen.get(device.key, (-1, None))[0] == device.generation

    def _disown(self, block: int, key: DeviceKey) -> None:
        owners = self._owners[block]
        del owners[key]
        if not owners:
            del self._owners[block]
