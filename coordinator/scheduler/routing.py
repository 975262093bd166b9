"""Phase 2: for each request the chain on which it is expected to be done first.

The cost of a chain is the request's expected time on it: compute and queueing at each stage under the load of what
runs there already, links, and the transfer of rows, for its prompt and its expected answer (net.py). The dynamic
programme looks at a shortlist of devices (shortlist.py) that is made anew every few requests; costs are those of the
moment. PARALLAX.md, 1.3, has the paper's form: one latency per layer, no prompt, no bandwidth, no return hop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from coordinator.scheduler.candidates import Ask, Candidates, held_by, suspicion
from coordinator.scheduler.cost import model_cost, prefill_s
from coordinator.scheduler.net import (
    APART_PENALTY_S,
    TOKEN_BYTES,
    Net,
    PairTimes,
    Way,
    cheapest_way,
    make_net,
    side_by_side,
)
from coordinator.scheduler.policy import Route, RouteRequest, SchedulerConfig
from coordinator.scheduler.prefixes import Prefixes
from coordinator.scheduler.shortlist import best_nets
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, State
from protocol.values import NodeId, SessionId, Variant

NEW_SHORTLIST_AFTER = 16
"""Requests. Until then costs within the shortlist have risen, so that devices outside it may be better."""
SHORTLIST_FRESH_S = 5.0
CROWDED_FRESH_S = 0.02
"""A shortlist in which every chain misses the bound is made anew if it is older: in a busy pool costs rise quickly."""
NEW_REGIONS_AFTER_S = 30.0
SMALL_POOL = 40
"""So many devices are all looked at."""
MAX_OWNERS = 96
MAX_PREFIX_TRIES = 3
MAX_AFFINITIES = 4096
SUSPECTS_AFTER_S = 3.0
"""A suspected device's cost falls with time; so often it is looked at again."""
NEGLIGIBLE = 0.01


@dataclass(slots=True)
class Table:
    """What is kept for one model in one variant."""

    candidates: Candidates
    net: Net | None = None
    """The shortlist: its parts are of heads in one region each."""
    version: int = -1
    """Of the candidates, when the shortlist was made."""
    num_routed: int = 0
    made_at_s: float = 0.0
    regions_at_s: float = 0.0


