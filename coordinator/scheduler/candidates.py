"""Ready devices of one model in one variant as columns, so that a request's costs of 10,000 of them are four vector
operations. Phase 2's index.

A device's cost for a request is linear in two figures of the request: how many tokens it will answer, and how many
prompt tokens count (see `prompt_weight`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS, ModelCost, Speed, device_speed, response_s
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.state import Device, DeviceKey, Load
from protocol.values import LayerBenchmark, LayerRange

SUSPICION_HALVES_S = 30.0
MIN_FREE_SHARE = 0.05
"""However many prompts wait, decode steps still get a share: workers mix both in one forward."""
NUM_SAMPLED = 4
"""Devices of a region that stand for it when distances are taken."""
BUSY_SHARE = 1e-3
"""Added per running request: of devices that are otherwise equal the one with fewer requests is taken."""
ONE_MORE = np.array([[0.0], [1.0]])
"""As many requests as there are, and one more."""
MANY = 8
"""Devices whose times are sooner found all at once."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request in the index' terms. `penalties_s` are added to these devices' costs; those in `kept` hold the
    request's KV already. `for_itself`: what it costs others does not count."""

    num_new_tokens: float
    num_prompt_tokens: float
    num_reserved_tokens: int
    avoid: frozenset[DeviceKey] = frozenset()
    penalties_s: tuple[tuple[DeviceKey, float], ...] = ()
    kept: frozenset[DeviceKey] = frozenset()
    for_itself: bool = False


class Run(NamedTuple):
    """Groups that begin, or that end, at one boundary, by region: the regions that occur and where each begins."""

    boundary: int
    groups: Ints
    regions: Ints
    first: Ints


@dataclass(frozen=True, slots=True)
class Groups:
    """Devices of the same slice in the same region. `members` are slots, in order of group.

    Group g has members[first[g]:first[g+1]]; groups are in order of (stop, region, start).
    Regions count from 0 here."""

    members: Ints
    first: Ints
    start: Ints
    stop: Ints
    region: Ints
    delays_s: Floats
    """One way between regions, from a few devices of each."""
    remote_s: Floats
    """Per member: how much more than that its hops take, each way."""
    beginning: list[Run]
    ending: list[Run]


def suspicion(device: Device, now_s: float) -> float:
    """How often chains broke at it lately; halves every 30 s."""
    if not device.suspicion:
        return 0.0
    return float(device.suspicion * 0.5 ** ((now_s - device.suspected_at_s) / SUSPICION_HALVES_S))


def suspect(device: Device, now_s: float, weight: float = 1.0) -> None:
    """A chain has broken at it."""
    device.suspicion = suspicion(device, now_s) + weight
    device.suspected_at_s = now_s


@dataclass(frozen=True, slots=True)
class StageTime:
    """What a device's time with its slice is made of."""

    speed: Speed
    work: float
    last: bool
    up_s: float = 0.0
    """Of one row on its node's uplink; 0 for the last stage, which sends a token only."""

    def times_s(self, load: Load, num_requests: int) -> tuple[float, float]:
        """Seconds of one more request's decode row under that load, and of one of its prompt tokens; always finite.

        Prompts share what time there is with other prompts. What a row waits for the uplink is part of both; its own
        time there is the hop's."""
        prompt_s = self.work * self.speed.prefill_s
        free_share, others = 1.0 - load.prompt_tokens_per_s * prompt_s, load
        if free_share < MIN_FREE_SHARE:
            free_share, others = MIN_FREE_SHARE, Load(load.rows_per_s, (1.0 - MIN_FREE_SHARE) / prompt_s)
        trip_s = num_requests / load.rows_per_s if num_requests and load.rows_per_s > 0.0 else math.inf
        token_s = response_s(self.speed, self.work, others, last=self.last, num_others=num_requests, trip_s=trip_s)
        wait_s = self.uplink_wait_s(load, num_requests)
        return token_s + wait_s, prompt_s / free_share + wait_s

    def uplink_wait_s(self, load: Load, num_requests: int) -> float:
        """A row's wait while others' rows go up the line: as in a queue of one server (M/M/1), and never for more than
        one row of each."""
        busy = min((load.rows_per_s + load.prompt_tokens_per_s) * self.up_s, 1.0 - MIN_FREE_SHARE)
        return self.up_s * min(busy / (1.0 - busy), num_requests)

    def others_loss_s(self, token_s: float, load: Load, num_requests: int) -> float:
        """By how much all other requests' rows together take longer for one request more.

        Whoever looks for the shortest way for itself alone makes everybody's longer than need be (Pigou 1920;
        Roughgarden and Tardos 2002): a device counts with what it costs all, not with what it costs the newcomer."""
        if not num_requests:
            return 0.0
        more = 1.0 + 1.0 / num_requests
        fuller = Load(load.rows_per_s * more, load.prompt_tokens_per_s * more)
        return num_requests * max(0.0, self.times_s(fuller, num_requests + 1)[0] - token_s)

    def idle_token_s(self) -> float:
        """Seconds of a decode row when nothing else runs."""
        return self.speed.step_time_s(self.work, 1, last=self.last)


