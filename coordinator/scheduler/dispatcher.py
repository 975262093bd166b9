"""Phase 2 on the scheduler's state: who waits, who runs over which chain, and for how long others will wait.

The queue is fair between tenants (fair_queue.py); a request that must wait for room does not hold up smaller ones
behind it, but not for ever. What a device has to do is counted here alone: requests, reserved KV and load.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from coordinator.scheduler.candidates import suspect
from coordinator.scheduler.chains import chain_of, running_of
from coordinator.scheduler.commands import Command, LetGo, StartChain, StartHedge
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.fair_queue import MAX_PASSED, FairQueue, Place
from coordinator.scheduler.hedged import HedgedRoom
from coordinator.scheduler.kept import KEEP_S, KeptRoom
from coordinator.scheduler.policy import Route, Router, RouteRequest, SchedulerConfig
from coordinator.scheduler.queue_forecast import QueueForecast, QueuePlace
from coordinator.scheduler.refusals import queue_full, too_late
from coordinator.scheduler.room import IdleRoom
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, Load, Running, State, Waiting
from protocol.values import SessionId, Variant

MAX_WAITING = 256
"""Requests per model. A longer queue would only make people wait for what they will have given up by then."""
ALWAYS_WAITING = 16
WAIT_SHARE = 0.2
"""Of the bound on the time to the first token: so long may the expected wait be. Where people have to wait, chains are
so full that the prompt takes most of the bound (4 to 6 s of 10 in the simulator's overloaded pools)."""
MAX_TRIES = 3
"""Waiting requests per model that may find no chain before the others are left for the next time."""
RETRY_S = 0.5
"""Who found no chain is tried again after this even if nothing ended meanwhile: link times and trust change."""
FULL_S = 5.0
"""A device that was found full gets nothing new for so long; what it still kept for others is mostly gone by then."""
SURELY = 0.5
"""A deadline cannot be met if even this share of the expected wait is beyond it."""
NOBODY: frozenset[DeviceKey] = frozenset()


class KnowsWorkload(Protocol):
    """What the dispatcher wants to know of workload.Workloads."""

    def workload(self, manifest_hash: str) -> Workload:
        """What the model's requests are like."""


@dataclass(frozen=True, slots=True)
class _Stuck:
    """What was found when waiting requests of a model were tried last, good as long as no device is better off."""

    as_of: object
    at_s: float
    least_tokens: float
    """Of those for whom there was no room."""


class Dispatcher:
    """Nothing new runs over a node that drains; what runs there already may end.

    Tell it (`changed`, `gone`) of whatever the planner does to a device; it tells the router."""

    def __init__(self, state: State, router: Router, config: SchedulerConfig, workloads: KnowsWorkload) -> None:
        self._state = state
        self._router = router
        self._config = config
        self._workloads = workloads
        self._queues: defaultdict[str, FairQueue] = defaultdict(FairQueue)
        self._forecasts: defaultdict[str, QueueForecast] = defaultdict(QueueForecast)
        self._num_running: Counter[str] = Counter()
        self._sessions_on: defaultdict[DeviceKey, dict[SessionId, None]] = defaultdict(dict)
        self._sessions_of: defaultdict[str, dict[SessionId, None]] = defaultdict(dict)
        self._kept = KeptRoom(state, self._reserve)
        self._hedged = HedgedRoom(state, self._count_all)
        self.room = IdleRoom(state)
        self._stuck: dict[str, _Stuck] = {}
        self._num_better = 0
        """Grows whenever a device may have more room, or be faster, than before."""
        self._deadlines: list[tuple[float, SessionId]] = []
        """A heap, of requests that need not wait any more, too."""
        self._full_until_s: dict[DeviceKey, float] = {}
        self._now_s = 0.0

    # ------------------------------------------------------------ questions

    def queue_places(self) -> dict[SessionId, QueuePlace]:
        """Of everybody who waits, counted per model."""
        places: dict[SessionId, QueuePlace] = {}
        for model, queue in self._queues.items():
            for number, place in enumerate(queue.order(), start=1):
                wait_s = self._expected_wait_s(model, number)
                places[place.waiting.session_id] = QueuePlace(number, len(queue), wait_s)
        return places

    def _expected_wait_s(self, model: str, number: int) -> float | None:
        return self._forecasts[model].expected_wait_s(number, self._now_s)

    # ------------------------------------------------------------ devices

    def changed(self, device: Device) -> None:
        """Ready, or not any more; another slice, speed or KV room; its node drains, or does not any more."""
        if device.model is not None:
            self.room.changed(device.model)
        if device.state is not DeviceState.READY:
            self._kept.lost([device.key])
        self._num_better += 1
        self._router.changed(device)

    def gone(self, device: Device) -> None:
        """It is not part of the pool any more. No request may run over it now (`drop_requests_on`)."""
        self._sessions_on.pop(device.key, None)
        self._router.gone(device)

    def broke(self, key: DeviceKey, now_s: float, weight: float = 1.0) -> None:
        """A chain broke at this device: it is trusted less for a while, however idle it looks."""
        device = self._state.devices.get(key)
        if device is not None:
            suspect(device, now_s, weight)
            self._router.changed(device)

    def full(self, key: DeviceKey, now_s: float) -> None:
        """It had no room though there should have been some: nothing new starts there for FULL_S."""
        device = self._state.devices.get(key)
        if device is not None:
            device.num_hidden_tokens = device.num_kv_tokens
            self._full_until_s[key] = now_s + FULL_S
            self._router.changed(device)

    def _try_full_ones_again(self, now_s: float) -> None:
        for key in [key for key, until_s in self._full_until_s.items() if until_s <= now_s]:
            del self._full_until_s[key]
            device = self._state.devices.get(key)
            if device is not None:
                device.num_hidden_tokens = 0
                self._num_better += 1
                self._router.changed(device)

    # ------------------------------------------------------------ what happens

    def arrive(self, waiting: Waiting, now_s: float, kept: Sequence[DeviceKey] = ()) -> list[Command]:
        """A new request is started, queued, or refused if it would be in vain; a resumed one is not refused.

        `kept`: devices that still hold its KV. Their room stays reserved for it for KEEP_S."""
        self.free(waiting.session_id)
        self._kept.keep(waiting.session_id, kept, waiting.num_tokens, now_s + KEEP_S)
        self._state.waiting[waiting.session_id] = waiting
        self._queues[waiting.manifest_hash].add(waiting, now_s)
        if waiting.deadline_at_s is not None:
            heapq.heappush(self._deadlines, (waiting.deadline_at_s, waiting.session_id))
        commands = self.serve_waiting(now_s)
        if waiting.session_id not in self._state.waiting:
            return commands
        return [*commands, *self._turned_away(waiting, now_s)]

    def serve_waiting(self, now_s: float) -> list[Command]:
        """Start every waiting request that has a chain, in the queue's order; refuse those whose deadline is over."""
        self._now_s = now_s
        self._try_full_ones_again(now_s)
        commands = self._past_deadline(now_s)
        for model, queue in self._queues.items():
            if len(queue):
                commands += self._serve(model, queue, now_s)
        return commands

    def ended(self, session_id: SessionId, now_s: float) -> None:
        """The request needs no chain any more."""
        self._now_s = now_s
        running = self._state.running.get(session_id)
        if running is not None:
            self._forecasts[running.manifest_hash].ended(now_s)
        self.free(session_id)

    def move(self, waiting: Waiting, now_s: float) -> list[Command]:
        """A running request goes over another chain if there is one now. That others are slower there is no reason to
        stay where it cannot stay."""
        self._now_s = now_s
        running = self._state.running.get(waiting.session_id)
        if running is None:
            return []
        with self._without_load_of(running):
            found = self._find(waiting, now_s)
        if found is None:
            return []
        self.free(waiting.session_id)
        return [self._start(waiting, found, now_s)]

    def has_no_room_for_hedges(self, waiting: Waiting) -> bool:
        """As many as may be there are, or others wait for room."""
        return self._hedged.is_spent or bool(len(self._queues[waiting.manifest_hash]))

    def hedge(self, waiting: Waiting, ttft_limit_s: float, tpot_limit_s: float, now_s: float) -> list[Command]:
        """A second chain for a running request; not where it would be crowded."""
        running = self._state.running.get(waiting.session_id)
        if running is None:
            return []
        request = replace(self._request(waiting, waiting.avoid | self._hedged.own_nodes(running)), kept=NOBODY)
        routes = [self._router.route(request, variant, now_s) for variant in Variant]
        worth = [route for route in routes if self._hedged.is_worth_it(route, ttft_limit_s, tpot_limit_s)]
        best = min(filter(None, worth), key=lambda route: route.tpot_s, default=None)
        if best is None or self._is_crowded(best):
            return []
        self._hedged.start(waiting.session_id, running_of(waiting, best, now_s))
        return [StartHedge(waiting.session_id, chain_of(best.devices), best.ttft_s)]

    def hedge_ended(self, session_id: SessionId, has_won: bool, now_s: float) -> None:
        """One chain is left: the second one takes the place of the first if it has won."""
        self._now_s = now_s
        hedge = self._hedged.take(session_id)
        if has_won and hedge is not None:
            self.free(session_id)
            self._run(session_id, hedge, now_s)
        self._num_better += 1

    def hedge_takes_over(self, session_id: SessionId, now_s: float) -> list[Command]:
        """The request starts again over its second chain; nothing if it has none."""
        hedge = self._state.hedges.get(session_id)
        if hedge is None:
            return []
        self.hedge_ended(session_id, True, now_s)
        return [StartChain(session_id, chain_of(self._state.devices[key] for key in hedge.devices))]

    def let_go(self, now_s: float) -> list[Command]:
        """Who still waits has kept others from this room for long enough."""
        return [LetGo(session_id) for session_id in self._kept.overdue(now_s)]

    def free(self, session_id: SessionId) -> None:
        """It neither waits nor runs now, and nothing is kept for it."""
        self._hedged.take(session_id)
        self._leave(session_id)

    def _leave(self, session_id: SessionId) -> None:
        """The same, but for its second chain."""
        self._kept.release(session_id)
        waiting = self._state.waiting.pop(session_id, None)
        if waiting is not None:
            self._queues[waiting.manifest_hash].remove(session_id)
        running = self._state.running.pop(session_id, None)
        if running is not None:
            self._stop(session_id, running)

    def drop_requests_on(self, devices: Collection[DeviceKey]) -> None:
        """These requests have no chain any more; their sessions come back with RequestArrived(resumed).

        Until then what they have reserved elsewhere stays so: the nodes there have not been told yet."""
        self._kept.lost(devices)
        self._hedged.lost(devices)
        for session_id in {s: None for key in devices for s in self._sessions_on.get(key, ())}:
            running = self._state.running[session_id]
            self._leave(session_id)
            self._kept.keep(session_id, [key for key in running.devices if key not in devices], running.num_tokens)

    def drop_model(self, manifest_hash: str) -> list[SessionId]:
        """Nobody waits for it or uses it any more; these did."""
        dropped = [s for s, running in self._state.running.items() if running.manifest_hash == manifest_hash]
        dropped += [s for s, waiting in self._state.waiting.items() if waiting.manifest_hash == manifest_hash]
        for session_id in dropped:
            self.free(session_id)
        self._forecasts.pop(manifest_hash, None)
        self._queues.pop(manifest_hash, None)
        self.room.changed(manifest_hash)
        self._stuck.pop(manifest_hash, None)
        return dropped

    def overdue(self, now_s: float) -> list[Waiting]:
        """Takes those out of the queue who have waited for too long."""
        overdue = [w for w in self._state.waiting.values() if w.give_up_at_s <= now_s]
        for waiting in overdue:
            self.free(waiting.session_id)
        return overdue

    def elsewhere(self, waiting: Waiting, now_s: float) -> Route | None:
        """The chain that this running request would be given if it gave its own back; None if none is free that keeps
        away from `waiting.avoid`."""
        running = self._state.running.get(waiting.session_id)
        if running is None:
            return None
        with self._without_load_of(running):
            request = self._request(waiting, waiting.avoid)
            routes = [self._router.route(request, variant, now_s) for variant in Variant]
        best = min((route for route in routes if route is not None), key=lambda route: route.tpot_s, default=None)
        return None if best is None or self._is_crowded(best) else best

    @contextmanager
    def _without_load_of(self, running: Running) -> Iterator[None]:
        """Its own load is no reason for a request to go elsewhere."""
        self._count_all(running, -1)
        try:
            yield
        finally:
            self._count_all(running, 1)

    def _count_all(self, running: Running, sign: int) -> None:
        for key in running.devices:
            self._count(self._state.devices[key], running.load, running.num_tokens, sign)

    # ------------------------------------------------------------ the queue

    def _serve(self, model: str, queue: FairQueue, now_s: float) -> list[Command]:
        """Each that finds no room shows that larger ones will find none either, until some device is better off."""
        as_of = self._num_better, self._state.devices.num_changes, len(self._state.draining)
        stuck = self._stuck.get(model)
        if stuck is None or stuck.as_of != as_of or now_s >= stuck.at_s + RETRY_S:
            stuck = _Stuck(as_of, now_s, math.inf)
        starts, too_large = self._chains_for(model, queue, stuck.least_tokens, now_s)
        self._stuck[model] = _Stuck(as_of, stuck.at_s, too_large)
        for command, passed in starts:
            queue.started(command.session_id, passed)
        return [command for command, _ in starts]

    def _chains_for(
        self, model: str, queue: FairQueue, too_large: float, now_s: float
    ) -> tuple[list[tuple[StartChain, list[Place]]], float]:
        """What is started, with whom it passed in the queue; and the reservation for which there is no room now."""
        starts: list[tuple[StartChain, list[Place]]] = []
        passed: list[Place] = []
        num_tries = 0
        for place in queue.order():
            waiting = place.waiting
            if waiting.num_tokens < too_large or waiting.session_id in self._state.kept:
                found = self._find(waiting, now_s)
                if found is not None:
                    starts.append((self._start(waiting, found, now_s), list(passed)))
                    continue
                if now_s >= waiting.return_at_s:  # who may not return yet says nothing of the room there is
                    too_large, num_tries = min(too_large, waiting.num_tokens), num_tries + 1
            passed.append(place)
            if num_tries >= MAX_TRIES or self._blocks(model, place):
                break
        return starts, too_large

    def _blocks(self, model: str, place: Place) -> bool:
        """Whether it has let enough others pass; one that no room will ever suffice for may be passed for ever."""
        return place.num_passed >= MAX_PASSED and self.room.fits(model, place.waiting.num_tokens)

    def _past_deadline(self, now_s: float) -> list[Command]:
        over: list[Waiting] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            waiting = self._state.waiting.get(heapq.heappop(self._deadlines)[1])
            if waiting is not None and waiting.deadline_at_s is not None and waiting.deadline_at_s <= now_s:
                over.append(waiting)
                self.free(waiting.session_id)
        return [too_late(waiting, None) for waiting in over]

    def _turned_away(self, waiting: Waiting, now_s: float) -> list[Command]:
        """One that surely waits in vain, or the newest of whoever fills the queue."""
        if waiting.resumed:
            return []
        queue = self._queues[waiting.manifest_hash]
        wait_s = self._wait_of(waiting) if waiting.deadline_at_s is not None else None
        if wait_s is not None and waiting.deadline_at_s is not None and now_s + SURELY * wait_s > waiting.deadline_at_s:
            self.free(waiting.session_id)
            return [too_late(waiting, wait_s)]
        is_full = len(queue) > MAX_WAITING or self._is_hopeless(waiting, len(queue))
        surplus = queue.one_too_many() if is_full else None
        if surplus is None:
            return []
        refusal = queue_full(surplus.session_id, len(queue) - 1, self._wait_of(surplus))
        self.free(surplus.session_id)
        return [refusal]

    def _is_hopeless(self, waiting: Waiting, num_waiting: int) -> bool:
        """Whether it would wait for so long that its first token misses the bound. A few may always wait: in a small
        pool people would rather see their place in a short queue than be sent away."""
        if num_waiting <= ALWAYS_WAITING:
            return False
        wait_s = self._wait_of(waiting)
        return wait_s is not None and wait_s > WAIT_SHARE * self._config.bound.ttft_s

    def _wait_of(self, waiting: Waiting) -> float | None:
        number = self._queues[waiting.manifest_hash].number(waiting.session_id)
        return self._expected_wait_s(waiting.manifest_hash, number)

    # ------------------------------------------------------------ chains

    def _find(self, waiting: Waiting, now_s: float) -> Route | None:
        """A chain without the devices to avoid if there is one, else, in time, with them: better tried than lost."""
        may_return = waiting.avoid and now_s >= waiting.return_at_s
        for avoid in (waiting.avoid, NOBODY) if may_return else (waiting.avoid,):
            request = self._request(waiting, avoid)
            found = [self._router.route(request, variant, now_s) for variant in Variant]
            routes = [route for route in found if route is not None]
            if routes:
                return min(routes, key=lambda route: route.tpot_s)
        return None

    def _is_crowded(self, route: Route) -> bool:
        """It would be slower per token than the bound only because of what runs there. That keeps nobody from starting,
        as forecasts near saturation are too high: a pool that waited for better ones served a fifth less
        (docs/scheduling.md). It is no place to move to, or for a second chain."""
        bound_s = self._config.bound.tpot_s
        is_busy = any(device.num_requests for device in route.devices)
        return is_busy and route.idle_tpot_s <= bound_s < route.tpot_s

    def _request(self, waiting: Waiting, avoid: frozenset[DeviceKey]) -> RouteRequest:
        num_most = max(1, waiting.num_tokens - waiting.num_prompt_tokens)
        holds = self._state.running.get(waiting.session_id) or self._state.kept.get(waiting.session_id)
        expected = self._workloads.workload(waiting.manifest_hash).num_answer_tokens
        num_new = max(1, min(num_most, round(expected)))
        return RouteRequest(
            waiting.session_id, waiting.manifest_hash, waiting.num_prompt_tokens, num_new, waiting.num_tokens,
            avoid, waiting.affinity, self._apart_from(waiting), frozenset(holds.devices if holds else ()),
        )  # fmt: skip

    def _apart_from(self, waiting: Waiting) -> frozenset[DeviceKey]:
        """Where the tenant's other requests run; not where it runs itself, should it move."""
        if not self._config.keeps_apart or not waiting.tenant:
            return NOBODY
        others = [s for s in self._sessions_of.get(waiting.tenant, ()) if s != waiting.session_id]
        return frozenset(key for session_id in others for key in self._state.running[session_id].devices)

    def _start(self, waiting: Waiting, route: Route, now_s: float) -> StartChain:
        """Everything but that it leaves the queue."""
        session_id = waiting.session_id
        self._state.waiting.pop(session_id, None)
        self._kept.release(session_id)
        self._run(session_id, running_of(waiting, route, now_s), now_s)
        return StartChain(session_id, chain_of(route.devices))

    def _run(self, session_id: SessionId, running: Running, now_s: float) -> None:
        model = running.manifest_hash
        self._state.running[session_id] = running
        self._num_running[model] += 1
        self._forecasts[model].runs(self._num_running[model], now_s)
        if running.tenant:
            self._sessions_of[running.tenant][session_id] = None
        for key in running.devices:
            self._sessions_on[key][session_id] = None
        self._count_all(running, 1)

    def _stop(self, session_id: SessionId, running: Running) -> None:
        self._num_running[running.manifest_hash] -= 1
        self._forecasts[running.manifest_hash].runs(self._num_running[running.manifest_hash], self._now_s)
        self._num_better += 1
        self._router.finished(session_id, running.devices, self._now_s)
        if running.tenant:
            del self._sessions_of[running.tenant][session_id]
            if not self._sessions_of[running.tenant]:
                del self._sessions_of[running.tenant]
        for key in running.devices:
            del self._sessions_on[key][session_id]
            if not self._sessions_on[key]:
                del self._sessions_on[key]
            self._count(self._state.devices[key], running.load, running.num_tokens, -1)

    def _reserve(self, device: Device, num_tokens: int) -> None:
        device.num_reserved_tokens += num_tokens
        self._num_better += num_tokens < 0
        self._router.changed(device)

    def _count(self, device: Device, load: Load, num_tokens: int, sign: int) -> None:
        before = device.load
        device.num_requests += sign
        device.num_reserved_tokens += sign * num_tokens
        device.load = Load(
            before.rows_per_s + sign * load.rows_per_s, before.prompt_tokens_per_s + sign * load.prompt_tokens_per_s
        )
        self._router.changed(device)

    # ------------------------------------------------------------ invariants

    def validate(self) -> None:
        """Re-derive what is counted; raises AssertionError. Tests call it after every event."""
        running, waiting = self._state.running, self._state.waiting
        for device in self._state.devices.values():
            mine = [r for r in (*running.values(), *self._state.hedges.values()) if device.key in r.devices]
            assert device.num_requests == len(mine), device
            kept = sum(k.num_tokens for k in self._state.kept.values() if device.key in k.devices)
            num_reserved = kept + sum(r.num_tokens for r in mine)
            assert device.num_reserved_tokens == num_reserved, device
            assert num_reserved <= max(0, device.num_kv_tokens) or device.is_lowered, device
            assert device.load == _sum_of(r.load for r in mine), device
        assert {s: None for queue in self._queues.values() for s in _sessions(queue)}.keys() == waiting.keys()
        assert {s for on in self._sessions_on.values() for s in on} == set(running)
        assert not self._state.kept.keys() & running.keys()
        assert +self._num_running == Counter(r.manifest_hash for r in running.values())


def _sessions(queue: FairQueue) -> list[SessionId]:
    return [place.waiting.session_id for place in queue.order()]


def _sum_of(loads: Iterable[Load]) -> Load:
    kept = list(loads)
    return Load(sum(load.rows_per_s for load in kept), sum(load.prompt_tokens_per_s for load in kept))
