"""The scheduler: one event in, a list of commands out. No clock, no asyncio, no threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator.scheduler import events as ev
from coordinator.scheduler.allocation import Placement, plan_pipeline, room_for
from coordinator.scheduler.commands import Assign, ChainStage, Command, Measure, RefuseRequest, Release, StartChain
from coordinator.scheduler.routing import cheapest_chain, in_some_chain, missing_layers, thinnest_layers
from coordinator.scheduler.state import (
    Device,
    DeviceKey,
    DeviceState,
    ModelFacts,
    Running,
    Signal,
    State,
    Waiting,
)
from protocol.backoff import doubled_s
from protocol.values import HeldSlice, NodeId, SessionId, Variant

QUEUE_TTL_S = 120.0
"""How long a request waits for a chain before it is refused."""
RETRY_BASE_S = 10.0
"""A device that failed is tried again after this, doubled with each failure."""
MAX_RETRY_S = 600.0


class Scheduler:
    """Phase 1 and phase 2 behind one door: `handle(event, now_s)`."""

    def __init__(self) -> None:
        self.state = State()
        self._handlers: dict[type, Callable[[Any, float], list[Command]]] = {
            ev.ModelAdded: self._model_added,
            ev.NodeJoined: self._node_joined,
            ev.NodeLeft: self._node_left,
            ev.DeviceMeasured: self._device_measured,
            ev.DeviceFailed: self._device_failed,
            ev.SliceReady: self._slice_ready,
            ev.RequestArrived: self._request_arrived,
            ev.RequestFinished: self._request_finished,
            ev.TimePassed: self._time_passed,
        }

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        """Take one event and say what is to be done about it. `now_s` never goes back."""
        return self._handlers[type(event)](event, now_s)

    # ------------------------------------------------------------ questions

    def is_ready(self, manifest_hash: str) -> bool:
        """Could an idle pool serve a short request to this model now?"""
        return any(self._chain(manifest_hash, variant, 0, frozenset()) for variant in Variant)

    def is_current(self, device_key: DeviceKey, generation: int) -> bool:
        """Is news of this generation about what the device does now? 0 stands for measuring."""
        device = self.state.devices.get(device_key)
        if device is None or device.state not in _BUSY:
            return False
        return generation == (0 if device.state is DeviceState.MEASURING else device.generation)

    def shortfall(self, manifest_hash: str) -> str:
        """One sentence on what the model waits for; empty when it is ready."""
        if self.is_ready(manifest_hash):
            return ""
        model = self.state.models[manifest_hash]
        if not self.state.devices:
            return f"No node is connected; {model.name} needs {model.num_layers} layers held."
        if busy := self.num_preparing(manifest_hash):
            return f"{busy} device(s) are measuring, downloading or loading for {model.name}."
        if self.state.holders(manifest_hash):
            holes = missing_layers(self.state.holders(manifest_hash), model.num_layers)
            named = ", ".join(str(hole) for hole in holes) or "some"
            return f"Layers {named} of {model.name} have no holder; more nodes or memory are needed."
        room = max(self._room(model, variant) for variant in Variant)
        return f"The connected nodes have room for {room} of {model.num_layers} layers of {model.name}."

    # ------------------------------------------------------------ nodes and models

    def _model_added(self, event: ev.ModelAdded, now_s: float) -> list[Command]:
        self.state.models[event.model.manifest_hash] = event.model
        return [*self._measure_idle(), *self._repair(now_s)]

    def _node_joined(self, event: ev.NodeJoined, now_s: float) -> list[Command]:
        self._forget(event.node_id)
        for spec in event.devices:
            key = DeviceKey(event.node_id, spec.device_id)
            self.state.devices[key] = Device(key, spec, generation=_newest(event.held, spec.device_id))
        return self._measure_idle()

    def _node_left(self, event: ev.NodeLeft, now_s: float) -> list[Command]:
        self._forget(event.node_id)
        return self._repair(now_s)

    def _device_measured(self, event: ev.DeviceMeasured, now_s: float) -> list[Command]:
        device = self.state.devices.get(event.device)
        if device is None or device.state is not DeviceState.MEASURING or device.measuring != event.manifest_hash:
            return []
        device.benchmarks[event.manifest_hash] = event.benchmark
        device.move(Signal.MEASURED)
        return self._measure_idle() or self._repair(now_s)

    def _device_failed(self, event: ev.DeviceFailed, now_s: float) -> list[Command]:
        if not self.is_current(event.device, event.generation):
            return []
        device = self.state.devices[event.device]
        self._drop_requests_on([device.key])
        device.move(Signal.FAIL)
        device.model = device.layers = None
        device.num_failures += 1
        device.retry_at_s = now_s + doubled_s(RETRY_BASE_S, device.num_failures - 1, MAX_RETRY_S)
        return self._repair(now_s)

    def _slice_ready(self, event: ev.SliceReady, now_s: float) -> list[Command]:
        device = self.state.devices.get(event.device)
        if device is None or device.state is not DeviceState.ASSIGNED or device.generation != event.generation:
            return []
        device.move(Signal.LOADED)
        device.num_kv_tokens = event.num_kv_tokens
        device.num_failures = 0
        return self._serve_waiting(now_s)

    # ------------------------------------------------------------ requests

    def _request_arrived(self, event: ev.RequestArrived, now_s: float) -> list[Command]:
        self._free(event.session_id)
        waiting = Waiting(
            event.session_id, event.manifest_hash, event.num_tokens, event.resumed, event.avoid, now_s + QUEUE_TTL_S
        )
        if not event.resumed and (refusal := self._refusal(waiting)):
            return [refusal]
        self.state.waiting[event.session_id] = waiting
        return self._serve_waiting(now_s)

    def _request_finished(self, event: ev.RequestFinished, now_s: float) -> list[Command]:
        self._free(event.session_id)
        return self._serve_waiting(now_s)

    def _time_passed(self, event: ev.TimePassed, now_s: float) -> list[Command]:
        commands: list[Command] = []
        for waiting in [w for w in self.state.waiting.values() if w.give_up_at_s <= now_s]:
            del self.state.waiting[waiting.session_id]
            commands.append(self._gave_up(waiting))
        for device in self.state.in_state(DeviceState.FAILED):
            if device.retry_at_s <= now_s:
                device.move(Signal.RETRY)
        return [*commands, *self._measure_idle(), *self._repair(now_s)]

    # ------------------------------------------------------------ phase 1

    def _measure_idle(self) -> list[Command]:
        """Every device that has nothing to do measures the models it has not measured yet."""
        commands: list[Command] = []
        for device in self.state.in_state(DeviceState.NEW, DeviceState.FREE):
            unknown = [model for model in self.state.models if model not in device.benchmarks]
            if unknown:
                device.move(Signal.MEASURE)
                device.measuring = unknown[0]
                commands.append(Measure(device.key, unknown[0], device.spec.variant))
            elif device.state is DeviceState.NEW and self.state.models:
                device.move(Signal.MEASURE)
                device.move(Signal.MEASURED)
        return commands

    def _repair(self, now_s: float) -> list[Command]:
        """Use what is free or useless: complete broken pipelines, build new ones, else rebuild from the fragments."""
        return [*self._allocate(), *self._serve_waiting(now_s)]

    def _allocate(self) -> list[Command]:
        """Until nothing more can be built; the model with the fewest holders first."""
        commands: list[Command] = []
        progress = bool(self.state.models)
        while progress:
            models = sorted(self.state.models.values(), key=lambda m: len(self.state.holders(m.manifest_hash)))
            progress = any(self._build(model, variant, commands) for model in models for variant in Variant)
        return commands

    def _build(self, model: ModelFacts, variant: Variant, commands: list[Command]) -> bool:
        """One step, cheapest first: strengthen the thinnest layers, add a pipeline, rebuild one from fragments."""
        free = self._free_devices(model, variant)
        holders = [d for d in self.state.holders(model.manifest_hash) if d.spec.variant is variant]
        for run in thinnest_layers(holders, model.num_layers):
            if placements := plan_pipeline(model, free, run):
                return self._assign(model, placements, commands)
        if placements := plan_pipeline(model, free):
            return self._assign(model, placements, commands)
        idle = [d for d in self._fragments(model, variant) if not d.num_requests]
        if idle and (placements := plan_pipeline(model, [*free, *idle])):
            self._release([p.device for p in placements if p.device in idle], commands)
            return self._assign(model, placements, commands)
        return False

    def _fragments(self, model: ModelFacts, variant: Variant) -> list[Device]:
        """Holders that are part of no whole pipeline any more."""
        holders = [d for d in self.state.holders(model.manifest_hash) if d.spec.variant is variant]
        whole = in_some_chain(holders, model.num_layers)
        return [d for d in holders if d.key not in whole]

    def _release(self, devices: list[Device], commands: list[Command]) -> None:
        for device in devices:
            commands.append(Release(device.key, device.generation))
            device.move(Signal.RELEASE)
            device.model = device.layers = None

    def _assign(self, model: ModelFacts, placements: list[Placement], commands: list[Command]) -> bool:
        for placement in placements:
            device = placement.device
            device.move(Signal.ASSIGN)
            device.generation += 1
            device.model, device.layers = model.manifest_hash, placement.layers
            device.num_kv_tokens = 0
            commands.append(_assign_command(device, placement))
        return True

    def _free_devices(self, model: ModelFacts, variant: Variant) -> list[Device]:
        free = self.state.in_state(DeviceState.FREE)
        return [d for d in free if d.spec.variant is variant and model.manifest_hash in d.benchmarks]

    def _room(self, model: ModelFacts, variant: Variant) -> int:
        devices = [*self._free_devices(model, variant), *self._fragments(model, variant)]
        return room_for(model, devices)

    def num_preparing(self, manifest_hash: str) -> int:
        """Devices on their way to serve the model, or that may yet be."""
        busy = self.state.in_state(DeviceState.NEW, DeviceState.MEASURING)
        return len(busy) + len([d for d in self.state.holders(manifest_hash) if d.state is DeviceState.ASSIGNED])

    # ------------------------------------------------------------ phase 2

    def _serve_waiting(self, now_s: float) -> list[Command]:
        """Start every waiting request that has a chain, oldest first; one that must wait does not hold up the rest."""
        commands: list[Command] = []
        for waiting in list(self.state.waiting.values()):
            chain = self._chain_for(waiting)
            if chain:
                del self.state.waiting[waiting.session_id]
                commands.append(self._start(waiting, chain))
        return commands

    def _start(self, waiting: Waiting, chain: list[Device]) -> StartChain:
        for device in chain:
            device.num_requests += 1
            device.num_reserved_tokens += waiting.num_tokens
        self.state.running[waiting.session_id] = Running(tuple(d.key for d in chain), waiting.num_tokens)
        return StartChain(waiting.session_id, tuple(_stage(d) for d in chain))

    def _chain_for(self, waiting: Waiting) -> list[Device]:
        """A chain without the devices to avoid if there is one, else one with them: better tried than lost."""
        for avoid in (waiting.avoid, frozenset[DeviceKey]()) if waiting.avoid else (frozenset[DeviceKey](),):
            for variant in Variant:
                chain = self._chain(waiting.manifest_hash, variant, waiting.num_tokens, avoid)
                if chain:
                    return chain
        return []

    def _chain(
        self, manifest_hash: str, variant: Variant, num_tokens: int, avoid: frozenset[DeviceKey]
    ) -> list[Device]:
        model = self.state.models[manifest_hash]
        holders = self.state.holders(manifest_hash)
        usable = [d for d in holders if d.spec.variant is variant and d.key not in avoid]
        return cheapest_chain(usable, model.num_layers, num_tokens)

    def _refusal(self, waiting: Waiting) -> RefuseRequest | None:
        if not self.is_ready(waiting.manifest_hash):
            message = f"The model cannot answer yet. {self.shortfall(waiting.manifest_hash)}"
            return RefuseRequest(waiting.session_id, "model_not_ready", message, 5.0)
        largest = self.largest_request(waiting.manifest_hash)
        if waiting.num_tokens > largest:
            message = f"The request needs KV room for {waiting.num_tokens} tokens, the pool's nodes have {largest}."
            return RefuseRequest(waiting.session_id, "kv_room_exceeded", message, None)
        return None

    def largest_request(self, manifest_hash: str) -> int:
        """The most tokens that a request could have on an idle pool: no chain is roomier than its tightest stage."""
        ready = [d for d in self.state.holders(manifest_hash) if d.state is DeviceState.READY]
        sizes = sorted({d.num_kv_tokens for d in ready}, reverse=True)
        num_layers = self.state.models[manifest_hash].num_layers
        for size in sizes:
            roomy = [d for d in ready if d.num_kv_tokens >= size]
            if any(in_some_chain([d for d in roomy if d.spec.variant is v], num_layers) for v in Variant):
                return size
        return 0

    def _gave_up(self, waiting: Waiting) -> RefuseRequest:
        message = f"No chain was free within {QUEUE_TTL_S:.0f} s. {self.shortfall(waiting.manifest_hash)}".rstrip()
        return RefuseRequest(waiting.session_id, "no_capacity", message, 10.0)

    def _forget(self, node_id: NodeId) -> None:
        gone = [key for key in self.state.devices if key.node_id == node_id]
        self._drop_requests_on(gone)
        for key in gone:
            del self.state.devices[key]

    def _drop_requests_on(self, devices: list[DeviceKey]) -> None:
        """These requests have no chain any more; their sessions come back with RequestArrived(resumed)."""
        for session_id in [s for s, r in self.state.running.items() if set(devices) & set(r.devices)]:
            self._free(session_id)

    def _free(self, session_id: SessionId) -> None:
        self.state.waiting.pop(session_id, None)
        running = self.state.running.pop(session_id, None)
        for key in running.devices if running else ():
            device = self.state.devices.get(key)
            if device is not None:
                device.num_requests -= 1
                device.num_reserved_tokens -= running.num_tokens if running else 0

    # ------------------------------------------------------------ invariants

    def validate(self) -> None:
        """Re-derive every invariant; raises AssertionError. Tests call it after every event."""
        for device in self.state.devices.values():
            held = device.state in (DeviceState.ASSIGNED, DeviceState.READY)
            assert held == (device.layers is not None) == (device.model is not None), device
            loads = [r.num_tokens for r in self.state.running.values() if device.key in r.devices]
            assert device.num_reserved_tokens == sum(loads), device
            assert device.num_requests == len(loads), device
            assert not loads or held, device
            if device.layers is not None and device.model is not None:
                assert device.layers.stop <= self.state.models[device.model].num_layers, device
        assert not set(self.state.waiting) & set(self.state.running)


_BUSY = (DeviceState.MEASURING, DeviceState.ASSIGNED, DeviceState.READY)


def _stage(device: Device) -> ChainStage:
    assert device.layers is not None, "a chain has ready devices only"
    return ChainStage(device.key, device.generation, device.layers)


def _newest(held: tuple[HeldSlice, ...], device_id: str) -> int:
    return max((h.generation for h in held if h.device_id == device_id), default=0)


def _assign_command(device: Device, placement: Placement) -> Assign:
    assert device.model is not None, "the device was just assigned"
    return Assign(device.key, device.generation, device.model, device.spec.variant, placement.layers, placement.reason)
