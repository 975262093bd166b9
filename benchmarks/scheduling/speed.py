"""How long planning and routing take: phase 1 from scratch, local repair, and the chain of one request.

    python -m benchmarks.scheduling.speed

Each figure is over several runs after one to warm up; garbage collection waits meanwhile. The process stays on one CPU
where the system allows that. Worlds are those of worlds.py, seed 0; links come from a real link map that has measured
eight links of every node.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from benchmarks.scheduling.worlds import World, measured_links, problem_of_world, ready_state
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.plan import Lane, Offer, Problem
from coordinator.scheduler.policy import RouteRequest
from coordinator.scheduler.repair import repair
from coordinator.scheduler.routing import ChainRouter, exact_chain
from coordinator.scheduler.state import State
from coordinator.simulate.hardware import VARIANT
from protocol.values import SessionId

SIZES = (256, 1_000, 10_000)
NUM_RUNS = 9
NUM_REQUESTS = 200
NUM_EXACT = 3
"""Requests whose chain is compared with the unpruned optimum: that takes seconds each at 1,000 nodes."""
MOST_EXACT_NODES = 1_000
"""The unpruned optimum looks at every pair of devices: a hundred times as many at 10,000 nodes."""
NUM_TOKENS = 512
NUM_REGIONS = 4
MOST_REPAIRS = 20
MODELS = ("llama3-70b-4bit", "llama3-8b")


@dataclass(frozen=True)
class Timing:
    """Milliseconds. `note` says what came out, so that a figure is never that of doing nothing."""

    what: str
    num_nodes: int
    p50_ms: float
    p90_ms: float
    num_runs: int
    note: str = ""


def timed(run: Callable[[], object], num_runs: int) -> list[float]:
    """Milliseconds of each run, after one that does not count."""
    run()
    gc.collect()
    gc.disable()
    try:
        return [_once(run) for _ in range(num_runs)]
    finally:
        gc.enable()


def _once(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start_s)


def timing(what: str, num_nodes: int, runs_ms: Sequence[float], note: str = "") -> Timing:
    """Median and ninth decile."""
    p90_ms = float(np.percentile(runs_ms, 90))
    return Timing(what, num_nodes, statistics.median(runs_ms), p90_ms, len(runs_ms), note)


def world_of(num_nodes: int, model: str) -> World:
    """Home and fibre lines in four regions; a mix of cards."""
    return World(num_nodes, model, NUM_REGIONS, "mixed", seed=0)


def phase_1(problem: Problem, budget: int, num_runs: int) -> tuple[Timing, tuple[Lane, ...]]:
    """LaneAllocator().layout from scratch."""
    problem = replace(problem, budget=budget)
    allocator = LaneAllocator()
    lanes = allocator.layout(problem)
    runs_ms = timed(lambda: allocator.layout(problem), num_runs)
    name = f"phase 1, {problem.model.facts.name}, budget {budget}"
    return timing(name, len(problem.offers), runs_ms, f"{len(lanes)} lanes"), lanes


def held_problem(problem: Problem, lanes: Sequence[Lane]) -> Problem:
    """The same when all lanes serve."""
    held = {i: stage.layers for lane in lanes for stage in lane.stages for i in stage.holders}
    offers = (replace(offer, held=held.get(i)) for i, offer in enumerate(problem.offers))
    return replace(problem, offers=tuple(offers))


def at_rest(problem: Problem) -> Problem:
    """After repairs have put to use whatever the plan had left over."""
    allocator = LaneAllocator()
    for _ in range(MOST_REPAIRS):
        placements = {placement.key: placement.layers for placement in repair(problem, allocator)}
        if not placements:
            break
        offers = (replace(o, held=placements.get(o.key, o.held)) for o in problem.offers)
        problem = replace(problem, offers=tuple(offers))
    return problem


def repairs(problem: Problem, lanes: Sequence[Lane], num_runs: int) -> list[Timing]:
    """A holder of the middle lane leaves; and one that was free, or left, comes."""
    held = at_rest(held_problem(problem, lanes))
    gone = lanes[len(lanes) // 2].stages[0].holders[0]
    left = replace(held, offers=_without(held.offers, gone))
    came = replace(held, offers=(*_without(held.offers, gone), replace(held.offers[gone], held=None)))
    allocator = LaneAllocator()
    found = []
    for what, changed in (("repair, one left", left), ("repair, one came", came)):
        placements = repair(changed, allocator)
        runs_ms = timed(lambda changed=changed: repair(changed, allocator), num_runs)  # type: ignore[misc]
        found.append(timing(what, len(problem.offers), runs_ms, f"{len(placements)} placements"))
    return found


def _without(offers: Sequence[Offer], gone: int) -> tuple[Offer, ...]:
    return (*offers[:gone], *offers[gone + 1 :])


def phase_2(problem: Problem, lanes: Sequence[Lane], num_requests: int, num_exact: int) -> Timing:
    """ChainRouter.route, each request's load counted as soon as it is chosen."""
    state = ready_state(problem, lanes)
    router = ChainRouter(state)
    for device in state.devices.values():
        router.changed(device)
    router.route(_request(problem, 0), VARIANT, 0.0)
    runs_ms, missed = [], []
    for number in range(1, num_requests + 1):
        request, now_s = _request(problem, number), number / 100
        if number <= num_exact:
            missed.append(_distance(state, router, request, now_s))
        start_s = time.perf_counter()
        route = router.route(request, VARIANT, now_s)
        runs_ms.append(1000 * (time.perf_counter() - start_s))
        for device in route.devices if route else ():
            device.num_requests += 1
            device.num_reserved_tokens += request.num_reserved_tokens
            router.changed(device)
    note = f"{max(missed):.1%} from the unpruned optimum at most" if missed else ""
    return timing(f"phase 2, {problem.model.facts.name}", len(problem.offers), runs_ms, note)


