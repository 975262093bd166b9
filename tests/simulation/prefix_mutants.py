"""Planted bugs in what is cached of prompts: names that say too little, and prompts that begin at the wrong row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator import hedges as hedges_module
from coordinator import openings as openings_module
from coordinator import sessions as sessions_module
from coordinator.affinity import prefix_hashes
from tests.simulation.planting import Patch, mutant


@mutant
def names_of_blocks_ignore_the_tenant() -> Sequence[Patch]:
    return [(openings_module, "prefix_hashes", lambda tokens, tenant: prefix_hashes(tokens, tenant and "anybody"))]


@mutant
def names_of_blocks_ignore_the_tokens() -> Sequence[Patch]:
    return [(openings_module, "prefix_hashes", lambda tokens, tenant: prefix_hashes((0,) * len(tokens), tenant))]


@mutant
def a_prompt_begins_behind_what_one_stage_has() -> Sequence[Patch]:
    """Not behind what all have."""
    first_row = openings_module.first_row

    def most(num_log: int, num_kept: Any, num_cached: Any) -> int:
        return first_row(num_log, num_kept, dict.fromkeys(num_cached, max(num_cached.values(), default=0)))

    return [(sessions_module, "first_row", most), (hedges_module, "first_row", most)]