def stage_time(device: Device, model: ModelCost, upload_bytes_per_s: float = math.inf) -> StageTime:
    """As measured, corrected by what its live work has shown."""
    assert device.layers is not None, "a candidate has layers"
    speed = device_speed(device, model.facts.manifest_hash)
    is_last = device.layers.stop == model.num_layers
    up_s = 0.0 if is_last else model.hidden_bytes / upload_bytes_per_s
    return StageTime(speed, model.work_of(device.layers), is_last, up_s)


class Candidates:
    """Slots of removed devices are used again, so that the columns stay as long as the pool was at its largest."""

    def __init__(self, model: ModelCost, links: LinkMap) -> None:
        self.model = model
        self.devices: list[Device | None] = []
        self.slots: dict[DeviceKey, int] = {}
        self.version = 0
        """Changes with membership: who holds which slice."""
        self._links = links
        self._spare: list[int] = []
        self._stages: dict[int, tuple[LayerBenchmark, float, float, StageTime]] = {}
        self._fixed = np.zeros((4, 16))
        """Of a decode step, of a row in it, of a prompt token, and of a row on the uplink: seconds."""
        self._now = np.zeros((3, 16))
        """See `times_s`."""
        self._whole: Groups | None = None
        self._num_held = 0
        self._pieces: list[tuple[int, int]] = []
        self._layers: list[LayerRange | None] = []
        self._bounds = np.zeros((2, 16), dtype=np.intp)
        self._rows = np.zeros(16, dtype=np.intp)
        self._times = np.zeros((2, 16))
        self._rooms = np.full(16, -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def start(self) -> Ints:
        return self._bounds[0, : len(self.devices)]

    @property
    def stop(self) -> Ints:
        return self._bounds[1, : len(self.devices)]

    @property
    def rows(self) -> Ints:
        """Indices of the devices' nodes in the link map."""
        return self._rows[: len(self.devices)]

    @property
    def num_stages(self) -> float:
        """How many stages a chain has, typically."""
        return self.model.num_layers * len(self.slots) / max(1, self._num_held)

    def piece(self, slot: int) -> tuple[int, int]:
        """First layer, and the layer after the last one."""
        return self._pieces[slot]

    def device(self, slot: int) -> Device:
        found = self.devices[slot]
        assert found is not None, "the slot is in use"
        return found

    # ------------------------------------------------------------ changes

    def put(self, device: Device, now_s: float) -> None:
        """A ready device is new here, or its load, room, speed or slice is another."""
        slot = self._slot(device)
        stage = self._stage(slot, device)
        times = stage.times_s(device.load, device.num_requests)
        self._now[:2, slot] = times
        loss_s = stage.others_loss_s(times[0], device.load, device.num_requests)
        factor = 1.0 + BUSY_SHARE * device.num_requests
        if device.suspicion:
            factor *= 1.0 + suspicion(device, now_s)
        self._times[0, slot] = (times[0] + loss_s) * factor
        self._times[1, slot] = times[1] * factor
        self._rooms[slot] = device.num_free_kv_tokens

    def put_all(self, devices: Sequence[Device], now_s: float) -> None:
        """Like `put` of each, quicker for many."""
        if len(devices) < MANY:
            for device in devices:
                self.put(device, now_s)
            return
        slots: list[int] = []
        loads: list[float] = []
        suspects: list[float] = []
        for device in devices:
            slot, load = self._slot(device), device.load
            self._stage(slot, device)
            slots.append(slot)
            loads += (load.rows_per_s, load.prompt_tokens_per_s, device.num_requests, device.num_free_kv_tokens)
            suspects.append(suspicion(device, now_s) if device.suspicion else 0.0)
        at = np.array(slots, dtype=np.intp)
        rows_per_s, prompts_per_s, num, rooms = np.array(loads, dtype=np.float64).reshape(-1, 4).T
        token_s, prompt_s, loss_s = _times_under_load(self._fixed[:, at], rows_per_s, prompts_per_s, num)
        factors = (1.0 + BUSY_SHARE * num) * (1.0 + np.array(suspects))
        self._now[0, at], self._now[1, at] = token_s, prompt_s
        self._times[0, at], self._times[1, at] = (token_s + loss_s) * factors, prompt_s * factors
        self._rooms[at] = rooms

    def _slot(self, device: Device) -> int:
        """Its own, or a new one if it is not here as it is now."""
        slot = self.slots.get(device.key)
        if slot is not None and self.devices[slot] is device and self.is_as_put(slot, device):
            return slot
        assert device.layers is not None, "a ready device has layers"
        self.drop(device.key)
        return self._add(device, device.layers)

    def times_s(self, slots: Sequence[int]) -> list[list[float]]:
        """Of these devices, as of when they were put last: the seconds that one more request's decode rows would take
        there each, its prompt tokens, and decode rows if nothing else ran."""
        times: list[list[float]] = self._now[:, slots].tolist()
        return times

    def is_as_put(self, slot: int, device: Device) -> bool:
        """Whether it holds the layers that it held then."""
        layers = self._layers[slot]
        return layers is device.layers or layers == device.layers

    def _stage(self, slot: int, device: Device) -> StageTime:
        """Looking a speed up by its benchmark takes longer than all else here, so it is kept while that is the same."""
        benchmark = device.benchmarks[self.model.facts.manifest_hash]
        upload = self._links.upload(int(self._rows[slot]))
        kept = self._stages.get(slot)
        if kept is None or kept[0] is not benchmark or kept[1] != device.slowdown or kept[2] != upload:
            stage = stage_time(device, self.model, upload)
            self._stages[slot] = kept = (benchmark, device.slowdown, upload, stage)
            self._now[2, slot] = stage.idle_token_s()
            self._fixed[:, slot] = (
                stage.speed.step_time_s(stage.work, 0, last=stage.last),
                stage.work * stage.speed.row_s,
                stage.work * stage.speed.prefill_s,
                stage.up_s,
            )
        return kept[3]

    def drop(self, key: DeviceKey) -> None:
        """Harmless for one that is not here."""
        slot = self.slots.pop(key, None)
        if slot is None:
            return
        self.devices[slot] = None
        self._stages.pop(slot, None)
        self._rooms[slot] = -1
        self._num_held -= self._pieces[slot][1] - self._pieces[slot][0]
        self._spare.append(slot)
        self.version += 1
        self._whole = None

    def _add(self, device: Device, layers: LayerRange) -> int:
        slot = self._spare.pop() if self._spare else self._extend()
        piece = (layers.start, layers.stop)
        self.slots[device.key], self.devices[slot], self._pieces[slot] = slot, device, piece
        self._layers[slot] = layers
        self._bounds[:, slot] = piece
        self._rows[slot] = self._links.row(device.key.node_id)
        self._num_held += piece[1] - piece[0]
        self.version += 1
        self._whole = None
        return slot

    def _extend(self) -> int:
        if len(self.devices) == len(self._rows):
            self._bounds = np.concatenate([self._bounds, np.zeros_like(self._bounds)], axis=1)
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._times = np.concatenate([self._times, np.zeros_like(self._times)], axis=1)
            self._fixed = np.concatenate([self._fixed, np.zeros_like(self._fixed)], axis=1)
            self._now = np.concatenate([self._now, np.zeros_like(self._now)], axis=1)
            self._rooms = np.concatenate([self._rooms, np.full_like(self._rooms, -1)])
        self.devices.append(None)
        self._pieces.append((0, 0))
        self._layers.append(None)
        return len(self.devices) - 1

    # ------------------------------------------------------------ questions

    def costs(self, ask: Ask, among: Ints | None = None) -> Floats:
        """Seconds that the request would spend at each device (all slots, or these); inf where it has no room."""
        pick = slice(0, len(self.devices)) if among is None else among
        token, prompt = (self._now[:2] if ask.for_itself else self._times)[:, pick]
        costs = ask.num_new_tokens * token + self.prompt_weight(ask.num_prompt_tokens) * prompt
        costs[self._rooms[pick] < ask.num_reserved_tokens] = np.inf
        if ask.avoid or ask.penalties_s or ask.kept:
            self._amend(costs, ask, among)
        return np.asarray(costs)

    def have_room(self, ask: Ask) -> bool:
        """Whether some whole chain has room for the request, at whatever cost."""
        has_room = self._rooms[: len(self.devices)] >= ask.num_reserved_tokens
        for keys, has in ((ask.kept, True), (ask.avoid, False)):
            for key in keys & self.slots.keys():
                has_room[self.slots[key]] = has
        reached = {0}
        for start, stop in sorted({self._pieces[slot] for slot in has_room.nonzero()[0].tolist()}):
            if start in reached:
                reached.add(stop)
        return self.model.num_layers in reached

    def prompt_weight(self, num_prompt_tokens: float) -> float:
        """How many times a stage's time per prompt token counts in the prompt's time through all stages.

        Chunks pass through the stages one behind the other (cost.prefill_s), so a long prompt's time is the first
        chunk at every stage and the others at the slowest one; its share is spread evenly, which makes it additive."""
        chunk = min(num_prompt_tokens, PREFILL_CHUNK_TOKENS)
        return chunk + (num_prompt_tokens - chunk) / max(1.0, self.num_stages)

    def _amend(self, costs: Floats, ask: Ask, among: Ints | None) -> None:
        place = {int(slot): i for i, slot in enumerate(among)} if among is not None else None
        for key in ask.kept & self.slots.keys():  # of what is kept only the last row is computed again
            kept = self.slots[key]
            at = kept if place is None else place.get(kept)
            if at is not None:
                token_s, prompt_s = self._times[:, kept]
                costs[at] = ask.num_new_tokens * token_s + prompt_s
        for key, extra_s in [*((key, np.inf) for key in ask.avoid), *ask.penalties_s]:
            slot = self.slots.get(key)
            at = slot if slot is None or place is None else place.get(slot)
            if at is not None:
                costs[at] += extra_s

    def groups(self) -> Groups:
        """Made anew after a change of membership or of the regions (`regroup`)."""
        if self._whole is None:
            self._whole = self._grouped()
        return self._whole

    def regroup(self) -> None:
        """Regions may have changed."""
        self._whole = None

    def _grouped(self) -> Groups:
        used = np.fromiter(self.slots.values(), dtype=np.intp, count=len(self.slots))
        start, stop, region = self.start[used], self.stop[used], self._links.regions(self.rows[used])
        region = np.unique(region, return_inverse=True)[1]
        order = np.lexsort((start, region, stop))
        keys = np.stack([start[order], stop[order], region[order]])
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        first = np.flatnonzero(is_first)
        delays_s, remote_s = _distances(self._links, self.rows[used][order], keys[2])
        start, stop, region = keys[:, first]
        beginning = _runs(start, region, np.lexsort((region, start)))
        ending = _runs(stop, region, np.arange(len(stop)))
        return Groups(used[order], first, start, stop, region, delays_s, remote_s, beginning, ending)


def _runs(boundary: Ints, region: Ints, order: Ints) -> list[Run]:
    """Groups in this order (by boundary, then by region), cut where the boundary changes."""
    boundaries, places = boundary[order], region[order]
    new_boundary = np.flatnonzero(boundaries[1:] != boundaries[:-1]) + 1
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = places[1:] != places[:-1]
    is_first[new_boundary] = True
    firsts = np.flatnonzero(is_first)
    cuts = [0, *new_boundary.tolist(), len(order)]
    marks = np.searchsorted(firsts, cuts).tolist()
    runs = []
    for i, (begin, end) in enumerate(pairwise(cuts)):
        first = firsts[marks[i] : marks[i + 1]]
        runs.append(Run(int(boundaries[begin]), order[begin:end], places[first], first - begin))
    return runs


def _distances(links: LinkMap, rows: Ints, region: Ints) -> tuple[Floats, Floats]:
    """Between regions, and how much further off each device is than its region's sample, one way in seconds.

    A hop is about the regions' distance and what both ends add: most of that is a home's own line."""
    order = np.argsort(region, kind="stable")
    num_regions = int(region[order[-1]]) + 1
    first = np.searchsorted(region[order], np.arange(num_regions + 1))
    picks = first[:-1, None] + (np.diff(first)[:, None] * np.arange(NUM_SAMPLED)) // NUM_SAMPLED
    sampled = rows[order[picks]]
    flat = sampled.ravel()
    delays_s = links.delays_s(flat, flat).reshape(num_regions, NUM_SAMPLED, num_regions, NUM_SAMPLED).mean(axis=(1, 3))
    remote_s = np.empty(len(rows))
    for number in range(num_regions):
        those = order[first[number] : first[number + 1]]
        remote_s[those] = links.delays_s(rows[those], sampled[number]).mean(axis=1) - delays_s[number, number]
    return delays_s, remote_s


def _times_under_load(
    fixed: Floats, rows_per_s: Floats, prompts_per_s: Floats, num_requests: Floats
) -> tuple[Floats, Floats, Floats]:
    """StageTime.times_s and others_loss_s of many devices: arrays [n], `fixed` is [4, n]. See there, and
    cost.response_s."""
    step_s, row_s, prompt_s, up_s = fixed
    num = num_requests + ONE_MORE
    share = np.divide(1.0, num, out=np.zeros_like(num), where=num > 0.0)
    more = 1.0 + ONE_MORE * share[0]
    rows = rows_per_s * more
    free = np.maximum(1.0 - prompts_per_s * more * prompt_s, MIN_FREE_SHARE)
    step = (step_s + (1.0 + num) * row_s) / free
    slack = free - rows * row_s
    step = np.minimum(step, np.divide(step_s + row_s, slack, out=step.copy(), where=slack > 0.0))
    busy = rows * step
    token_s = step * (1.0 + np.maximum(1.0 - busy * share, 0.0) * np.minimum(busy, 1.0) / 2.0)
    sent = np.minimum((rows + prompts_per_s * more) * up_s, 1.0 - MIN_FREE_SHARE)
    waits_s = up_s * np.minimum(sent / (1.0 - sent), num)
    token_s += waits_s
    loss_s = num_requests * np.maximum(token_s[1] - token_s[0], 0.0)
    return token_s[0], prompt_s / free[0] + waits_s[0], loss_s


def held_by(candidates: Candidates, keys: Iterable[DeviceKey]) -> Ints:
    """The slots of those of these devices that are candidates."""
    return np.array([candidates.slots[key] for key in keys if key in candidates.slots], dtype=np.intp)
