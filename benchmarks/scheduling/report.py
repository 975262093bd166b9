"""The page docs/scheduling.md from the runs that compare.py wrote down.

    python -m benchmarks.scheduling.report FOLDER [--optimum FILE] [--speed FILE] [--changes FILE] [--write]

The files are what optimum.py, speed.py and the measurement of bytes moved printed; without one, its section stays as it
is. Pictures that pictures.py has drawn are shown; nothing that is not there is linked. What stands below the page's
last line, written by hand, is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept_rows import markdown_table
from benchmarks.machine import describe_machine
from benchmarks.scheduling import comparison
from benchmarks.scheduling.compare import EQUAL_LOAD, OURS
from benchmarks.scheduling.comparison import (
    ENOUGH_FINISHED,
    EqualLoad,
    Table,
    Throughput,
    compared,
    equal_loads,
    is_ablation,
    mean,
    others,
    throughput,
)
from benchmarks.scheduling.printed import as_printed, optimum_section, percent, speed_section
from benchmarks.scheduling.scenarios import SCENARIOS, WIDE
from coordinator.scheduler.cost import Bound
from coordinator.simulate.scenario import Scenario

PAGE = Path("docs/scheduling.md")
CLAIMS = Path("docs/claims.md")
BY_HAND = "<!-- From here on written by hand: --write keeps it. -->"
LEAST_RATIO, LEAST_MEAN_RATIO, LEAST_MEAN_GAIN = 1.0, 2.1, 0.38
"""Aims: throughput on every scenario and over the WAN scenarios, as multiples of the best other policy; latency."""
CAPTIONS = {
    "goodput.png": "Tokens per second answered within the bound, against the offered rate, on every scenario",
    "latency.png": "How long requests took at equal load: ours and the best other policy",
    "throughput.png": "Tokens per second over time at equal load: ours and the best other policy",
    "throughput-at-our-best.png": "Tokens per second over time at the rate that ours served most at",
}
"""Of pictures.py's files; maps are called by their policies."""

# ---------------------------------------------------------------- tables


def _spread(values: Sequence[float], percents: bool = False) -> str:
    """`1.50`, or of several seeds `1.50 (1.40 to 1.60)`."""
    each = [percent(v) if percents else f"{v:.2f}" for v in (mean(values), min(values), max(values))]
    return each[0] if len(values) == 1 else f"{each[0]} ({each[1]} to {each[2]})"


def throughput_table(tables: Mapping[str, Table]) -> str:
    policies = [OURS, *others({policy for table in tables.values() for policy in table})]
    figures = {name: throughput(table) for name, table in tables.items()}
    rows = [
        [
            name,
            *(_goodput(found, policy) for policy in policies),
            ", ".join(found.rivals),
            _spread(found.ratios),
            str(len(found.seeds)),
        ]
        for name, found in figures.items()
    ]
    text = markdown_table([["scenario", *policies, "best other", "ours / best other", "seeds"], *rows])
    if any(found.at_edge for found in figures.values()):
        text += "\n\n\\*: the best run was at the end of the rates tried, so that another rate might be better still."
    return text


def _goodput(found: Throughput, policy: str) -> str:
    if policy not in found.goodput:
        return "not run"
    return f"{found.goodput[policy]:,.0f}" + "\\*" * (policy in found.at_edge)


def latency_table(tables: Mapping[str, Table]) -> str:
    each = {name: equal_loads(table) for name, table in tables.items()}
    head = ["scenario", "requests/s", "of the best other's most", "ours, mean s", "p99 s"]
    head += ["best other", "mean s", "p99 s", "ours lower by", "seeds", "finished too few"]
    text = markdown_table([head, *(_latency_row(name, loads) for name, loads in each.items() if loads)])
    if missing := [name for name, loads in each.items() if not loads]:
        text += f"\n\nNot compared, since ours or all others finished too few there: {', '.join(missing)}."
    return text


