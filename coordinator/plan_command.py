"""`decentllm-coordinator plan`: asks the running pool who holds what and why, and prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.administration import opened, shown, table
from coordinator.api.plan_view import ForecastView, HolderView, LaneView, ModelPlanView, NewcomerView, PlanView
from coordinator.asking import ask
from coordinator.errors import PoolError

PLAN_PATH = "/api/operator/plan"
HARDLY = 0.01
"""A newcomer that changes less than this adds hardly anything."""


class PlanError(PoolError):
    """What was asked for is not in the plan."""

    def __init__(self, message: str) -> None:
        super().__init__("no_plan", message)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show. `explain`: "" for every node, else a node's name or the beginning of its id; None for none."""

    model: str | None = None
    explain: str | None = None
    as_json: bool = False


def plan(data_dir: Path, wanted: Wanted) -> str:
    """The running pool's plan as text. Raises ConfigError where no pool ever ran, NoAnswer where none runs now,
    PlanError where what is wanted is not there."""
    view = chosen(fetch(data_dir), wanted.model)
    if wanted.as_json:
        return msgspec.json.format(msgspec.json.encode(view)).decode()
    return plan_text(view) if wanted.explain is None else explanation(view, wanted.explain)


def chosen(view: PlanView, model: str | None) -> PlanView:
    """Only that model. Raises PlanError for one that is not planned."""
    if model is None:
        return view
    models = tuple(each for each in view.models if each.name == model)
    if not models:
        known = ", ".join(dict.fromkeys(shown(each.name) for each in view.models)) or "none"
        raise PlanError(f"There is no plan for a model {shown(model)!r}; planned: {known}.")
    return msgspec.structs.replace(view, models=models)


def fetch(data_dir: Path) -> PlanView:
    """The plan of the pool that runs in this folder. Raises ConfigError, StoreError, NoAnswer."""
    with opened(data_dir) as (accounts, site):
        return ask(data_dir, accounts, site, PLAN_PATH, PlanView)


# ---------------------------------------------------------------- the plan as text


def plan_text(view: PlanView) -> str:
    """All models with their lanes, then the devices without layers."""
    bound = f"{_duration(view.bound_tpot_s)} a token and {_duration(view.bound_ttft_s)} to the first"
    devices = _count(view.num_devices, "device")
    parts = [f"{shown(view.pool)}: {devices}. Throughput counts what keeps {bound}."]
    parts += ["\n".join(_model_lines(model)) for model in view.models]
    if not view.models:
        parts.append("Nothing is planned: no device has measured a model yet.")
    if view.idle:
        rows = [(shown(d.node), shown(d.device), d.part, shown(d.reason)) for d in view.idle]
        parts.append("Devices without a part in this:\n" + table(("NODE", "DEVICE", "STATE", "REASON"), rows))
    return "\n\n".join(parts)


def _model_lines(model: ModelPlanView) -> Iterator[str]:
    yield f"{shown(model.name)} ({model.variant}, {model.num_layers} layers)"
    if model.message:
        yield f"  {shown(model.message)}"
    yield f"  Together: {_lanes(model)}"
    yield f"  {_demand(model)}"
    yield f"  {newcomer_sentence(model)}"
    if rows := [*_rows(model.lanes), *_other_rows(model.others)]:
        yield table(("LANE", "LAYERS", "NODE", "DEVICE", "STATE", "REASON"), rows)
    for number, lane in enumerate(model.lanes, start=1):
        yield f"Lane {number}: {forecast_words(lane.forecast)}"


def _lanes(model: ModelPlanView) -> str:
    if model.forecast is None:
        return "no lane is complete."
    return f"{_count(len(model.lanes), 'lane')}, {forecast_words(model.forecast)}"


def _demand(model: ModelPlanView) -> str:
    floor = f"At least {_count(model.num_replicas, 'copy', 'copies')} by the operator's floor"
    if model.wanted_tokens_per_s is None:
        return f"{floor}; nobody has asked yet."
    return f"{floor}; {model.wanted_tokens_per_s:.1f} tokens/s are wanted."


