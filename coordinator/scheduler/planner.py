"""Phase 1 on the scheduler's state: which device measures, which layers it is assigned, when it is released.

What to build is decided here, how a pipeline is cut in allocation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.scheduler.allocation import Placement, plan_pipeline, room_for
from coordinator.scheduler.commands import Assign, Command, Measure, Release
from coordinator.scheduler.cost import place
from coordinator.scheduler.routing import in_some_chain, on_whole_paths, thinnest_layers
from coordinator.scheduler.state import Device, DeviceState, ModelFacts, Signal, Slice, State
from protocol.values import LayerRange, Variant

_HOLDING = (DeviceState.ASSIGNED, DeviceState.READY)


class Planner:
    """Uses what is free or useless. Nodes that drain count as if they held nothing."""

    def __init__(self, state: State) -> None:
        self._state = state

    def settle(self) -> list[Command]:
        """Whatever can be done now: give back what was held, measure, build."""
        return [*self._resume_broken(), *self._measure_idle(), *self._build_all()]

    def release_drained(self) -> list[Command]:
        """Slices on nodes that drain, as soon as nothing runs over them."""
        if not self._state.draining:
            return []
        held = [d for d in self._state.in_state(*_HOLDING) if d.key.node_id in self._state.draining]
        return self._release([d for d in held if not d.num_requests])

    def drop_model(self, manifest_hash: str) -> list[Command]:
        """Nobody holds or measures it any more. No request may run over its holders now."""
        for device in self._state.in_state(DeviceState.MEASURING):
            if device.measuring == manifest_hash:
                device.move(Signal.DROP)
        return self._release([d for d in self._state.in_state(*_HOLDING) if d.model == manifest_hash])

    def room(self, model: ModelFacts) -> int:
        """How many of its layers the free and useless devices of one variant could hold."""
        spare = {v: [*self._free_devices(model, v), *self._fragments(model, v)] for v in Variant}
        return max(room_for(model, devices) for devices in spare.values())

    def num_preparing(self, manifest_hash: str) -> int:
        """Devices on their way to serve the model, or that may yet be."""
        busy = self._state.usable(DeviceState.NEW, DeviceState.MEASURING)
        return len(busy) + len([d for d in self._state.holders(manifest_hash) if d.state is DeviceState.ASSIGNED])

    # ------------------------------------------------------------ measuring

    def _measure_idle(self) -> list[Command]:
        """Every device that has nothing to do measures the models it has not measured yet."""
        commands: list[Command] = []
        for device in self._state.usable(DeviceState.NEW, DeviceState.FREE):
            unknown = [model for model in self._state.models if model not in device.benchmarks]
            if unknown:
                device.move(Signal.MEASURE)
                device.measuring = unknown[0]
                commands.append(Measure(device.key, unknown[0], device.spec.variant))
            elif device.state is DeviceState.NEW and self._state.models:
                _skip_measuring(device)
        return commands

    # ------------------------------------------------------------ what was held before

    def _resume_broken(self) -> list[Command]:
        """First of all, devices take back what makes a model whole that nobody has ready: it is on their disks.

        They do so even while others still load the same layers, as that may take many minutes."""
        commands: list[Command] = []
        for device in self._state.usable(DeviceState.NEW):
            if device.last is not None and device.last.manifest_hash in device.benchmarks:
                _skip_measuring(device)
        for model in self._state.models.values():
            for variant in Variant:
                holders = self._holders(model, variant)
                ready = [d for d in holders if d.state is DeviceState.READY]
                if not in_some_chain(ready, model.num_layers):
                    everything = [LayerRange(0, model.num_layers)]
                    commands += self._assign(model, self._resumable(model, variant, everything, holders))
        return commands

    def _resumable(
        self, model: ModelFacts, variant: Variant, runs: Sequence[LayerRange], holders: Sequence[Device]
    ) -> list[Placement]:
        """Free devices whose last slice has layers of these runs and makes a pipeline whole, with what is held."""
        fitting = [(d, d.last.layers) for d in self._free_devices(model, variant) if d.last and _fits(d, d.last, model)]
        useful = [(d, piece) for d, piece in fitting if any(_overlap(run, piece) for run in runs)]
        held = [d.layers for d in holders if d.layers is not None]
        whole = on_whole_paths([*held, *(piece for _, piece in useful)], model.num_layers)
        return [Placement(d, p, f"{len(p)} layers, which it held before") for d, p in useful if p in whole]

    # ------------------------------------------------------------ building

    def _build_all(self) -> list[Command]:
        """Until nothing more can be built; the model with the fewest holders first."""
        commands: list[Command] = []
        progress = bool(self._state.models)
        while progress:
            models = sorted(self._state.models.values(), key=lambda m: len(self._state.holders(m.manifest_hash)))
            steps = (self._build(model, variant) for model in models for variant in Variant)
            step = next((step for step in steps if step), [])
            commands += step
            progress = bool(step)
        return commands

    def _build(self, model: ModelFacts, variant: Variant) -> list[Command]:
        """One step, cheapest first: strengthen the thinnest layers, add a pipeline, rebuild one from fragments."""
        free = self._free_devices(model, variant)
        if placements := self._strengthen(model, variant, free) or self._whole_pipeline(model, variant, free):
            return self._assign(model, placements)
        idle = [d for d in self._fragments(model, variant) if not d.num_requests]
        if idle and (placements := plan_pipeline(model, [*free, *idle])):
            released = self._release([p.device for p in placements if p.device in idle])
            return [*released, *self._assign(model, placements)]
        return []

    def _strengthen(self, model: ModelFacts, variant: Variant, free: list[Device]) -> list[Placement]:
        holders = self._holders(model, variant)
        runs = thinnest_layers(holders, model.num_layers)
        if placements := self._resumable(model, variant, runs, holders):
            return placements
        return next((placements for run in runs if (placements := plan_pipeline(model, free, run))), [])

    def _whole_pipeline(self, model: ModelFacts, variant: Variant, free: list[Device]) -> list[Placement]:
        everything = [LayerRange(0, model.num_layers)]
        return self._resumable(model, variant, everything, []) or plan_pipeline(model, free)

    def _fragments(self, model: ModelFacts, variant: Variant) -> list[Device]:
        """Holders that are part of no whole pipeline any more."""
        holders = self._holders(model, variant)
        whole = in_some_chain(holders, model.num_layers)
        return [d for d in holders if d.key not in whole]

    # ------------------------------------------------------------ parts

    def _release(self, devices: list[Device]) -> list[Command]:
        commands: list[Command] = []
        for device in devices:
            commands.append(Release(device.key, device.generation))
            device.move(Signal.RELEASE)
            device.model = device.layers = None
        return commands

    def _assign(self, model: ModelFacts, placements: list[Placement]) -> list[Command]:
        commands: list[Command] = []
        for placement in placements:
            device, layers = placement.device, placement.layers
            device.move(Signal.ASSIGN)
            device.generation += 1
            device.model, device.layers = model.manifest_hash, layers
            device.last = Slice(model.manifest_hash, layers)
            device.num_kv_tokens = 0
            variant, reason = device.spec.variant, placement.reason
            commands.append(Assign(device.key, device.generation, model.manifest_hash, variant, layers, reason))
        return commands

    def _holders(self, model: ModelFacts, variant: Variant) -> list[Device]:
        return [d for d in self._state.holders(model.manifest_hash) if d.spec.variant is variant]

    def _free_devices(self, model: ModelFacts, variant: Variant) -> list[Device]:
        free = self._state.usable(DeviceState.FREE)
        return [d for d in free if d.spec.variant is variant and model.manifest_hash in d.benchmarks]


def _skip_measuring(device: Device) -> None:
    """All that is needed is known."""
    device.move(Signal.MEASURE)
    device.move(Signal.MEASURED)


def _fits(device: Device, last: Slice, model: ModelFacts) -> bool:
    """Whether it could hold that part of this model (still): its memory or its owner's limits may have changed."""
    start, stop = last.layers.start, last.layers.stop
    if last.manifest_hash != model.manifest_hash:
        return False
    return place(device, model, first=start == 0, last=stop == model.num_layers).max_layers >= stop - start


def _overlap(one: LayerRange, other: LayerRange) -> bool:
    return one.start < other.stop and other.start < one.stop
