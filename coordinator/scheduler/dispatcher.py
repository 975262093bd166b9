"""Phase 2 on the scheduler's state: who waits, who runs over which chain, and for how long others will wait.

The queue is in order of arrival, so those that ran already and lost their chain come first; a request that must wait
for room does not hold up smaller ones behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from coordinator.scheduler.commands import ChainStage, Command, RefuseRequest, StartChain
from coordinator.scheduler.queue_forecast import QueueForecast, QueuePlace
from coordinator.scheduler.routing import cheapest_chain, in_some_chain
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, Running, State, Waiting
from protocol.values import SessionId, Variant

MAX_WAITING = 256
"""Requests per model. A longer queue would only make people wait for what they will have given up by then."""
MAX_RETRY_AFTER_S = 60.0
NOBODY: frozenset[DeviceKey] = frozenset()


class Dispatcher:
    """Nothing new runs over a node that drains; what runs there already may end."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._forecasts: dict[str, QueueForecast] = {}

    # ------------------------------------------------------------ questions

    def has_chain(self, manifest_hash: str) -> bool:
        """Could an idle pool serve a short request to this model now?"""
        return any(self._chain(manifest_hash, variant, 0, NOBODY) for variant in Variant)

    def largest_request(self, manifest_hash: str) -> int:
        """The most tokens that a request could have on an idle pool: no chain is roomier than its tightest stage."""
        ready = [d for d in self._state.holders(manifest_hash) if d.state is DeviceState.READY]
        for size in sorted({d.num_kv_tokens for d in ready}, reverse=True):
            roomy = [d for d in ready if d.num_kv_tokens >= size]
            num_layers = self._state.models[manifest_hash].num_layers
            if any(in_some_chain([d for d in roomy if d.spec.variant is v], num_layers) for v in Variant):
                return size
        return 0

    def queue_places(self) -> dict[SessionId, QueuePlace]:
        """Of everybody who waits, counted per model."""
        num_waiting = Counter(waiting.manifest_hash for waiting in self._state.waiting.values())
        num_running = Counter(running.manifest_hash for running in self._state.running.values())
        num_before: Counter[str] = Counter()
        places: dict[SessionId, QueuePlace] = {}
        for waiting in self._queue():
            model = waiting.manifest_hash
            num_before[model] += 1
            wait_s = self._forecast(model).expected_wait_s(num_before[model], num_running[model])
            places[waiting.session_id] = QueuePlace(num_before[model], num_waiting[model], wait_s)
        return places

    # ------------------------------------------------------------ what happens

    def arrive(self, waiting: Waiting, now_s: float) -> list[Command]:
        """A new request is started, queued, or refused if the queue is full; a resumed one is never refused."""
        self._state.waiting[waiting.session_id] = waiting
        commands = self.serve_waiting(now_s)
        if waiting.resumed or waiting.session_id not in self._state.waiting:
            return commands
        place = self.queue_places()[waiting.session_id]
        if place.num_waiting <= MAX_WAITING:
            return commands
        del self._state.waiting[waiting.session_id]
        return [*commands, _queue_full(waiting.session_id, place)]

    def serve_waiting(self, now_s: float) -> list[Command]:
        """Start every waiting request that has a chain, oldest first; one that must wait does not hold up the rest."""
        commands: list[Command] = []
        too_large: dict[str, float] = {}
        for waiting in self._queue():
            if waiting.num_tokens >= too_large.get(waiting.manifest_hash, math.inf):
                continue  # a smaller one has just found no room anywhere
            chain = self._chain_for(waiting)
            if chain:
                del self._state.waiting[waiting.session_id]
                commands.append(self._start(waiting, chain, now_s))
            else:
                too_large[waiting.manifest_hash] = waiting.num_tokens
        return commands

    def ended(self, session_id: SessionId, now_s: float) -> None:
        """The request needs no chain any more."""
        running = self._state.running.get(session_id)
        if running is not None:
            self._forecast(running.manifest_hash).ended(now_s - running.since_s)
        self.free(session_id)

    def free(self, session_id: SessionId) -> None:
        """It neither waits nor runs now."""
        self._state.waiting.pop(session_id, None)
        running = self._state.running.pop(session_id, None)
        for key in running.devices if running else ():
            device = self._state.devices[key]
            device.num_requests -= 1
            device.num_reserved_tokens -= running.num_tokens if running else 0

    def drop_requests_on(self, devices: Collection[DeviceKey]) -> None:
        """These requests have no chain any more; their sessions come back with RequestArrived(resumed)."""
        for session_id in [s for s, r in self._state.running.items() if set(devices) & set(r.devices)]:
            self.free(session_id)

    def drop_model(self, manifest_hash: str) -> list[SessionId]:
        """Nobody waits for it or uses it any more; these did."""
        dropped = [s for s, running in self._state.running.items() if running.manifest_hash == manifest_hash]
        dropped += [s for s, waiting in self._state.waiting.items() if waiting.manifest_hash == manifest_hash]
        for session_id in dropped:
            self.free(session_id)
        self._forecasts.pop(manifest_hash, None)
        return dropped

    def overdue(self, now_s: float) -> list[Waiting]:
        """Takes those out of the queue who have waited for too long."""
        overdue = [w for w in self._state.waiting.values() if w.give_up_at_s <= now_s]
        for waiting in overdue:
            del self._state.waiting[waiting.session_id]
        return overdue

    def _queue(self) -> list[Waiting]:
        """Oldest first: whoever is resumed had arrived before anybody who has never run."""
        return sorted(self._state.waiting.values(), key=lambda waiting: not waiting.resumed)

    # ------------------------------------------------------------ chains

    def _start(self, waiting: Waiting, chain: list[Device], now_s: float) -> StartChain:
        for device in chain:
            device.num_requests += 1
            device.num_reserved_tokens += waiting.num_tokens
        keys = tuple(device.key for device in chain)
        self._state.running[waiting.session_id] = Running(waiting.manifest_hash, keys, waiting.num_tokens, now_s)
        return StartChain(waiting.session_id, tuple(_stage(device) for device in chain))

    def _chain_for(self, waiting: Waiting) -> list[Device]:
        """A chain without the devices to avoid if there is one, else one with them: better tried than lost."""
        for avoid in (waiting.avoid, NOBODY) if waiting.avoid else (NOBODY,):
            for variant in Variant:
                chain = self._chain(waiting.manifest_hash, variant, waiting.num_tokens, avoid)
                if chain:
                    return chain
        return []

    def _chain(
        self, manifest_hash: str, variant: Variant, num_tokens: int, avoid: frozenset[DeviceKey]
    ) -> list[Device]:
        model = self._state.models[manifest_hash]
        holders = self._state.holders(manifest_hash)
        usable = [d for d in holders if d.spec.variant is variant and d.key not in avoid]
        return cheapest_chain(usable, model.num_layers, num_tokens)

    def _forecast(self, manifest_hash: str) -> QueueForecast:
        return self._forecasts.setdefault(manifest_hash, QueueForecast())


def _stage(device: Device) -> ChainStage:
    assert device.layers is not None, "a chain has ready devices only"
    return ChainStage(device.key, device.generation, device.layers)


def _queue_full(session_id: SessionId, place: QueuePlace) -> RefuseRequest:
    wait_s = min(MAX_RETRY_AFTER_S, place.expected_wait_s or MAX_RETRY_AFTER_S)
    message = f"{place.num_waiting - 1} requests wait for this model already; try again later."
    return RefuseRequest(session_id, "queue_full", message, wait_s)