def _rows(lanes: Sequence[LaneView]) -> Iterator[tuple[str, ...]]:
    for number, lane in enumerate(lanes, start=1):
        for stage in lane.stages:
            yield from (_row(str(number), holder) for holder in stage.holders)


def _other_rows(others: Iterable[HolderView]) -> Iterator[tuple[str, ...]]:
    return (_row("-", holder) for holder in others)


def _row(lane: str, holder: HolderView) -> tuple[str, ...]:
    return lane, holder.layers, shown(holder.node), shown(holder.device), holder.part, shown(holder.reason)


def forecast_words(forecast: ForecastView) -> str:
    """A forecast in a sentence."""
    return (
        f"{_duration(forecast.tpot_s)} per token, {_duration(forecast.ttft_s)} to the first, at most"
        f" {forecast.tokens_per_s:.1f} tokens/s, KV room for {_count(forecast.num_sessions, 'request')}."
    )


def newcomer_sentence(model: ModelPlanView) -> str:
    """What one more device would add."""
    new = model.newcomer
    device = f"One more device like {shown(new.like)} ({new.memory_bytes / 1e9:.1f} GB)"
    if new.num_needed:
        return f"{device} is not enough: a first lane needs {new.num_needed} of them."
    if new.num_needed is None:
        return f"{device} would not help: it can hold no layer of this model."
    if not new.layers:
        return f"{device} would stand by: {shown(new.reason)}."
    return f"{device} would take layers {new.layers} ({shown(new.reason)}): {_gain(model.forecast, new)}."


def _gain(before: ForecastView | None, new: NewcomerView) -> str:
    after = new.forecast
    if before is None or after is None:
        return "a first lane" if after else "no lane yet"
    changes = [
        _change(before.tokens_per_s, after.tokens_per_s, lambda rate: f"{rate:.1f} tokens/s"),
        _change(before.tpot_s, after.tpot_s, lambda seconds: f"{_duration(seconds)} per token"),
        _change(before.num_sessions, after.num_sessions, lambda number: f"KV room for {number:.0f}"),
    ]
    return ", ".join(change for change in changes if change) or "it would change hardly anything"


def _change(before: float, after: float, words: Callable[[float], str]) -> str:
    return f"{words(after)} instead of {words(before)}" if abs(after - before) > HARDLY * before else ""


# ---------------------------------------------------------------- why


def explanation(view: PlanView, node: str) -> str:
    """For each device of the node ("": of every node) why it holds what it holds. Raises PlanError for a node that is
    not there."""
    found = [d for d in _devices(view) if not node or node == d[1].node or d[1].node_id.startswith(node)]
    if not found:
        names = ", ".join(sorted({shown(holder.node) for _, holder in _devices(view)})[:20]) or "none"
        raise PlanError(f"No node is called {shown(node)!r}, and no id begins so; there are: {names}.")
    return "\n\n".join("\n".join(_why_lines(place, holder)) for place, holder in found)


def _devices(view: PlanView) -> Iterator[tuple[str, HolderView]]:
    """Every device, and what it is a part of."""
    for model in view.models:
        name = shown(model.name)
        for number, lane in enumerate(model.lanes, start=1):
            place = f"of {model.num_layers} of {name}, lane {number} of {len(model.lanes)}"
            yield from ((place, holder) for stage in lane.stages for holder in stage.holders)
        yield from ((f"of {model.num_layers} of {name}, in no lane", holder) for holder in model.others)
    yield from (("", holder) for holder in view.idle)


def _why_lines(place: str, holder: HolderView) -> Iterator[str]:
    layers = f"layers {holder.layers} {place}" if holder.layers and place else "no part of any lane"
    yield f"{shown(holder.node)} ({holder.node_id[:8]}), {shown(holder.device)}: {layers}, {holder.part}"
    yield f"  Why: {shown(holder.reason) or 'it came with these layers'}."
    yield from (f"  {shown(sentence)}" for sentence in holder.why)
    if holder.num_requests:
        yield f"  {_count(holder.num_requests, 'request')} run over it now."


def _duration(seconds: float) -> str:
    amount = seconds * 1e3
    return f"{seconds:.1f} s" if seconds >= 1 else f"{amount:.0f} ms" if amount >= 10 else f"{amount:.1f} ms"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
