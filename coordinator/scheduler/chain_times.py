"""What a step over a chain is expected to take, stage by stage and hop by hop: the prior of whoever waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.scheduler.candidates import stage_time
from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS, model_cost, prefill_s
from coordinator.scheduler.state import DeviceKey, State


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds: of a decode step with the rows of all who run there now, and of one row of a prompt."""

    step_s: float
    prompt_row_s: float

    def busy_s(self, num_prompt_rows: float) -> float:
        """Until so many rows of prompts have been computed, with decode rows beside each chunk of them."""
        num_steps = 1.0 + num_prompt_rows / PREFILL_CHUNK_TOKENS
        return num_steps * self.step_s + num_prompt_rows * self.prompt_row_s


@dataclass(frozen=True, slots=True)
class HopTimes:
    """Seconds from a stage to the next, one way, and per row."""

    delay_s: float
    row_s: float


@dataclass(frozen=True, slots=True)
class ChainTimes:
    """Head first; the last hop leads from the tail back to the head."""

    stages: tuple[StageTimes, ...]
    hops: tuple[HopTimes, ...]

    @property
    def ring_s(self) -> float:
        """Once around, without computing."""
        return sum(hop.delay_s for hop in self.hops)

    @property
    def step_s(self) -> float:
        """From one token to the next."""
        return self.ring_s + sum(stage.step_s for stage in self.stages)

    def prompt_s(self, num_rows: int) -> float:
        """From a prompt's arrival at the head to the token that follows it, if nobody else's prompt is computed."""
        each = [stage.prompt_row_s for stage in self.stages]
        return self.step_s + prefill_s(each, [hop.row_s for hop in self.hops[:-1]], num_rows)


def chain_times(state: State, manifest_hash: str, chain: Sequence[DeviceKey]) -> ChainTimes:
    """As measured so far. KeyError for a device that is not there."""
    devices = [state.devices[key] for key in chain]
    nodes = [key.node_id for key in chain]
    links = state.links
    stages, hops = [], []
    for device, following in zip(devices, [*nodes[1:], nodes[0]], strict=True):
        model = model_cost(state.models[manifest_hash], device.spec.variant)
        stage, node_id = stage_time(device, model), device.key.node_id
        step_s = stage.speed.step_time_s(stage.work, max(1, device.num_requests), last=stage.last)
        stages.append(StageTimes(step_s, stage.work * stage.speed.prefill_s))
        row_s = model.hidden_bytes / links.bytes_per_s(node_id, following)
        hops.append(HopTimes(links.delay_s(node_id, following), row_s))
    return ChainTimes(tuple(stages), tuple(hops))
