"""The set of scenarios that policies are compared on. It was written before anything was measured on it.

10 to 1,000 nodes, 1 to 8 regions, models of the 8B to the 400B class, short and long prompts, even and bursty arrivals.
One was changed afterwards: the 400B class was a dense 405B model, which no chain of these cards can read within the
bound's 250 ms a token (228 GB at about 1 TB/s), so that every policy had nothing; it is the 400B mixture now.
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.simulate.scenario import Churn, Pool, Scenario, ServedModel, Traffic

VOLUNTEERS = {"laptop-8g": 15, "rtx3060-12g": 25, "rtx3090-24g": 20, "rtx4090-24g": 25, "rtx5090-32g": 15}
"""Home machines."""
CARDS = {"rtx3060-12g": 35, "rtx4090-24g": 35, "rtx5090-32g": 20, "a100-80g": 10}
"""The mix of PARALLAX.md, section 3: mostly consumers' cards, some of data centres."""
LARGE = {"rtx3090-24g": 35, "rtx4090-24g": 35, "rtx5090-32g": 20, "a100-80g": 10}
PAPER = {"rtx5090-32g": 5, "rtx4090-24g": 2}
"""Parallax's own test bed, by kinds (arXiv 2509.26182, section 4)."""
DURATION_S = 180.0
WARM_UP_S = 60.0


def _scenario(
    name: str,
    model: str,
    pool: Pool,
    traffic: Mapping[str, str | float] | None = None,
    churn: Churn | None = None,
) -> Scenario:
    return Scenario(
        name=name,
        models=(ServedModel(model),),
        pool=pool,
        traffic=Traffic(requests_per_s=1.0, **(traffic or {})),  # type: ignore[arg-type]
        duration_s=DURATION_S,
        warm_up_s=WARM_UP_S,
        drain_s=300.0,
        churn=churn,
    )


LONG = {"lengths": "azure-conversation"}
BURSTY: Mapping[str, str | float] = {"arrivals": "gamma", "burstiness": 2.0}

LOCAL = (
    _scenario("lan-8b-10", "llama3-8b", Pool(10, CARDS, 1, "lan")),
    _scenario("lan-32b-14", "qwen3-32b", Pool(14, PAPER, 1, "fibre")),
    _scenario("lan-70b4-32", "llama3-70b-4bit", Pool(32, CARDS, 1, "lan"), LONG),
)
"""One region."""
WIDE = (
    _scenario("wan-8b-24", "llama3-8b", Pool(24, VOLUNTEERS, 3, "home")),
    _scenario("wan-30ba3b-48", "qwen3-30b-a3b-4bit", Pool(48, VOLUNTEERS, 4, "mixed"), BURSTY),
    _scenario("wan-70b4-64", "llama3-70b-4bit", Pool(64, CARDS, 4, "fibre")),
    _scenario("wan-70b-100", "llama3-70b", Pool(100, LARGE, 5, "fibre"), LONG),
    _scenario("wan-120b-96", "gpt-oss-120b-mxfp4", Pool(96, VOLUNTEERS, 4, "mixed"), BURSTY),
    _scenario("wan-235b-160", "qwen3-235b-a22b-4bit", Pool(160, LARGE, 6, "fibre")),
    _scenario("wan-400b-256", "llama4-maverick-400b-4bit", Pool(256, LARGE, 8, "fibre"), BURSTY),
    _scenario("wan-70b4-1000", "llama3-70b-4bit", Pool(1000, CARDS, 8, "mixed"), churn=Churn()),
)
"""Several regions: what the aims for WAN are about."""
SCENARIOS = {scenario.name: scenario for scenario in (*LOCAL, *WIDE)}
