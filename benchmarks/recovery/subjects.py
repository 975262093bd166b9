"""The models that rows are measured with: a real one, and one that shows what the pool itself takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims.tiny_model import NUM_LAYERS as NUM_LAYERS_OF_TINY
from benchmarks.claims.tiny_model import make_tiny_model
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.pools import NUM_LAYERS

TINY, REAL = "tiny", "real"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model by a short name, its folder and how many layers it has."""

    name: str
    folder: Path
    num_layers: int


def real(effort: Effort) -> Subject:
    return Subject(REAL, effort.model, NUM_LAYERS)


def tiny(effort: Effort) -> Subject:
    """Computing it costs next to nothing, so that what is left of a time is the pool's own."""
    return Subject(TINY, make_tiny_model(effort.scratch / "wide-rows"), NUM_LAYERS_OF_TINY)
