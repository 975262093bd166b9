"""How fast devices really are: what live work took against what the benchmark at join promised."""

from __future__ import annotations

from coordinator.scheduler.cost import ModelCost, Speed, speed_of
from coordinator.scheduler.events import StepsSeen
from coordinator.scheduler.state import Device, DeviceKey
from protocol.values import LayerRange

MIN_STEPS = 8
"""Fewer forwards say too little: they wait for the next reports', or the slowest devices would never be seen."""
NEWEST_WEIGHT = 0.3
LEAST, MOST = 0.25, 20.0
"""Of a slowdown; what is beyond is a broken clock, or a broken device that other rules find."""
NEWS = 0.1
"""A relative change of so much is worth planning and routing anew."""
MAX_DEVICES = 50_000


class Speeds:
    """Keeps `Device.slowdown`, and what of it was announced."""

    def __init__(self) -> None:
        self._announced: dict[DeviceKey, float] = {}
        self._few: dict[DeviceKey, StepsSeen] = {}
        """What was reported of less than MIN_STEPS forwards so far."""

    def seen(self, device: Device, model: ModelCost, event: StepsSeen) -> bool:
        """Learn from a report of the slice that the device holds now; true when its speed is news.

        Too few forwards are kept until there are more; those of a slice that it does not hold change nothing."""
        manifest_hash = model.facts.manifest_hash
        if event.compute_s <= 0.0 or device.layers is None:
            return False
        if device.model != manifest_hash or event.generation != device.generation:
            return False
        event = self._with_few(event)
        if event.num_steps < MIN_STEPS:
            return False
        benchmark = device.benchmarks.get(manifest_hash)
        if benchmark is None:
            return False
        promised_s = expected_s(speed_of(benchmark), model, device.layers, event)
        ratio = min(max(event.compute_s / promised_s, LEAST), MOST)
        announced = self._announced.setdefault(device.key, device.slowdown)
        device.slowdown += NEWEST_WEIGHT * (ratio - device.slowdown)
        while len(self._announced) > MAX_DEVICES:
            del self._announced[next(iter(self._announced))]
        if abs(device.slowdown - announced) <= NEWS * announced:
            return False
        self._announced[device.key] = device.slowdown
        return True

    def _with_few(self, event: StepsSeen) -> StepsSeen:
        """With what was kept of this generation. If that is still too little, all of it is kept."""
        few = self._few.pop(event.device, None)
        if few is not None and few.generation == event.generation:
            event = StepsSeen(
                event.device,
                event.generation,
                few.num_steps + event.num_steps,
                few.num_decode_rows + event.num_decode_rows,
                few.num_prompt_tokens + event.num_prompt_tokens,
                few.compute_s + event.compute_s,
            )
        if event.num_steps < MIN_STEPS:
            self._few[event.device] = event
            while len(self._few) > MAX_DEVICES:
                del self._few[next(iter(self._few))]
        return event


def expected_s(speed: Speed, model: ModelCost, layers: LayerRange, event: StepsSeen) -> float:
    """What these forwards take at this speed.

    No more forwards than decode rows can have been decode steps; the others were for prompts alone. A short prompt
    takes as long as a step, for it reads the same weights."""
    num_decodes = min(event.num_steps, event.num_decode_rows)
    prompts_s = num_decodes * speed.step_s + event.num_prompt_tokens * speed.prefill_s
    layers_s = event.num_decode_rows * speed.row_s + max(event.num_steps * speed.step_s, prompts_s)
    head_s = event.num_steps * speed.head_s if layers.stop == model.num_layers else 0.0
    return model.work_of(layers) * layers_s + head_s
