"""Phase 1, first form: fewest stages, then layers in proportion to measured speed within each device's memory.

Water-filling as in Parallax (arXiv 2509.26182, section 3), on measured decode time instead of FLOPs. The full phase 1
replaces this module behind the same interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.scheduler.cost import Place, place
from coordinator.scheduler.state import Device, ModelFacts
from protocol.values import LayerRange

BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Placement:
    device: Device
    layers: LayerRange
    reason: str


def plan_pipeline(model: ModelFacts, devices: Sequence[Device], span: LayerRange | None = None) -> list[Placement]:
    """Place every layer of `span` (default: all) once on some of `devices`; empty when they are too small.

    The devices are all of one variant and have measured the model."""
    span = span or LayerRange(0, model.num_layers)
    by_size = _roomiest_first(model, devices)
    for num_stages in range(1, min(len(by_size), len(span)) + 1):
        places = _places(model, by_size[:num_stages], span)
        if all(p.max_layers for p in places) and sum(p.max_layers for p in places) >= len(span):
            return _placements(places, span)
    return []


def room_for(model: ModelFacts, devices: Sequence[Device]) -> int:
    """How many layers these devices could hold together: what the pool says while it waits for more of them."""
    usable = [device for device in _roomiest_first(model, devices) if _max_layers(model, device)]
    return min(model.num_layers, sum(p.max_layers for p in _places(model, usable, LayerRange(0, model.num_layers))))


def split_layers(num_layers: int, places: Sequence[Place]) -> list[int]:
    """Layers per place: at least one, at most its `max_layers`, stage times as equal as that allows.

    Finds the stage time T at which the places together take all layers (each takes (T - extra) / layer time), then
    rounds down and hands the rest to whoever stays quickest."""
    low, high = 0.0, sum(p.extra_s + p.layer_s * num_layers for p in places)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(_share(p, middle) for p in places) >= num_layers else (middle, high)
    counts = [max(1, int(_share(p, low))) for p in places]
    while sum(counts) < num_layers:
        open_places = [i for i, p in enumerate(places) if counts[i] < p.max_layers]
        counts[min(open_places, key=lambda i: _stage_s(places[i], counts[i] + 1))] += 1
    while sum(counts) > num_layers:
        counts[max((i for i, n in enumerate(counts) if n > 1), key=lambda i: _stage_s(places[i], counts[i]))] -= 1
    return counts


def _share(p: Place, stage_s: float) -> float:
    return min(float(p.max_layers), max(0.0, (stage_s - p.extra_s) / p.layer_s))


def _stage_s(p: Place, num_layers: int) -> float:
    return p.extra_s + p.layer_s * num_layers


def _max_layers(model: ModelFacts, device: Device) -> int:
    return place(device, model, first=False, last=False).max_layers


def _roomiest_first(model: ModelFacts, devices: Sequence[Device]) -> list[Device]:
    return sorted(devices, key=lambda d: (-_max_layers(model, d), d.layer_time_s(model.manifest_hash), d.key))


def _places(model: ModelFacts, roomiest_first: Sequence[Device], span: LayerRange) -> list[Place]:
    """The devices in pipeline order. The two roomiest take the ends, which also hold the embedding or the head."""
    devices = [roomiest_first[0], *roomiest_first[2:], *roomiest_first[1:2]] if roomiest_first else []
    end = len(devices) - 1
    starts, stops = span.start == 0, span.stop == model.num_layers
    return [place(d, model, first=starts and i == 0, last=stops and i == end) for i, d in enumerate(devices)]


def _placements(places: Sequence[Place], span: LayerRange) -> list[Placement]:
    placements, start = [], span.start
    for p, count in zip(places, split_layers(len(span), places), strict=True):
        placements.append(Placement(p.device, LayerRange(start, start + count), _reason(p, count)))
        start += count
    return placements


def _reason(p: Place, count: int) -> str:
    bound = "all that fits" if count == p.max_layers else "its share by measured speed"
    return f"{count} layers, {bound}: {p.layer_s * 1e3:.3g} ms a layer, {p.max_layers} would fit"