class ChainRouter:
    """policy.Router. Tell it of every device that becomes ready, is ready no more, or whose load or room changed."""

    def __init__(self, state: State, config: SchedulerConfig | None = None) -> None:
        self._state = state
        self._config = config or SchedulerConfig()
        self._tables: dict[tuple[str, Variant], Table] = {}
        self._table_of: dict[DeviceKey, tuple[str, Variant]] = {}
        self._keys_of: dict[NodeId, set[DeviceKey]] = {}
        self._changed: dict[DeviceKey, Device] = {}
        self._suspects: dict[DeviceKey, float] = {}
        self._prefixes = Prefixes()
        self._affinities: dict[SessionId, tuple[int, ...]] = {}
        """Of requests that have been routed, and may have been started."""
        self._pairs = PairTimes(state.links)

    # ------------------------------------------------------------ changes

    def changed(self, device: Device) -> None:
        """The device is ready, or not ready any more, or its load, speed, trust or free KV room is another."""
        self._changed[device.key] = device
        if device.suspicion:
            self._suspects.setdefault(device.key, 0.0)

    def gone(self, device: Device) -> None:
        """The device is not part of the pool any more."""
        self._changed.pop(device.key, None)
        self._suspects.pop(device.key, None)
        self._drop(device.key)

    def finished(self, session_id: SessionId, devices: Sequence[DeviceKey], now_s: float) -> None:
        """What its prompt left in the devices' caches is remembered; loads are the dispatcher's."""
        affinity = self._affinities.pop(session_id, ())
        for key in devices if affinity else ():
            if key in self._table_of and key in self._state.devices:
                self._prefixes.remember(self._state.devices[key], affinity)

    def _settle(self, now_s: float) -> None:
        """Bring the index up to date with what has changed since the last request."""
        for key, seen_s in self._suspects.items():
            if now_s - seen_s >= SUSPECTS_AFTER_S and key in self._state.devices:
                self._changed[key] = self._state.devices[key]
        changed: dict[tuple[str, Variant], list[Device]] = {}
        for device in self._changed.values():
            name = self._indexed(device, now_s)
            if name is not None:
                changed.setdefault(name, []).append(device)
        for name, devices in changed.items():
            self._tables[name].candidates.put_all(devices, now_s)
        self._changed.clear()
        self._pairs.refresh(now_s)

    def _indexed(self, device: Device, now_s: float) -> tuple[str, Variant] | None:
        """The table that it is to be in; None if it is in none."""
        model = device.model
        if device.state is not DeviceState.READY or model is None or model not in self._state.models:
            self._drop(device.key)
            return None
        name = self._table_of.get(device.key)
        if name is None or name[0] != model or name[1] is not device.spec.variant:
            name = self._enter(device, model)
        if device.suspicion:
            self._suspects[device.key] = now_s
            if suspicion(device, now_s) < NEGLIGIBLE:
                device.suspicion = 0.0
                del self._suspects[device.key]
        return name

    def _enter(self, device: Device, model: str) -> tuple[str, Variant]:
        self._drop(device.key)
        name = (model, device.spec.variant)
        if name not in self._tables:
            cost = model_cost(self._state.models[model], device.spec.variant)
            self._tables[name] = Table(Candidates(cost, self._state.links))
        self._table_of[device.key] = name
        self._keys_of.setdefault(device.key.node_id, set()).add(device.key)
        return name

    def _drop(self, key: DeviceKey) -> None:
        name = self._table_of.pop(key, None)
        self._prefixes.forget(key)
        if name is not None:
            self._tables[name].candidates.drop(key)
            self._keys_of[key.node_id].discard(key)
            if not self._keys_of[key.node_id]:
                del self._keys_of[key.node_id]

    # ------------------------------------------------------------ routes

    def route(self, request: RouteRequest, variant: Variant, now_s: float) -> Route | None:
        """The chain of this variant with the least expected time for the request; None if none has room now.

        A chain that misses the bound is looked for again: without regard to what it costs others, and in a shortlist of
        this moment. What others lose there may have made a slow chain look cheaper than one within the bound."""
        self._settle(now_s)
        table = self._tables.get((request.manifest_hash, variant))
        while table is not None and table.candidates.slots:
            ask = self._ask(request)
            way, num_prompt = self._way(table, request, ask, now_s)
            if way is None:
                return None
            if self._forget_unusable(table, way):
                continue  # a device changed and nobody said so
            route = self._predicted(table.candidates, way, request.num_new_tokens, num_prompt)
            if self._misses_bound(route) and not ask.kept:
                route = self._for_itself(table, ask) or route
                if self._misses_bound(route) and self._is_old(table, now_s):
                    table.net = None
                    continue
            table.num_routed += 1
            self._note_affinity(request)
            return route
        return None

    def _misses_bound(self, route: Route) -> bool:
        return route.tpot_s > self._config.bound.tpot_s

    def _for_itself(self, table: Table, ask: Ask) -> Route | None:
        """The quickest chain of the shortlist; None if it misses the bound, too."""
        if table.net is None:
            return None
        candidates = table.candidates
        way = cheapest_way(table.net, candidates, replace(ask, for_itself=True), looks_twice=True)
        if way is None or self._forget_unusable(table, way):
            return None
        route = self._predicted(candidates, way, ask.num_new_tokens, ask.num_prompt_tokens)
        return None if self._misses_bound(route) else route

    def _is_old(self, table: Table, now_s: float) -> bool:
        return len(table.candidates) > SMALL_POOL and now_s - table.made_at_s >= CROWDED_FRESH_S

    def _way(self, table: Table, request: RouteRequest, ask: Ask, now_s: float) -> tuple[Way | None, int]:
        """And how many tokens of the prompt are to be computed."""
        if ask.kept:
            return self._over_survivors(table, ask), request.num_prompt_tokens
        way = self._cheapest(table, ask, now_s)
        if request.affinity:
            cached = self._over_a_cached_prefix(table, ask, request.affinity)
            if cached is not None and (way is None or cached[0].cost_s < way.cost_s):
                return cached
        return way, request.num_prompt_tokens

    def _forget_unusable(self, table: Table, way: Way) -> bool:
        """Whether the way has devices that are not what the index says; they are dropped from it."""
        candidates, devices, model = table.candidates, self._state.devices, table.candidates.model.facts.manifest_hash
        unusable = False
        for slot in way.slots:
            device = candidates.device(slot)
            is_here = device.table is devices and device.state is DeviceState.READY and device.model == model
            if not is_here or not candidates.is_as_put(slot, device):
                self._drop(device.key)
                unusable = True
        return unusable

    def _note_affinity(self, request: RouteRequest) -> None:
        if request.affinity:
            self._affinities[request.session_id] = request.affinity
            if len(self._affinities) > MAX_AFFINITIES:
                del self._affinities[next(iter(self._affinities))]

    def _ask(self, request: RouteRequest) -> Ask:
        drained = (key for node_id in self._state.draining for key in self._keys_of.get(node_id, ()))
        avoid = request.avoid.union(drained, self._state.retiring)
        apart = tuple((key, APART_PENALTY_S) for key in request.apart_from) if self._config.keeps_apart else ()
        kept = request.kept
        return Ask(request.num_new_tokens, request.num_prompt_tokens, request.num_reserved_tokens, avoid, apart, kept)

    def _over_survivors(self, table: Table, ask: Ask) -> Way | None:
        """In a shortlist of its own: these devices are cheap for this request only."""
        return cheapest_way(self._net(table, ask), table.candidates, ask, looks_twice=True)

    def _cheapest(self, table: Table, ask: Ask, now_s: float) -> Way | None:
        """In the kept shortlist if there is a chain in it, else in one made for this request."""
        if table.net is None or self._is_stale(table, now_s):
            table.net = self._shortlist(table, ask, now_s)
            return cheapest_way(table.net, table.candidates, ask, looks_twice=True)
        way = cheapest_way(table.net, table.candidates, ask, looks_twice=True)
        if way is None and not table.candidates.have_room(ask):
            return None
        if way is None or way.cost_s >= APART_PENALTY_S:
            table.net = self._shortlist(table, ask, now_s)
            way = cheapest_way(table.net, table.candidates, ask, looks_twice=True)
        return way

    def _is_stale(self, table: Table, now_s: float) -> bool:
        is_old = now_s - table.made_at_s >= SHORTLIST_FRESH_S
        is_worn = table.num_routed >= NEW_SHORTLIST_AFTER and len(table.candidates) > SMALL_POOL
        return is_old or is_worn or table.version != table.candidates.version

    def _shortlist(self, table: Table, ask: Ask, now_s: float) -> Net:
        table.version, table.num_routed, table.made_at_s = table.candidates.version, 0, now_s
        if len(table.candidates) > SMALL_POOL and now_s - table.regions_at_s >= NEW_REGIONS_AFTER_S:
            table.regions_at_s = now_s
            table.candidates.regroup()
        return self._net(table, ask)

    def _net(self, table: Table, ask: Ask) -> Net:
        candidates, keeps_apart = table.candidates, self._config.keeps_apart
        if len(candidates) <= SMALL_POOL:
            return make_net(candidates, list(candidates.slots.values()), self._pairs, keeps_apart=keeps_apart)
        return side_by_side(best_nets(candidates, ask, self._state.links, self._pairs, keeps_apart=keeps_apart))

    # ------------------------------------------------------------ cached prefixes

    def _over_a_cached_prefix(self, table: Table, ask: Ask, affinity: Sequence[int]) -> tuple[Way, int] | None:
        """The best chain all of whose stages have seen the longest such prefix, and the prompt tokens left to compute.

        A stage without it needs all rows of the prompt from the stage before, so the chain's least counts."""
        num_tries = 0
        for num_blocks in range(len(affinity), 0, -1):
            owners = [key for key in self._prefixes.owners(affinity[num_blocks - 1]) if self._has_cached(key)]
            slots = held_by(table.candidates, owners)
            if not len(slots):
                continue
            num_tries += 1
            rest = max(1, round(ask.num_prompt_tokens * (1 - num_blocks / len(affinity))))
            shorter = replace(ask, num_prompt_tokens=rest)
            cheap = slots[table.candidates.costs(shorter, slots).argsort(kind="stable")[:MAX_OWNERS]]
            net = make_net(table.candidates, cheap.tolist(), self._pairs, keeps_apart=self._config.keeps_apart)
            way = cheapest_way(net, table.candidates, shorter)
            if way is not None:
                return way, rest
            if num_tries == MAX_PREFIX_TRIES:
                break
        return None

    def _has_cached(self, key: DeviceKey) -> bool:
        device = self._state.devices.get(key)
        return device is not None and device.has_prefix_cache and self._prefixes.is_fresh(device)

    # ------------------------------------------------------------ predictions

    def _predicted(self, candidates: Candidates, way: Way, num_new: float, num_prompt: float) -> Route:
        """What the chain is expected to do, and what its devices are given to do."""
        devices = tuple([candidates.device(slot) for slot in way.slots])
        nodes = [device.key.node_id for device in devices]
        *hops, (back_delay_s, back_byte_s) = self._pairs.pairs([*pairwise(nodes), (nodes[-1], nodes[0])])
        delay_s, row_bytes = sum([hop[0] for hop in hops]), candidates.model.hidden_bytes
        ring_s = delay_s + row_bytes * sum([hop[1] for hop in hops]) + back_delay_s + TOKEN_BYTES * back_byte_s
        token_s, prompt_s, idle_token_s = candidates.times_s(way.slots)
        tpot_s, idle_s = ring_s + sum(token_s), ring_s + sum(idle_token_s)
        ttft_s = delay_s + prefill_s(prompt_s, [row_bytes * hop[1] for hop in hops], num_prompt)
        duration_s = ttft_s + max(1, num_new) * tpot_s
        return Route(devices, 1.0 / tpot_s, num_prompt / duration_s, tpot_s, idle_s, ttft_s)


def exact_chain(
    state: State, request: RouteRequest, variant: Variant, now_s: float
) -> tuple[float, list[Device]] | None:
    """The yardstick: the same cost over all devices and links, each head for itself. Expensive; nothing is kept.

    Returns the cost in seconds and the chain, head first."""
    model = model_cost(state.models[request.manifest_hash], variant)
    candidates, pairs = Candidates(model, state.links), PairTimes(state.links)
    for device in state.usable(DeviceState.READY):
        if device.model == request.manifest_hash and device.spec.variant is variant:
            candidates.put(device, now_s)
    ask = Ask(request.num_new_tokens, request.num_prompt_tokens, request.num_reserved_tokens, request.avoid)
    slots = list(candidates.slots.values())
    others = [slot for slot in slots if candidates.start[slot] > 0]
    best: Way | None = None
    for head in (slot for slot in slots if candidates.start[slot] == 0):
        net = make_net(candidates, [head, *others], pairs, keeps_apart=False)
        way = cheapest_way(net, candidates, ask)
        if way is not None and (best is None or way.cost_s < best.cost_s):
            best = way
    return None if best is None else (best.cost_s, [candidates.device(slot) for slot in best.slots])
