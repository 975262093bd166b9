"""How much is measured, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Effort:
    """`model` is the real model's folder, `scratch` one for pools and logs. `is_small`: to see that it works."""

    seed: int
    model: Path
    scratch: Path
    is_small: bool = False

    def most(self, num: int) -> int:
        """So many; where only a few are wanted, two."""
        return min(num, 2) if self.is_small else num
