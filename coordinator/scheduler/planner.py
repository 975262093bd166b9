"""Phase 1 on the scheduler's state: which device measures, which layers it is assigned, when it is released.

The policy's allocator says what to hold; here is when to ask it, for which devices, and how its answer is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from coordinator.scheduler.commands import Assign, Command, Measure, Release
from coordinator.scheduler.migrations import Migrations
from coordinator.scheduler.pieces import on_paths
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.problems import Demand, divided, fit_of, missing_bytes, problem_of
from coordinator.scheduler.state import HOLDING, Device, DeviceKey, DeviceState, ModelFacts, Signal, Slice, State
from protocol.values import Variant

LARGE_POOL = 256
"""With more devices than this, those that are spare may wait until the next second for what they take."""
BATCH_S = 1.0
LOOK_AGAIN_S = 30.0
"""Some changes wait until a device is idle; nobody says when that is."""
NEWEST_RATE_WEIGHT = 0.5
RATE_LOAD_S = 2.0
"""Of the time between assignment and readiness, what is not download."""

Drop = Callable[[Collection[DeviceKey]], None]


class Planner:
    """Nodes that drain count as if they held nothing.

    `drop_requests` takes requests off devices that cannot wait for them; without it such devices wait."""

    def __init__(
        self,
        state: State,
        policy: Policy,
        config: SchedulerConfig,
        workloads: Demand,
        drop_requests: Drop | None = None,
    ) -> None:
        self._state, self._policy, self._config, self._workloads = state, policy, config, workloads
        self._drop_requests = drop_requests
        self._migrations = Migrations(state, policy, self._problem)
        self._settled: object = None
        """What the pool was when nothing more could be done about it."""
        self._adapted_at_s = -BATCH_S
        self._looked_at_s = 0.0
        self._num_holders = 0
        self._served: set[tuple[str, Variant]] = set()
        """What has had a whole chain at some time."""

    # ------------------------------------------------------------ what happens

    def settle(self, now_s: float) -> list[Command]:
        """Whatever can be done now: give back what was held, measure, mend, strengthen."""
        if self._settled == self._signature(now_s):
            return []
        commands = [*self._resume_broken(now_s), *self._measure_idle(now_s), *self._migrate(now_s)]
        if self._may_wait(now_s):
            return commands
        self._adapted_at_s = now_s
        commands += self._adapt_all(now_s)
        self._num_holders = len(self._state.in_state(*HOLDING))
        self._settled = self._signature(now_s)
        return commands

    def passed(self, now_s: float) -> list[Command]:
        """Time has passed: migrations go on, what waits may be due, and perhaps a new layout pays."""
        if now_s >= self._looked_at_s + LOOK_AGAIN_S:
            self._looked_at_s = now_s
            self._settled = None
        if self._policy.replans and self._migrations.is_due(now_s, self._wanted_per_s()):
            self._migrations.consider(self._everything(now_s), now_s)
        return [*self._migrate(now_s), *self.settle(now_s)]

    def _wanted_per_s(self) -> float:
        """Tokens that people want, of all models."""
        return sum(self._workloads.workload(model).tokens_per_s or 0.0 for model in self._state.models)

    def replan(self, now_s: float) -> list[Command]:
        """From scratch on all usable devices, whatever it costs."""
        self._settled = None
        self._migrations.start(self._everything(now_s), now_s)
        return [*self._migrate(now_s), *self.settle(now_s)]

    def loaded(self, device: Device, now_s: float) -> None:
        """The device is ready: how fast did its weights come, if it has not said so on the way?"""
        device.lacking_bytes = 0.0
        took_s = now_s - device.assigned_at_s - RATE_LOAD_S
        if device.progress.first is None and device.num_fetched_bytes > 0.0 and took_s > 0.0:
            rate, before = device.num_fetched_bytes / took_s, device.fetch_bytes_per_s
            device.fetch_bytes_per_s = rate if before is None else before + NEWEST_RATE_WEIGHT * (rate - before)

    def release_drained(self) -> list[Command]:
        """Slices on nodes that drain, as soon as nothing runs over them."""
        if not self._state.draining:
            return []
        held = [d for d in self._state.in_state(*HOLDING) if d.key.node_id in self._state.draining]
        return self._release([d for d in held if not d.num_requests])

    def drop_model(self, manifest_hash: str) -> list[Command]:
        """Nobody holds or measures it any more. No request may run over its holders now."""
        self._migrations.drop_model(manifest_hash)
        self._served = {kind for kind in self._served if kind[0] != manifest_hash}
        for device in self._state.in_state(DeviceState.MEASURING):
            if device.measuring == manifest_hash:
                device.move(Signal.DROP)
        return self._release(list(self._state.devices.holding(manifest_hash)))

    # ------------------------------------------------------------ questions

    def room(self, model: ModelFacts) -> int:
        """How many of its layers the free and useless devices of one variant could hold."""
        return max(self._room(self._problem(model.manifest_hash, variant, None)) for variant in Variant)

    def num_preparing(self, manifest_hash: str) -> int:
        """Devices on their way to serve the model, or that may yet be."""
        busy = self._state.usable(DeviceState.NEW, DeviceState.MEASURING)
        return len(busy) + sum(d.state is DeviceState.ASSIGNED for d in self._state.holders(manifest_hash))

    def _room(self, problem: Problem) -> int:
        fit = fit_of(problem)
        held = {(o.held.start, o.held.stop) for o in problem.offers if o.held}
        whole = on_paths(held, fit.num_layers)
        spare = [o for o in problem.offers if o.held is None or (o.held.start, o.held.stop) not in whole]
        at = 0
        for offer in sorted(spare, key=lambda o: -fit.most_layers(o)):
            at = fit.reach(offer, at)
        return at

    # ------------------------------------------------------------ measuring

    def _measure_idle(self, now_s: float) -> list[Command]:
        """Every device that has nothing to do measures the models it has not measured yet."""
        commands: list[Command] = []
        for device in self._state.usable(DeviceState.NEW, DeviceState.FREE):
            unknown = next((model for model in self._state.models if model not in device.benchmarks), None)
            if unknown is not None:
                device.measure(unknown, now_s)
                commands.append(Measure(device.key, unknown, device.spec.variant))
            elif device.state is DeviceState.NEW and self._state.models:
                _skip_measuring(device)
        return commands

    def _resume_broken(self, now_s: float) -> list[Command]:
        """A device that has on its disk what a model lacks serves it before it measures another model."""
        known = [d for d in self._state.usable(DeviceState.NEW) if d.last and d.last.manifest_hash in d.benchmarks]
        lacking = {d.last.manifest_hash for d in known if d.last} & self._state.models.keys()
        broken = sorted(model for model in lacking if not any(self._serves(model, variant) for variant in Variant))
        for device in known:
            if device.last and device.last.manifest_hash in broken:
                _skip_measuring(device)
        return [command for model in broken for command in self._adapt(model, None, now_s)]

    def _serves(self, manifest_hash: str, variant: Variant) -> bool:
        """Whether slices of this variant that are ready make a whole chain."""
        holders = [d for d in self._state.holders(manifest_hash) if d.spec.variant is variant]
        ready = {(d.layers.start, d.layers.stop) for d in holders if d.layers and d.state is DeviceState.READY}
        return bool(on_paths(ready, self._state.models[manifest_hash].num_layers))

    # ------------------------------------------------------------ adapting

    def _signature(self, now_s: float) -> object:
        """Equal as long as nothing has changed that planning depends on."""
        state = self._state
        waits = [d.key for d in state.in_state(DeviceState.FREE) if d.probation_until_s > now_s]
        return state.devices.num_changes, tuple(state.models), frozenset(state.draining), tuple(waits)

    def _may_wait(self, now_s: float) -> bool:
        """In a large pool joins come in crowds, and are planned together; what a loss broke is mended at once."""
        if len(self._state.devices) <= LARGE_POOL or now_s >= self._adapted_at_s + BATCH_S:
            return False
        return len(self._state.in_state(*HOLDING)) >= self._num_holders > 0

    def _adapt_all(self, now_s: float) -> list[Command]:
        """Every model with the devices that are its own; then with whatever others could not use."""
        commands: list[Command] = []
        if len(self._state.models) > 1:
            chosen = divided(self._state, self._state.usable(DeviceState.FREE, *HOLDING), self._workloads)
            free = [d.key for d in self._state.usable(DeviceState.FREE)]
            for model in self._state.models:
                commands += self._adapt(model, {key for key in free if chosen.get(key) == model}, now_s)
        for model in sorted(self._state.models, key=lambda m: (len(self._state.devices.holding(m)), m)):
            commands += self._adapt(model, None, now_s)
        return commands

    def _adapt(self, manifest_hash: str, free: set[DeviceKey] | None, now_s: float) -> list[Command]:
        """What the allocator would change, with these free devices (None: all)."""
        commands: list[Command] = []
        for variant in Variant:
            if self._migrations.is_under_way(manifest_hash, variant):
                continue
            is_served = self._serves(manifest_hash, variant)
            if is_served:
                self._served.add((manifest_hash, variant))
            problem = self._problem(manifest_hash, variant, self._steady(free, now_s) if is_served else free)
            problem = replace(problem, has_served=(manifest_hash, variant) in self._served)
            if not problem.offers:
                continue
            placements = self._policy.allocator.adapt(problem)
            commands += self._carry_out(manifest_hash, placements, problem, now_s)
            self._explain_idle(problem)
        return commands

    def _steady(self, free: set[DeviceKey] | None, now_s: float) -> set[DeviceKey] | None:
        """These free devices without those on probation, who wait as long as nothing needs them; None is all."""
        all_free = self._state.usable(DeviceState.FREE)
        steady = {d.key for d in all_free if d.probation_until_s <= now_s}
        if len(steady) == len(all_free):
            return free
        return steady if free is None else steady & free

    def _carry_out(
        self, manifest_hash: str, placements: Iterable[Placement], problem: Problem, now_s: float
    ) -> list[Command]:
        """Holders that change let go first. One on which requests run is left alone: it is asked for again later."""
        commands: list[Command] = []
        bytes_of = {offer.key: offer for offer in problem.offers}
        for placement in placements:
            device = self._state.devices[placement.key]
            if device.num_requests or device.layers == placement.layers:
                continue
            if device.state in HOLDING:
                commands += self._release([device])
            device.assign(Slice(manifest_hash, placement.layers), placement.reason, now_s)
            device.num_fetched_bytes = missing_bytes(problem, bytes_of[device.key], placement.layers)
            device.lacking_bytes = device.num_fetched_bytes
            variant, layers = device.spec.variant, placement.layers
            commands.append(Assign(device.key, device.generation, manifest_hash, variant, layers, placement.reason))
        return commands

    def _explain_idle(self, problem: Problem) -> None:
        """Devices that stand by say why."""
        fit = None
        for offer in problem.offers:
            device = self._state.devices[offer.key]
            if device.state is DeviceState.FREE:
                fit = fit or fit_of(problem)
                room = fit.most_layers(offer)
                device.reason = f"stands by: with room for {room} of {fit.num_layers} layers it would gain nothing now"

    # ------------------------------------------------------------ migrating

    def _migrate(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        for problem, step in self._migrations.steps(now_s):
            changing = [self._state.devices[p.key] for p in step.changes]
            busy = [d.key for d in changing if d.num_requests]
            self._drop(busy)
            commands += self._carry_out(problem.model.facts.manifest_hash, step.changes, problem, now_s)
        giving_way = self._migrations.gone_way(now_s)
        self._drop([d.key for d in giving_way if d.num_requests])
        return [*commands, *self._release([d for d in giving_way if not d.num_requests])]

    def _drop(self, busy: Collection[DeviceKey]) -> None:
        if busy and self._drop_requests is not None:
            self._drop_requests(busy)

    def _everything(self, now_s: float) -> list[Problem]:
        """Each model and variant with all devices that it may have, as they would be divided now."""
        models = list(self._state.models)
        if not models:
            return []
        plannable = [d for d in self._state.usable(DeviceState.FREE, *HOLDING) if d.probation_until_s <= now_s]
        if len(models) == 1:
            return [self._problem(models[0], v, None, {d.key for d in plannable}) for v in Variant]
        chosen = divided(self._state, plannable, self._workloads)
        self._migrations.give_way(chosen, now_s)
        own = {d.key: d.model or chosen.get(d.key) for d in plannable}
        return [
            self._problem(m, v, None, {k for k, model in own.items() if model == m}) for m in models for v in Variant
        ]

    # ------------------------------------------------------------ parts

    def _problem(
        self,
        manifest_hash: str,
        variant: Variant,
        free: set[DeviceKey] | None = None,
        among: set[DeviceKey] | None = None,
    ) -> Problem:
        """With these free devices besides the model's holders, or exactly `among`; by default all that are free."""
        if free is not None:
            among = free | {d.key for d in self._state.holders(manifest_hash)}
        return problem_of(self._state, manifest_hash, variant, self._workloads, self._config, among)

    def _release(self, devices: Sequence[Device]) -> list[Command]:
        commands: list[Command] = []
        for device in devices:
            commands.append(Release(device.key, device.generation))
            device.let_go(Signal.RELEASE)
            device.reason = ""
            self._state.retiring.discard(device.key)
        return commands


def _skip_measuring(device: Device) -> None:
    """All that is needed is known."""
    device.move(Signal.MEASURE)
    device.move(Signal.MEASURED)
