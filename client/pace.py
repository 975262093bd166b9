"""Slower hardware than this, for benchmarks that play many unequal nodes on one machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"([0-9]{1,6}(?:\.[0-9]{1,9})?)"
_PACE = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER}\Z")


@dataclass(frozen=True, slots=True)
class Pace:
    """The least that a forward takes, in milliseconds per layer: for itself, per decode row and per prompt row."""

    step_ms: float
    row_ms: float
    prefill_ms: float

    def least_s(self, num_layers: int, num_decode_rows: int, num_prompt_rows: int) -> float:
        """Of a forward over so many layers, in seconds."""
        layer_ms = self.step_ms + num_decode_rows * self.row_ms + num_prompt_rows * self.prefill_ms
        return num_layers * layer_ms / 1000

    def __str__(self) -> str:
        return ",".join(f"{part:.9f}".rstrip("0").rstrip(".") for part in (self.step_ms, self.row_ms, self.prefill_ms))


def parse_pace(text: str) -> Pace:
    """From STEP_MS,ROW_MS,PREFILL_MS; raises ValueError with one sentence."""
    match = _PACE.match(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no pace; write it like 2,0.5,0.1: milliseconds per layer, row, prompt row")
    step_ms, row_ms, prefill_ms = map(float, match.groups())
    return Pace(step_ms, row_ms, prefill_ms)
