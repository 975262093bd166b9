"""How long a request may be at all: what an idle pool would have room for."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.scheduler.coverage import roomiest_chain
from coordinator.scheduler.state import Device, DeviceState, State
from protocol.values import NodeId, Variant


@dataclass(frozen=True, slots=True)
class _Whole:
    """A chain through an idle pool, and its tightest stage's KV room; -1 if there is no chain.

    `is_roomiest`: no chain is roomier; when other devices have changed since it was looked for, nobody knows."""

    as_of: object
    chain: tuple[Device, ...]
    room: int
    is_roomiest: bool


class IdleRoom:
    """Tell it (`changed`) of models whose holders have changed in other ways than by coming and going."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._whole: dict[str, _Whole] = {}

    def has_chain(self, manifest_hash: str) -> bool:
        """Could an idle pool serve a short request to this model now?"""
        return self.fits(manifest_hash, 0)

    def fits(self, manifest_hash: str, num_tokens: int) -> bool:
        """Could an idle pool serve a request that reserves so many tokens? Cheap while the last answer's chain is."""
        known = self._known(manifest_hash)
        if known is None or (known.room < num_tokens and not known.is_roomiest):
            known = self._roomiest(manifest_hash)
        return known.room >= num_tokens

    def largest_request(self, manifest_hash: str) -> int:
        """The most tokens that a request could have on an idle pool: no chain is roomier than its tightest stage.

        It may look at every device; `fits` rarely does."""
        return max(0, self._roomiest(manifest_hash).room)

    def changed(self, manifest_hash: str) -> None:
        """What was found for this model counts no more."""
        self._whole.pop(manifest_hash, None)

    def _known(self, model: str) -> _Whole | None:
        """The chain that was looked up last, if it is still there."""
        known, as_of = self._whole.get(model), self._pool_now()
        if known is None or known.as_of == as_of:
            return known
        if not known.chain or not all(self._holds(device, model) for device in known.chain):
            return None
        self._whole[model] = known = _Whole(as_of, known.chain, known.room, is_roomiest=False)
        return known

    def _roomiest(self, model: str) -> _Whole:
        known, as_of = self._whole.get(model), self._pool_now()
        if known is not None and known.as_of == as_of and known.is_roomiest:
            return known
        ready = [d for d in self._state.holders(model) if d.state is DeviceState.READY]
        facts = self._state.models.get(model)
        num_layers = facts.num_layers if facts is not None else 0
        chains = [roomiest_chain([d for d in ready if d.spec.variant is v], num_layers) for v in Variant]
        rooms = [min((device.num_kv_tokens for device in chain), default=-1) for chain in chains]
        room = max(rooms)
        self._whole[model] = known = _Whole(as_of, tuple(chains[rooms.index(room)]), room, is_roomiest=True)
        return known

    def _pool_now(self) -> tuple[int, frozenset[NodeId]]:
        """Equal as long as the same devices are ready on nodes that do not drain."""
        return self._state.devices.num_changes, frozenset(self._state.draining)

    def _holds(self, device: Device, model: str) -> bool:
        is_here = self._state.devices.get(device.key) is device and device.key.node_id not in self._state.draining
        return is_here and device.state is DeviceState.READY and device.model == model
