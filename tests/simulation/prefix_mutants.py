"""Planted bugs in what is cached of prompts: names that say too little, and prompts that begin at the wrong row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from client.agent.switch import Leg
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
        return first_row(num_log, num_kept, dict.fromkeys(num_cached, max(num_cached.values())))

    return [(sessions_module, "first_row", most), (hedges_module, "first_row", most)]


@mutant
def a_cached_prompt_is_sent_from_the_next_block_on() -> Sequence[Patch]:
    first_row = openings_module.first_row

    def late(num_log: int, num_kept: Any, num_cached: Any) -> int:
        first = first_row(num_log, num_kept, num_cached)
        return min(num_log - 1, first + openings_module.KV_BLOCK_TOKENS) if first and not num_kept[0] else first

    return [(sessions_module, "first_row", late)]


@mutant
def an_agent_lets_rows_begin_anywhere() -> Sequence[Patch]:
    """Whatever its worker has said."""
    return [(Leg, "takes", lambda self, position: position >= self.next_position)]