def _distance(state: State, router: ChainRouter, request: RouteRequest, now_s: float) -> float:
    """How much slower a token of the router's chain is expected than one of the unpruned optimum's."""
    exact, route = exact_chain(state, request, VARIANT, now_s), router.route(request, VARIANT, now_s)
    if exact is None or route is None:
        return float(exact is not None or route is not None)
    cost_s = chain_cost(state, request, route.devices, now_s)
    return max(0.0, cost_s / exact[0] - 1.0)


def chain_cost(state: State, request: RouteRequest, devices: Sequence[object], now_s: float) -> float:
    """What this chain costs in the router's own terms: the optimum over its devices alone."""
    own = State(models=state.models, links=state.links)
    own.devices.update({key: device for key, device in state.devices.items() if device in devices})
    found = exact_chain(own, request, VARIANT, now_s)
    for key, device in own.devices.items():
        state.devices[key] = device
    assert found is not None, "the router's chain is one"
    return found[0]


def _request(problem: Problem, number: int) -> RouteRequest:
    session = SessionId(f"{number:032x}")
    return RouteRequest(session, problem.model.facts.manifest_hash, NUM_TOKENS, NUM_TOKENS // 2, 2 * NUM_TOKENS)


def pin() -> None:
    """To the last CPU that this process may use; not everywhere is there such a thing."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure(sizes: Sequence[int], num_runs: int, num_requests: int, num_exact: int) -> list[Timing]:
    """All figures."""
    found = []
    for num_nodes in sizes:
        for model in MODELS:
            world = world_of(num_nodes, model)
            problem = replace(problem_of_world(world), links=measured_links(world))
            for budget in (0, problem.budget):
                figure, lanes = phase_1(problem, budget, num_runs)
                found.append(figure)
            if lanes:
                found += repairs(problem, lanes, num_runs)
                found.append(phase_2(problem, lanes, num_requests, num_exact * (num_nodes <= MOST_EXACT_NODES)))
            print(f"{num_nodes:,} nodes, {model}: done", file=sys.stderr, flush=True)
    return found


def table(timings: Sequence[Timing]) -> str:
    """In markdown."""
    lines = ["| what | nodes | p50 ms | p90 ms | runs | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {t.what} | {t.num_nodes} | {t.p50_ms:.2f} | {t.p90_ms:.2f} | {t.num_runs} | {t.note} |" for t in timings
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--num-runs", type=int, default=NUM_RUNS)
    parser.add_argument("--num-requests", type=int, default=NUM_REQUESTS)
    parser.add_argument("--num-exact", type=int, default=NUM_EXACT)
    arguments = parser.parse_args()
    pin()
    timings = measure(arguments.sizes, arguments.num_runs, arguments.num_requests, arguments.num_exact)
    print(table(timings))
    print(json.dumps([asdict(t) for t in timings]))


if __name__ == "__main__":
    main()