def _latency_row(name: str, loads: Sequence[EqualLoad]) -> list[str]:
    def seconds(values: Sequence[float]) -> str:
        return f"{mean(values):.1f}"

    return [
        name,
        f"{mean([one.rate for one in loads]):.2f}",
        percent(mean([one.share for one in loads])),
        seconds([one.ours.latency_s for one in loads]),
        seconds([one.ours.latency_p99_s for one in loads]),
        ", ".join(dict.fromkeys(one.rival.policy for one in loads)),
        seconds([one.rival.latency_s for one in loads]),
        seconds([one.rival.latency_p99_s for one in loads]),
        _spread([one.gain for one in loads], percents=True),
        str(len(loads)),
        ", ".join(dict.fromkeys(policy for one in loads for policy in one.left_out)) or "-",
    ]


def aims_table(tables: Mapping[str, Table]) -> str:
    """What was aimed at and what was seen. A scenario that was not run, or on which no other policy served anything,
    is in no mean; the row says so."""
    figures = {name: throughput(table).figure for name, table in tables.items()}
    ratios = {name: figure for name, figure in figures.items() if figure != float("inf")}
    gains = {name: mean([one.gain for one in loads]) for name in tables if (loads := equal_loads(tables[name]))}
    wide, everywhere = [scenario.name for scenario in WIDE], list(SCENARIOS)
    aims = [
        Aim(
            f"throughput, mean over the WAN scenarios: at least {_times(LEAST_MEAN_RATIO)} the best other", wide, ratios
        ),
        Aim(f"throughput, every scenario: at least {_times(LEAST_RATIO)} the best other", everywhere, ratios),
        Aim(
            f"latency at equal load, mean over the WAN scenarios: at least {percent(LEAST_MEAN_GAIN)} lower",
            wide,
            gains,
        ),
    ]
    rows = [
        aims[0].row(_times, lambda values: mean(values) >= LEAST_MEAN_RATIO),
        aims[1].row(_times, lambda values: min(values) >= LEAST_RATIO),
        aims[2].row(percent, lambda values: mean(values) >= LEAST_MEAN_GAIN),
    ]
    return markdown_table([["aim", "mean", "worst", "best", "scenarios", ""], *rows])


@dataclass(frozen=True)
class Aim:
    """`wanted`: the scenarios that it is about; `figures`: of the scenarios that were compared."""

    text: str
    wanted: Sequence[str]
    figures: Mapping[str, float]

    def row(self, show: Callable[[float], str], is_reached: Callable[[Sequence[float]], bool]) -> list[str]:
        seen = {name: self.figures[name] for name in self.wanted if name in self.figures}
        missing = [name for name in self.wanted if name not in seen]
        num = f"{len(seen)} of {len(self.wanted)}" + (f" (without {', '.join(missing)})" if missing else "")
        if not seen:
            return [self.text, "-", "-", "-", num, "not measured"]
        values = list(seen.values())
        ends = [
            f"{show(seen[name])} ({name})"
            for name in (min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__))
        ]
        verdict = ("met" if is_reached(values) else "missed") + (" on those compared" if missing else "")
        return [self.text, show(mean(values)), *ends, num, verdict]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def ablations_table(tables: Mapping[str, Table], policies: Sequence[str]) -> str:
    """Tokens/s in the bound and per cent of ours; empty if none of these policies was run."""
    names = [name for name, table in tables.items() if any(policy in table for policy in policies)]
    rows = [[policy, *(_ablation(tables[name], policy) for name in names)] for policy in policies]
    return markdown_table([["", *names], *rows]) if names else ""


def _ablation(table: Table, policy: str) -> str:
    if policy not in table:
        return "not run"
    goodput, share = comparison.ablation(table, policy)
    return f"{goodput:,.0f} ({percent(share)})"


def scenarios_table(names: Sequence[str]) -> str:
    rows = [[name, *_traits(SCENARIOS[name])] for name in names]
    return markdown_table(
        [["scenario", "model", "nodes", "regions", "lines", "lengths", "arrivals", "nodes come and go"], *rows]
    )


def _traits(scenario: Scenario) -> list[str]:
    pool, traffic = scenario.pool, scenario.traffic
    models = ", ".join(model.name for model in scenario.models)
    return [
        models,
        f"{pool.num_nodes:,}",
        str(pool.num_regions),
        pool.access,
        traffic.lengths,
        traffic.arrivals,
        "no" if scenario.churn is None else "yes",
    ]


