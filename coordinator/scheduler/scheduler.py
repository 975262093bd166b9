"""The scheduler: one event in, a list of commands out. No clock, no asyncio, no threads.

What an event means is here; the planner (phase 1) and the dispatcher (phase 2) know what follows from the new state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coordinator.scheduler import events as ev
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.chain_times import ChainTimes, chain_times
from coordinator.scheduler.commands import Assign, Command, GiveUp, MeasureLinks, RefuseRequest, Release
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.coverage import missing_layers
from coordinator.scheduler.deadlines import Deadlines
from coordinator.scheduler.departed import Departed
from coordinator.scheduler.disk_limits import DiskLimits
from coordinator.scheduler.dispatcher import Dispatcher
from coordinator.scheduler.explain import PoolPlan, plan_of
from coordinator.scheduler.planner import Planner
from coordinator.scheduler.policy import Policy, Route, SchedulerConfig
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.returning import Returning, adopt
from coordinator.scheduler.routing import ChainRouter
from coordinator.scheduler.speeds import Speeds
from coordinator.scheduler.state import (
    HOLDING,
    Device,
    DeviceKey,
    DeviceState,
    ModelFacts,
    Running,
    Signal,
    State,
    Waiting,
)
from coordinator.scheduler.workload import Workloads
from protocol.backoff import doubled_s
from protocol.values import NodeId, SessionId

QUEUE_TTL_S = 120.0
"""How long a request waits for a chain before it is refused."""
RETRY_BASE_S = 10.0
"""A device that failed is tried again after this, doubled with each failure."""
MAX_RETRY_S = 600.0
PROBES_PER_TICK = 8
"""Nodes whose links are looked at in one tick: a thousand nodes have their turn within about a minute."""
PROBE_AGAIN_S = 30.0
"""Nobody is asked for links again before this: measuring a few takes seconds, and a new order ends it."""


def our_policy(config: SchedulerConfig) -> Policy:
    """The two phases that the pool uses."""
    return Policy("decentllm", LaneAllocator(), lambda state: ChainRouter(state, config))


class Scheduler:
    """Phase 1 and phase 2 behind one door: `handle(event, now_s)`. Another `policy` is for comparisons."""

    def __init__(self, config: SchedulerConfig | None = None, policy: Policy | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.policy = policy or our_policy(self.config)
        self.state = State()
        self.workloads = Workloads()
        self._speeds = Speeds()
        self._deadlines = Deadlines(self.state)
        self._disk_limits = DiskLimits(self.state)
        router = self.policy.make_router(self.state)
        self._dispatcher = Dispatcher(self.state, router, self.config, self.workloads)
        drop = self._dispatcher.drop_requests_on
        self._planner = Planner(self.state, self.policy, self.config, self.workloads, drop)
        self._newcomers: dict[NodeId, None] = {}
        self._probed: dict[NodeId, float] = {}
        """When nodes were asked for their links, in that order; newcomers come before all others."""
        self._departed = Departed()
        self._returning = Returning()
        self._handlers: dict[type, Callable[[Any, float], list[Command]]] = {
            ev.ModelAdded: self._model_added,
            ev.ModelRemoved: self._model_removed,
            ev.NodeJoined: self._node_joined,
            ev.NodeLeft: self._node_left,
            ev.NodeDraining: self._node_draining,
            ev.DeviceMeasured: self._device_measured,
            ev.DeviceFailed: self._device_failed,
            ev.SliceProgress: self._slice_progress,
            ev.SliceReady: self._slice_ready,
            ev.StepsSeen: self._steps_seen,
            ev.LinksSeen: self._links_seen,
            ev.DeviceBroke: self._device_broke,
            ev.DeviceFull: self._device_full,
            ev.Replan: self._replan,
            ev.RequestArrived: self._request_arrived,
            ev.MoveWanted: self._move_wanted,
            ev.HedgeWanted: self._hedge_wanted,
            ev.HedgeEnded: self._hedge_ended,
            ev.HedgeTakesOver: self._hedge_takes_over,
            ev.RequestFinished: self._request_finished,
            ev.TimePassed: self._time_passed,
        }

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        """Take one event and say what is to be done about it. `now_s` never goes back."""
        self._returning.began(now_s)
        return [*self._handlers[type(event)](event, now_s), *self._told(self._planner.release_drained())]

    # ------------------------------------------------------------ questions

    def is_ready(self, manifest_hash: str) -> bool:
        """Could an idle pool serve a short request to this model now?"""
        return manifest_hash in self.state.models and self._dispatcher.room.has_chain(manifest_hash)

    def is_current(self, device_key: DeviceKey, generation: int) -> bool:
        """Is news of this generation about what the device does now? 0 stands for measuring, whose answer may come when
        nobody waits for it any more."""
        device = self.state.devices.get(device_key)
        if device is None or device.state not in _BUSY:
            return device is not None and _is_late(device) and not generation
        return generation == (0 if device.state is DeviceState.MEASURING else device.generation)

    def held_by(self, node_id: NodeId) -> list[Device]:
        """Devices of the node that are ready."""
        return [d for d in self.state.devices.of_node(node_id) if d.state is DeviceState.READY]

    def shortfall(self, manifest_hash: str) -> str:
        """One sentence on what the model waits for; empty when it is ready."""
        if self.is_ready(manifest_hash):
            return ""
        model = self.state.models.get(manifest_hash)
        if model is None:
            return "The pool does not serve this model now."
        if not self.state.usable(*DeviceState):
            nodes = "Every connected node is being drained" if self.state.devices else "No node is connected"
            return f"{nodes}; {model.name} needs {model.num_layers} layers held."
        if busy := self.num_preparing(manifest_hash):
            return f"{busy} device(s) are measuring, downloading or loading for {model.name}."
        if holders := self.state.holders(manifest_hash):
            named = ", ".join(str(hole) for hole in missing_layers(holders, model.num_layers)) or "some"
            return f"Layers {named} of {model.name} have no holder; more nodes or memory are needed."
        room = self._planner.room(model)
        return f"The connected nodes have room for {room} of {model.num_layers} layers of {model.name}."

    def num_preparing(self, manifest_hash: str) -> int:
        """Devices on their way to serve the model, or that may yet be."""
        return self._planner.num_preparing(manifest_hash)

    def plan(self, now_s: float) -> PoolPlan:
        """The plan with its reasons, for people. Slow in a large pool: not for every request."""
        return plan_of(self.state, self.workloads, self.config, self.policy.allocator, now_s)

    def largest_request(self, manifest_hash: str) -> int:
        """The most tokens that a request could have on an idle pool."""
        return self._dispatcher.room.largest_request(manifest_hash)

    def elsewhere(self, request: ev.RequestArrived, now_s: float) -> Route | None:
        """The chain that a running request would get if it came back with this; None if there is no other now."""
        return self._dispatcher.elsewhere(self._waiting(request, now_s), now_s)

    def chain_times(self, manifest_hash: str, chain: Sequence[DeviceKey]) -> ChainTimes:
        """What steps over these devices are expected to take."""
        return chain_times(self.state, manifest_hash, chain)

    def queue_places(self) -> dict[SessionId, QueuePlace]:
        """Of everybody who waits, counted per model."""
        return self._dispatcher.queue_places()

    # ------------------------------------------------------------ models

    def _model_added(self, event: ev.ModelAdded, now_s: float) -> list[Command]:
        self.state.models[event.model.manifest_hash] = event.model
        self.state.floors[event.model.manifest_hash] = event.num_replicas
        return self._settle(now_s)

    def _model_removed(self, event: ev.ModelRemoved, now_s: float) -> list[Command]:
        model = self.state.models.pop(event.manifest_hash, None)
        if model is None:
            return []
        self.state.floors.pop(event.manifest_hash, None)
        refused = [_unloaded(session_id, model) for session_id in self._dispatcher.drop_model(event.manifest_hash)]
        return [*refused, *self._told(self._planner.drop_model(event.manifest_hash)), *self._settle(now_s)]

    # ------------------------------------------------------------ nodes

    def _node_joined(self, event: ev.NodeJoined, now_s: float) -> list[Command]:
        self._forget(event.node_id, now_s)
        self._newcomers[event.node_id] = None
        devices = [Device(DeviceKey(event.node_id, spec.device_id), spec) for spec in event.devices]
        is_stranger = not self._departed.knows(event.node_id)
        self._departed.come_back(event.node_id, devices, now_s)
        holding = [device for device in devices if adopt(device, event.held, self.state.models, now_s)]
        self.state.devices |= {device.key: device for device in devices}
        for device in holding:
            self._dispatcher.changed(device)
        if holding and is_stranger:
            self._returning.came_back(now_s)
        return self._settle(now_s)

    def _node_left(self, event: ev.NodeLeft, now_s: float) -> list[Command]:
        self._forget(event.node_id, now_s)
        return self._settle(now_s)

    def _node_draining(self, event: ev.NodeDraining, now_s: float) -> list[Command]:
        if event.on:
            self.state.draining.add(event.node_id)
        else:
            self.state.draining.discard(event.node_id)
        return self._settle(now_s)

    def _device_measured(self, event: ev.DeviceMeasured, now_s: float) -> list[Command]:
        device = self.state.devices.get(event.device)
        if device is None or device.measuring != event.manifest_hash or event.manifest_hash not in self.state.models:
            return []
        if device.state is not DeviceState.MEASURING and not _is_late(device):
            return []
        device.is_overdue = False
        device.benchmarks[event.manifest_hash] = event.benchmark
        device.move(Signal.MEASURED)
        return self._settle(now_s)

    def _device_failed(self, event: ev.DeviceFailed, now_s: float) -> list[Command]:
        if not self.is_current(event.device, event.generation):
            return []
        device = self.state.devices[event.device]
        if device.state is DeviceState.FAILED:  # it was given up; its answer is that it could not
            device.is_overdue = False
            return []
        if event.max_layers is not None:
            self._disk_limits.told(device, event.max_layers, now_s)
        self._fail(device, now_s)
        return self._settle(now_s)

    def _fail(self, device: Device, now_s: float) -> None:
        """It holds nothing any more, and is tried again later."""
        self._dispatcher.drop_requests_on([device.key])
        device.let_go(Signal.FAIL)
        self.state.retiring.discard(device.key)
        self._dispatcher.changed(device)
        device.num_failures += 1
        device.retry_at_s = now_s + doubled_s(RETRY_BASE_S, device.num_failures - 1, MAX_RETRY_S)

    def _give_up_overdue(self, now_s: float) -> list[Command]:
        """Devices that have been silent for too long count as failed; others get their layers."""
        commands: list[Command] = []
        for overdue in self._deadlines.overdue(now_s):
            self._fail(overdue.device, now_s)
            overdue.device.is_overdue = True
            commands.append(GiveUp(overdue.device.key, overdue.generation, overdue.message))
        return commands

    def _slice_progress(self, event: ev.SliceProgress, now_s: float) -> list[Command]:
        device = self.state.devices.get(event.device)
        if device is not None and device.state is DeviceState.ASSIGNED and device.generation == event.generation:
            self._deadlines.heard(device, event, now_s)
        return []

    def _slice_ready(self, event: ev.SliceReady, now_s: float) -> list[Command]:
        device = self.state.devices.get(event.device)
        if device is None or device.generation != event.generation:
            return []
        if device.state is DeviceState.READY:
            return self._room_lowered(device, event.num_kv_tokens, now_s)
        if device.state is not DeviceState.ASSIGNED:
            return []
        device.move(Signal.LOADED)
        device.num_kv_tokens, device.has_prefix_cache = event.num_kv_tokens, event.has_prefix_cache
        device.num_failures = 0
        self._planner.loaded(device, now_s)
        self._dispatcher.changed(device)
        return self._settle(now_s)

    def _room_lowered(self, device: Device, num_kv_tokens: int, now_s: float) -> list[Command]:
        """It ran out of memory: from now on less is reserved there. What is reserved stays so."""
        if num_kv_tokens < device.num_kv_tokens:
            device.num_kv_tokens, device.is_lowered = num_kv_tokens, True
            self._dispatcher.changed(device)
        return self._settle(now_s)

    def _steps_seen(self, event: ev.StepsSeen, now_s: float) -> list[Command]:
        """Live work shows how fast the device really is."""
        device = self.state.devices.get(event.device)
        if device is None or device.model is None or not self.is_current(event.device, event.generation):
            return []
        model = model_cost(self.state.models[device.model], device.spec.variant)
        if self._speeds.seen(device, model, event):
            self._dispatcher.changed(device)
        return []

    def _links_seen(self, event: ev.LinksSeen, now_s: float) -> list[Command]:
        self.state.links.see(event.links, event.pool_rtts_s, now_s=now_s)
        return []

    def _device_broke(self, event: ev.DeviceBroke, now_s: float) -> list[Command]:
        self._dispatcher.broke(event.device, now_s, event.weight)
        return []

    def _device_full(self, event: ev.DeviceFull, now_s: float) -> list[Command]:
        self._dispatcher.full(event.device, now_s)
        return []

    def _replan(self, event: ev.Replan, now_s: float) -> list[Command]:
        return [*self._told(self._planner.replan(now_s)), *self._dispatcher.serve_waiting(now_s)]

    def _settle(self, now_s: float) -> list[Command]:
        """The pool has changed: build what can be built, start what can be started."""
        planned = [] if self._returning.waits(now_s) else self._told(self._planner.settle(now_s))
        return [*planned, *self._dispatcher.serve_waiting(now_s)]

    def _told(self, planned: list[Command]) -> list[Command]:
        """What the planner orders, after the dispatcher has heard of it: nobody is to start over a device that has
        just been given something else."""
        for command in planned:
            if isinstance(command, Assign | Release):
                self._dispatcher.changed(self.state.devices[command.device])
        return planned

    def _forget(self, node_id: NodeId, now_s: float) -> None:
        gone = self.state.devices.of_node(node_id)
        self._dispatcher.drop_requests_on([device.key for device in gone])
        for device in gone:
            self._dispatcher.gone(device)
            self.state.retiring.discard(device.key)
            del self.state.devices[device.key]
        if gone:
            self._departed.keep(node_id, gone, now_s)
            self.state.links.forget(node_id)

    # ------------------------------------------------------------ requests

    def _request_arrived(self, event: ev.RequestArrived, now_s: float) -> list[Command]:
        self._dispatcher.free(event.session_id)
        waiting = self._waiting(event, now_s)
        if not event.resumed:
            self.workloads.seen(event.manifest_hash, event.num_prompt_tokens, waiting.num_tokens, now_s)
        refusal = self._refusal(waiting)
        return [refusal] if refusal else self._dispatcher.arrive(waiting, now_s, event.kept)

    def _waiting(self, event: ev.RequestArrived, now_s: float) -> Waiting:
        model = self.state.models.get(event.manifest_hash)
        return _waiting(event, model.min_session_tokens if model else 0, now_s)

    def _move_wanted(self, event: ev.MoveWanted, now_s: float) -> list[Command]:
        return self._dispatcher.move(self._waiting(event.request, now_s), now_s)

    def _hedge_wanted(self, event: ev.HedgeWanted, now_s: float) -> list[Command]:
        waiting = self._waiting(event.request, now_s)
        if not event.has_to_move and self._dispatcher.has_no_room_for_hedges(waiting):
            return []
        return self._dispatcher.hedge(waiting, event.ttft_limit_s, event.tpot_limit_s, now_s)

    def _hedge_ended(self, event: ev.HedgeEnded, now_s: float) -> list[Command]:
        self._dispatcher.hedge_ended(event.session_id, event.has_won, now_s)
        return self._dispatcher.serve_waiting(now_s)

    def _hedge_takes_over(self, event: ev.HedgeTakesOver, now_s: float) -> list[Command]:
        started = self._dispatcher.hedge_takes_over(event.request.session_id, now_s)
        if not started:
            return self._request_arrived(event.request, now_s)
        return [*started, *self._dispatcher.serve_waiting(now_s)]

    def _request_finished(self, event: ev.RequestFinished, now_s: float) -> list[Command]:
        running = self.state.running.get(event.session_id)
        if running is not None:
            self.workloads.answered(running.manifest_hash, event.num_answer_tokens, now_s)
        self._dispatcher.ended(event.session_id, now_s)
        return self._dispatcher.serve_waiting(now_s)

    def _time_passed(self, event: ev.TimePassed, now_s: float) -> list[Command]:
        gave_up = [self._gave_up(waiting) for waiting in self._dispatcher.overdue(now_s)]
        let_go = self._dispatcher.let_go(now_s)
        self._disk_limits.forget(now_s)
        for device in self.state.in_state(DeviceState.FAILED):
            if device.retry_at_s <= now_s:
                device.move(Signal.RETRY)
        given_up = self._give_up_overdue(now_s)
        planned = [] if self._returning.waits(now_s) else self._told(self._planner.passed(now_s))
        waiting = self._dispatcher.serve_waiting(now_s)
        return [*gave_up, *let_go, *given_up, *self._probes(now_s), *planned, *waiting]

    def _probes(self, now_s: float) -> list[Command]:
        """A few nodes at a time measure their links, each when its turn comes."""
        connected = self.state.devices.nodes
        commands: list[Command] = []
        for _ in range(PROBES_PER_TICK):
            node_id = self._next_to_probe(now_s)
            if node_id is None:
                break
            if node_id in self.state.devices.nodes:
                self._probed[node_id] = now_s
                if targets := self.state.links.probes(node_id, connected):
                    commands.append(MeasureLinks(node_id, targets))
        return commands

    def _next_to_probe(self, now_s: float) -> NodeId | None:
        """Takes whoever's turn it is out of the line."""
        newcomer = next(iter(self._newcomers), None)
        if newcomer is not None:
            del self._newcomers[newcomer]
            self._probed.pop(newcomer, None)
            return newcomer
        for node_id, asked_s in self._probed.items():
            if now_s < asked_s + PROBE_AGAIN_S:
                return None
            del self._probed[node_id]
            return node_id
        return None

    def _refusal(self, waiting: Waiting) -> RefuseRequest | None:
        """Why the request cannot even wait. One that ran already may wait for whatever it needs."""
        model = self.state.models.get(waiting.manifest_hash)
        if model is None:
            message = "The pool does not serve this model any more."
            return RefuseRequest(waiting.session_id, "model_unloaded", message, None)
        if waiting.resumed:
            return None
        if not self.is_ready(waiting.manifest_hash):
            message = f"The model cannot answer yet. {self.shortfall(waiting.manifest_hash)}"
            return RefuseRequest(waiting.session_id, "model_not_ready", message, 5.0)
        if not self._dispatcher.room.fits(waiting.manifest_hash, waiting.num_tokens):
            largest = self.largest_request(waiting.manifest_hash)
            message = f"The request needs KV room for {waiting.num_tokens} tokens, the pool's nodes have {largest}."
            return RefuseRequest(waiting.session_id, "kv_room_exceeded", message, None)
        return None

    def _gave_up(self, waiting: Waiting) -> RefuseRequest:
        message = f"No chain was free within {QUEUE_TTL_S:.0f} s. {self.shortfall(waiting.manifest_hash)}".rstrip()
        return RefuseRequest(waiting.session_id, "no_capacity", message, 10.0)

    # ------------------------------------------------------------ invariants

    def validate(self) -> None:
        """Re-derive every invariant; raises AssertionError. Tests call it after every event."""
        state = self.state
        self._dispatcher.validate()
        for device in state.devices.values():
            self._validate_device(device)
        for model in {device.model for device in state.devices.values() if device.model is not None}:
            holders = {device.key for device in state.devices.values() if device.model == model}
            assert {device.key for device in state.devices.holding(model)} == holders, model
        for running in (*state.running.values(), *state.hedges.values()):
            self._validate_chain(running)
        assert not set(state.waiting) & set(state.running)
        assert {waiting.manifest_hash for waiting in state.waiting.values()} <= set(state.models)
        assert state.floors.keys() == state.models.keys()
        assert all(state.devices[key].state in HOLDING for key in state.retiring), state.retiring
        for listed in DeviceState:
            assert {d.key for d in state.in_state(listed)} == {k for k, d in state.devices.items() if d.state is listed}

    def _validate_device(self, device: Device) -> None:
        held = device.state in HOLDING
        assert held == (device.layers is not None) == (device.model is not None), device
        assert not device.num_requests or device.state is DeviceState.READY, device
        assert not device.num_kv_tokens or device.generation, device
        if device.layers is not None and device.model is not None:
            assert device.model in device.benchmarks, device
            assert device.layers.stop <= self.state.models[device.model].num_layers, device
        drained = device.key.node_id in self.state.draining
        assert not (drained and held and not device.num_requests), f"{device} should have been released"

    def _validate_chain(self, running: Running) -> None:
        """Every layer once, in order, on ready devices of one variant."""
        chain = [self.state.devices[key] for key in running.devices]
        assert all(d.state is DeviceState.READY and d.model == running.manifest_hash for d in chain), running
        assert len({device.spec.variant for device in chain}) == 1, running
        cuts = [0, *(device.layers.stop for device in chain if device.layers)]
        assert [device.layers.start for device in chain if device.layers] == cuts[:-1], running
        assert cuts[-1] == self.state.models[running.manifest_hash].num_layers, running


def _waiting(event: ev.RequestArrived, least_tokens: int, now_s: float) -> Waiting:
    return Waiting(
        event.session_id,
        event.manifest_hash,
        max(event.num_tokens, least_tokens),
        event.resumed,
        event.avoid,
        now_s + QUEUE_TTL_S,
        event.num_prompt_tokens,
        event.tenant,
        event.affinity,
        None if event.deadline_s is None else now_s + event.deadline_s,
        now_s + event.return_after_s,
    )


_BUSY = (DeviceState.MEASURING, DeviceState.ASSIGNED, DeviceState.READY)


def _is_late(device: Device) -> bool:
    """Whether its measurement was given up and may yet come."""
    return device.state is DeviceState.FAILED and device.is_overdue and device.measuring not in device.benchmarks


def _unloaded(session_id: SessionId, model: ModelFacts) -> RefuseRequest:
    return RefuseRequest(session_id, "model_unloaded", f"The operator has unloaded {model.name}.", None)
