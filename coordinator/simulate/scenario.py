"""What is simulated: a pool, its users, what happens to it. Read from TOML, strictly; every mistake is one sentence.

All times in seconds unless the name says otherwise. Every default is written once, here.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from coordinator.scheduler.cost import Bound
from coordinator.simulate.arrivals import ArrivalKind
from coordinator.simulate.errors import ScenarioError
from coordinator.simulate.geography import REGIONS, Access
from coordinator.simulate.hardware import CLASSES, Calibration
from coordinator.simulate.lengths import LENGTHS
from coordinator.simulate.models import MODELS

FOLDER = Path(__file__).parent / "scenarios"
"""Scenarios that come with the program."""

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Whole = Annotated[int, Meta(ge=1)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class ServedModel(_Table, frozen=True):
    """`share`: how much of the traffic asks for it, relative to the others. `num_replicas`: the operator's floor."""

    name: str
    share: Positive = 1.0
    num_replicas: Whole = 1


class Pool(_Table, frozen=True):
    """`mix`: kinds of devices and their shares, relative to each other; one device per node."""

    num_nodes: Annotated[int, Meta(ge=1, le=100_000)]
    mix: Mapping[str, Positive]
    num_regions: Annotated[int, Meta(ge=1, le=len(REGIONS))] = 1
    access: Access = "fibre"
    mirror_bits_per_s: Positive = 1e9
    """The coordinator's uplink for weights, shared by all downloads."""


class Traffic(_Table, frozen=True):
    """`burstiness` is for "gamma" arrivals: the coefficient of variation of the gaps."""

    requests_per_s: NotNegative
    arrivals: ArrivalKind = "poisson"
    burstiness: Positive = 2.0
    lengths: str = "sharegpt"
    num_tenants: Whole = 8


class Churn(_Table, frozen=True):
    """Volunteers that come and go. See churn.py for the model and its sources."""

    availability: Annotated[float, Meta(gt=0, lt=1)] = 0.68
    on_shape: Positive = 0.393
    on_scale_h: Positive = 2.964
    crash_share: Share = 0.2
    """Of the leaves, how many are without a word (power cut, lost network)."""
    day_swing: Share = 0.5
    """How much the return of nodes follows the local time of day."""


class Happening(_Table, frozen=True, tag_field="kind"):
    at_s: NotNegative


class Outage(Happening, frozen=True, tag="outage"):
    """A region is cut off: all its nodes crash, and come back together after `length_s`."""

    region: str
    length_s: Positive


class MassLeave(Happening, frozen=True, tag="mass-leave"):
    """A share of the nodes leaves for good, at random times within `within_s`."""

    share: Share = 0.5
    within_s: Positive = 60.0
    crash_share: Share = 0.5


class SlowDown(Happening, frozen=True, tag="slow-down"):
    """A share of the devices takes `factor` times as long: their owners use them."""

    share: Share
    factor: Positive
    length_s: Positive


class Degrade(Happening, frozen=True, tag="degrade"):
    """The lines of a share of the nodes get worse: uplink times `rate_factor`, and `delay_s` more each way."""

    share: Share
    length_s: Positive
    rate_factor: Positive = 1.0
    delay_s: NotNegative = 0.0


class Scenario(_Table, frozen=True):
    """`warm_up_s`: requests before it count for nothing. `drain_s`: how long unfinished answers may go on at the end.

    `cold_start`: nodes join, measure and download in true time; otherwise the pool is planned and ready at once."""

    name: str
    models: Annotated[tuple[ServedModel, ...], Meta(min_length=1)]
    pool: Pool
    traffic: Traffic
    description: str = ""
    duration_s: Positive = 900.0
    warm_up_s: NotNegative = 60.0
    drain_s: NotNegative = 300.0
    tick_s: Positive = 0.5
    report_s: Positive = 5.0
    """How often a busy device reports its live work."""
    lease_s: NotNegative = 4.5
    """How long a silent node is taken for alive."""
    starts_at_h: NotNegative = 9.0
    """Hour (UTC) at which the traffic begins: for the time of day of users and volunteers."""
    cold_start: bool = False
    churn: Churn | None = None
    happenings: tuple[Outage | MassLeave | SlowDown | Degrade, ...] = ()
    ttft_bound_s: Positive = Bound().ttft_s
    tpot_bound_s: Positive = Bound().tpot_s
    calibration: Calibration = Calibration()

    @property
    def bound(self) -> Bound:
        return Bound(self.ttft_bound_s, self.tpot_bound_s)

    def at_rate(self, requests_per_s: float) -> Scenario:
        """The same with other traffic."""
        return msgspec.structs.replace(
            self, traffic=msgspec.structs.replace(self.traffic, requests_per_s=requests_per_s)
        )

    def lasting(self, duration_s: float) -> Scenario:
        return msgspec.structs.replace(self, duration_s=duration_s, warm_up_s=min(self.warm_up_s, duration_s / 4))


# ---------------------------------------------------------------- reading


def preset_names() -> list[str]:
    """Scenarios that come with the program, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset(name: str) -> Scenario:
    """One of them. Raises ScenarioError."""
    if name not in preset_names():
        raise ScenarioError(f"There is no scenario {name[:60]!r}{_meant(name, preset_names())}.")
    return read_scenario(FOLDER / f"{name}.toml")


def read_scenario(path: Path) -> Scenario:
    """Raises ScenarioError, which names the file, the setting and what is wrong with it."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ScenarioError(f"Cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{path.name} must be UTF-8 text.") from None
    return parse_scenario(text, path.name)


def parse_scenario(text: str, file_name: str = "scenario") -> Scenario:
    """A file's content. Raises ScenarioError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{file_name} is not valid TOML: {error}.") from None
    try:
        scenario = msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{file_name}: {_sentence(str(error))}") from None
    if mistake := _mistake(scenario):
        raise ScenarioError(f"{file_name}: {mistake}")
    return scenario


def _mistake(scenario: Scenario) -> str:
    """What the types cannot say; empty if all is well."""
    regions = REGIONS[: scenario.pool.num_regions]
    named: list[tuple[str, str, Collection[str]]] = [
        *(("models.name", model.name, MODELS) for model in scenario.models),
        *(("pool.mix", name, CLASSES) for name in scenario.pool.mix),
        ("traffic.lengths", scenario.traffic.lengths, LENGTHS),
        *(("happenings.region", h.region, regions) for h in scenario.happenings if isinstance(h, Outage)),
    ]
    for setting, name, known in named:
        if name not in known:
            return f"{setting}: {name[:60]!r} is not known{_meant(name, known)}; there are {', '.join(sorted(known))}."
    if not scenario.pool.mix:
        return "pool.mix names no device."
    if len({model.name for model in scenario.models}) < len(scenario.models):
        return "models: one of them is there twice."
    if scenario.warm_up_s >= scenario.duration_s:
        return "warm_up_s must be shorter than duration_s."
    return ""


def _sentence(error: str) -> str:
    """msgspec's message, with the setting first: `pool.num_nodes: expected ...`."""
    what, _, where = error.partition(" - at `$")
    path = re.sub(r"\[\.\.\.\]", "", where.rstrip("`")).lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown:
        return f"{path + '.' if path else ''}{unknown[1]} is no setting."
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return f"{path + '.' if path else ''}{missing[1]} is missing."
    return f"{path}: {what[0].lower()}{what[1:]}." if path else f"{what}."


def _meant(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:60], known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