# ---------------------------------------------------------------- the page


@dataclass(frozen=True)
class Printed:
    """What other commands printed; empty if they were not run."""

    optimum: str = ""
    speed: str = ""
    changes: str = ""


def page(tables: Mapping[str, Table], printed: Printed, machine: str, page_path: Path) -> str:
    """docs/scheduling.md without its hand-written part. Links are relative to it, and only to what is there."""
    shown = compared(tables)
    drawn = page_path.with_suffix("")
    sections = [
        _introduction(page_path.parent / CLAIMS.name),
        _definitions(list(shown)),
        f"## Throughput within the bound\n\n{throughput_table(shown)}" + pictures(drawn, "goodput.png"),
        f"## Latency at equal load\n\n{latency_table(shown)}"
        + pictures(drawn, "latency.png", "throughput.png", "throughput-at-our-best.png"),
        f"## Against the aims\n\n{aims_table(shown)}{_not_run(tables, shown)}",
        _ablations(shown),
        _maps(drawn),
        *_printed_sections(printed, machine, page_path),
        _how(shown),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _printed_sections(printed: Printed, machine: str, page_path: Path) -> list[str]:
    """What other commands have printed, or the page says already."""
    there = page_path.read_text(encoding="utf-8") if page_path.exists() else ""
    made = {
        "Distance from the exact optimum": optimum_section(printed.optimum),
        "How long it takes": printed.speed and f"{machine}.\n\n{speed_section(printed.speed)}",
        "Bytes moved, and half of the nodes leaving": as_printed(printed.changes),
    }
    return [_section(title, text or _standing(there, title)) for title, text in made.items()]


def _standing(page_text: str, title: str) -> str:
    """What a page has under this heading."""
    found = page_text.partition(BY_HAND)[0].partition(f"## {title}\n")[2]
    return found.partition("\n## ")[0].strip()


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _introduction(claims: Path) -> str:
    bound = Bound()
    # A page that has not been measured yet has no name here: documents name only what is there.
    where = "in `docs/claims.md`" if claims.exists() else "another page, which `python -m benchmarks.claims` writes"
    return f"""# The scheduler against other systems' schedulers

Everything here is **simulated**: the pool's own scheduler object and policies of other systems, implemented from their
papers (`benchmarks/scheduling/baselines`), drive the same simulator (`coordinator/simulate`) over the same nodes, links
and users. What is measured with real processes is {where}.

Throughput has one definition (`coordinator/scheduler/cost.py`, `Bound`): tokens per second of the requests that were
answered with a first token within {bound.ttft_s:g} s and a mean time per token of at most {1000 * bound.tpot_s:g} ms. \
Each policy climbs the same ladder
of offered rates; its best rung counts. All see the same noisy measurements, and share the queue, the KV reservation and
the `Retry-After` of our dispatcher, which the originals do not have."""


def _definitions(names: Sequence[str]) -> str:
    return f"""## What is compared

- **Throughput in the bound**: of a policy, tokens per second of the requests answered within the bound, at whichever
  offered rate it is most. After the ladder each policy also tries rates around its own best rung.
- **Best other**: the policy with nothing of ours in it that served most, or at equal load answered soonest.
- **Latency at equal load**: mean time from a request to the end of its answer, at one offered rate for all: the one
  that asks for {EQUAL_LOAD:g} of what the best other policy served in the bound. A policy that finished less than
  {percent(ENOUGH_FINISHED)} of the arrivals is not compared by latency.
- **Several seeds**: each figure is a mean over seeds of that seed's best; ratios are of the same seed, against that
  seed's best other policy, with their least and most in brackets.
- What the hardware could serve at most on these scenarios is not known.

{scenarios_table(names)}"""


def _not_run(tables: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    missing = [name for name in SCENARIOS if name not in shown]
    partly = [name for name in missing if name in tables]
    said = f"\n\nNot compared: {', '.join(missing)}" if missing else ""
    return (
        said + (f" ({', '.join(partly)}: not with all policies and one seed)" if partly else "") + "." * bool(missing)
    )


def _ablations(tables: Mapping[str, Table]) -> str:
    """One table of halves, one of single things off."""
    found = sorted({policy for table in tables.values() for policy in table if is_ablation(policy)})
    parts = [
        ablations_table(tables, [policy for policy in found if "+" in policy]),
        ablations_table(tables, [policy for policy in found if "+" not in policy]),
    ]
    text = "\n\n".join(filter(None, parts))
    said = (
        "Half ours and half another's (first phase + second phase), and ours with one thing off: tokens per second in\n"
    )
    return _section("Ablations", text and f"{said}the bound, and per cent of ours.\n\n{text}")


def pictures(folder: Path, *names: str) -> str:
    """Those that are there, each as a paragraph, linked from the page beside the folder."""
    there = [(name, name.removesuffix(".png").replace("map-", "Layers and nodes: ")) for name in names]
    there = [(name, CAPTIONS.get(name, words)) for name, words in there if (folder / name).exists()]
    return "".join(f"\n\n![{words}]({folder.name}/{name})" for name, words in there)


def _maps(folder: Path) -> str:
    names = sorted((path.name for path in folder.glob("map-*.png")), key=lambda name: (name != f"map-{OURS}.png", name))
    return _section("Who holds which layers", pictures(folder, *names).strip())


def _how(tables: Mapping[str, Table]) -> str:
    """Seeds and commands."""
    files = ("optimum", "speed", "changes")
    options = "".join(f" --{name} {name}.txt" for name in files)
    policies = sorted({policy for table in tables.values() for policy in table if is_ablation(policy)})
    seeds = sorted({run.seed for table in tables.values() for runs in table.values() for run in runs})
    each_seed = " ".join(map(str, seeds))
    commands = [
        f"python -m benchmarks.scheduling.compare --out FOLDER --seeds {each_seed}",
        *(
            [f"python -m benchmarks.scheduling.compare --out FOLDER --policies {' '.join(policies)}"]
            if policies
            else []
        ),
        *(f"python -m benchmarks.scheduling.{name} > {name}.txt" for name in files),
        "python -m benchmarks.scheduling.pictures FOLDER --out docs/scheduling",
        f"python -m benchmarks.scheduling.report FOLDER{options} --write",
    ]
    lines = "\n".join(commands)
    return f"""## How to measure it again

{_seeds(tables)}
What is simulated is the same on any machine; only how long planning and routing take is not.

```
{lines}
```"""


def _seeds(tables: Mapping[str, Table]) -> str:
    """Scenarios by the seeds of their means."""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for name, table in tables.items():
        by_seeds.setdefault(comparison.common_seeds(table), []).append(name)
    each = [f"{', '.join(map(str, seeds))} ({', '.join(names)})" for seeds, names in by_seeds.items()]
    return f"Seeds: {'; '.join(each)}."


def by_hand(page_path: Path) -> str:
    """The page's hand-written end, with the line that begins it."""
    text = page_path.read_text(encoding="utf-8") if page_path.exists() else ""
    return BY_HAND + (text.partition(BY_HAND)[2] or "\n")


def main(argv: Sequence[str] | None = None, page_path: Path = PAGE) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where compare.py wrote its runs")
    for name in ("optimum", "speed", "changes"):
        parser.add_argument(f"--{name}", type=Path, help=f"what benchmarks.scheduling.{name} printed")
    parser.add_argument("--write", action="store_true", help=f"write the page to {PAGE}")
    arguments = parser.parse_args(argv)
    tables = comparison.read(arguments.folder)
    if not compared(tables):
        print(f"No scenario in {arguments.folder} was run with ours and another policy.", file=sys.stderr)
        return 2
    files = (arguments.optimum, arguments.speed, arguments.changes)
    printed = Printed(*(path.read_text(encoding="utf-8") if path else "" for path in files))
    text = page(tables, printed, describe_machine(), page_path)
    print(text)
    if arguments.write:
        page_path.write_text(f"{text}\n{by_hand(page_path)}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
