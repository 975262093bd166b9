"""A problem's offers as columns, and many lanes side by side as flat arrays: what the vectorised parts work on.

Planning tries thousands of lanes; one numpy operation over all of them costs what one lane costs in plain Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduler.cost import Workload
from coordinator.scheduler.plan import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

Sketch = tuple[tuple[int, ...], ...]
"""A lane without layers: for each stage, head first, the offers that hold it."""


@dataclass(frozen=True, slots=True)
class ModelTable:
    """What the vectorised parts need of model, workload and bound, as scalars. Layers count as equal here; whatever
    they differ by is settled when the cuts are made exact (filling.py)."""

    num_layers: int
    weight_bytes: float
    """Of one layer, the largest."""
    kv_token_bytes: float
    """Of one layer and one reserved token."""
    work: float
    """Per layer, the mean."""
    embedding_bytes: float
    head_bytes: float
    hidden_bytes: float
    kv_floor_tokens: float


@dataclass(frozen=True, slots=True)
class OfferTable:
    """One entry per offer."""

    memory: Floats
    max_layers: Floats
    step_s: Floats
    row_s: Floats
    prefill_s: Floats
    head_s: Floats
    rows: Ints
    """Rows in the link map."""
    regions: Ints
    uploads: Floats
    """Bytes per second."""


def model_table(problem: Problem) -> ModelTable:
    """Sizes of a mean layer, except for weights: memory must never run out."""
    model, reserved = problem.model, problem.workload.num_reserved_tokens
    num_layers = model.num_layers
    kv_all = model.kv_prefix(reserved)[-1]
    return ModelTable(
        num_layers=num_layers,
        weight_bytes=_equal_layer_bytes(problem),
        kv_token_bytes=kv_all / num_layers / reserved,
        work=model.work[-1] / num_layers,
        embedding_bytes=model.embedding_bytes,
        head_bytes=model.head_bytes,
        hidden_bytes=float(model.hidden_bytes),
        kv_floor_tokens=float(problem.kv_floor_tokens),
    )


def _equal_layer_bytes(problem: Problem) -> float:
    return problem.model.weights[-1] / problem.model.num_layers


def offer_table(problem: Problem) -> OfferTable:
    """Columns of `problem.offers`."""
    offers, links = problem.offers, problem.links
    columns = np.array(
        [
            (o.memory_bytes, o.max_layers, o.speed.step_s, o.speed.row_s, o.speed.prefill_s, o.speed.head_s)
            for o in offers
        ],
        dtype=np.float64,
    ).reshape(len(offers), 6)
    rows = np.fromiter((links.row(o.key.node_id) for o in offers), dtype=np.intp, count=len(offers))
    memory, max_layers, step_s, row_s, prefill_s, head_s = columns.T
    regions, uploads = links.regions(rows), links.uploads(rows)
    return OfferTable(memory, max_layers, step_s, row_s, prefill_s, head_s, rows, regions, uploads)


@dataclass(frozen=True, slots=True)
class LaneBatch:
    """Lanes side by side. Holders, stages and lanes are flat; `*_starts` are where each stage's holders, and each
    lane's stages, begin (for `reduceat`)."""

    holders: Ints
    stage_starts: Ints
    """[stages] into `holders`."""
    lane_starts: Ints
    """[lanes] into stages."""
    lane_of: Ints
    """[stages]"""
    stage_of: Ints
    """[holders]"""
    lane_of_holder: Ints
    """[holders]"""
    holder_starts: Ints
    """[lanes] into `holders`."""
    num_holders: Floats
    """[stages]"""
    num_stages: Ints
    """[lanes]"""
    is_first: Bools
    is_last: Bools
    """[stages]"""

    @property
    def is_plain(self) -> bool:
        """Whether each stage has one holder: then what holders have is what stages have."""
        return len(self.holders) == len(self.num_holders)

    def least_of_stages(self, values: Floats) -> Floats:
        """[stages], of what holders have."""
        return values if self.is_plain else np.asarray(np.minimum.reduceat(values, self.stage_starts))


def lane_batch(sketches: Sequence[Sketch]) -> LaneBatch:
    """Lay lanes out side by side; each has at least one stage, each stage at least one holder."""
    stages = list(chain.from_iterable(sketches))
    num_holders = [len(stage) for stage in stages]
    num_stages = [len(sketch) for sketch in sketches]
    holders = np.fromiter(chain.from_iterable(stages), dtype=np.intp, count=sum(num_holders))
    stage_starts = np.array([0, *accumulate(num_holders)][:-1], dtype=np.intp)
    lane_starts = np.array([0, *accumulate(num_stages)][:-1], dtype=np.intp)
    counts = np.array(num_stages, dtype=np.intp)
    is_first, is_last = np.zeros(len(stages), dtype=bool), np.zeros(len(stages), dtype=bool)
    is_first[lane_starts] = True
    is_last[lane_starts + counts - 1] = True
    lane_of = np.repeat(np.arange(len(sketches)), counts)
    return LaneBatch(
        holders=holders,
        stage_starts=stage_starts,
        lane_starts=lane_starts,
        lane_of=lane_of,
        stage_of=np.repeat(np.arange(len(stages)), num_holders),
        lane_of_holder=np.repeat(lane_of, num_holders),
        holder_starts=stage_starts[lane_starts],
        num_holders=np.array(num_holders, dtype=np.float64),
        num_stages=counts,
        is_first=is_first,
        is_last=is_last,
    )


def repeated(batch: LaneBatch, num: int) -> LaneBatch:
    """The same lanes so many times over, to try something else with each copy in one go."""
    if num == 1:
        return batch

    def shifted(indices: Ints, size: int) -> Ints:
        return np.asarray((indices + size * np.arange(num)[:, None]).ravel())

    num_holders, num_stages, num_lanes = len(batch.holders), len(batch.num_holders), len(batch.num_stages)
    return LaneBatch(
        holders=np.tile(batch.holders, num),
        stage_starts=shifted(batch.stage_starts, num_holders),
        lane_starts=shifted(batch.lane_starts, num_stages),
        lane_of=shifted(batch.lane_of, num_lanes),
        stage_of=shifted(batch.stage_of, num_stages),
        lane_of_holder=shifted(batch.lane_of_holder, num_lanes),
        holder_starts=shifted(batch.holder_starts, num_holders),
        num_holders=np.tile(batch.num_holders, num),
        num_stages=np.tile(batch.num_stages, num),
        is_first=np.tile(batch.is_first, num),
        is_last=np.tile(batch.is_last, num),
    )


def wanted_rate(workload: Workload, bound_tpot_s: float, num_devices: int) -> float:
    """Tokens per second that people want, or, while nobody has asked yet, one reader per device, as volunteers are
    users."""
    if workload.tokens_per_s is not None:
        return workload.tokens_per_s
    return num_devices / bound_tpot_s
