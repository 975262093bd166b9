"""Made-up runs of compare.py, for the tests of what is written about them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from benchmarks.scheduling.compare import Run

SCENARIO = "wan-70b4-64"


def run(
    policy: str,
    requests_per_s: float,
    goodput: float,
    *,
    seed: int = 0,
    latency_s: float = 10.0,
    num_finished: int = 100,
    share_in_bound: float = 1.0,
    scenario: str = SCENARIO,
) -> Run:
    """Of 100 arrivals."""
    return Run(
        scenario=scenario,
        policy=policy,
        seed=seed,
        requests_per_s=requests_per_s,
        goodput=goodput,
        tokens_per_s=goodput,
        latency_s=latency_s,
        latency_p99_s=3 * latency_s,
        ttft_s=1.0,
        tpot_s=0.1,
        share_in_bound=share_in_bound,
        num_arrived=100,
        num_finished=num_finished,
        num_refused=100 - num_finished,
        num_restarted=0,
        moved_bytes=0.0,
        cpu_s=1.0,
    )


def climbed(policy: str, goodput_at: Mapping[float, float], scenario: str = SCENARIO) -> list[Run]:
    """Goodput by rate."""
    return [run(policy, rate, goodput, scenario=scenario) for rate, goodput in goodput_at.items()]


OPTIMUM = """| pool | nodes | model | regions | optimum | bound | search gap | paper's gap | s |
|---|---|---|---|---|---|---|---|---|
| 0 | 4 | llama3-8b | 1 lan | 9.0 | +0.00% | 0.00% | 5.00% | 1.0 |
| 1 | 5 | llama3-8b | 1 lan | 9.0 | +0.00% | 2.00% | 5.00% | 1.0 |
  found 1+2:40
  best  1:40
"""


def sums(num_pools: int, mean_gap: float, worst_gap: float) -> str:
    gaps = {f"mean_{name}_gap": mean_gap for name in ("search", "paper", "bound")}
    gaps |= {f"worst_{name}_gap": worst_gap for name in ("search", "paper", "bound")}
    return json.dumps({"num_pools": num_pools, "num_complete": num_pools, "num_proven": num_pools, **gaps}) + "\n"
