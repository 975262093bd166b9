"""What will happen when the volunteer says yes, told before: devices, downloads, pauses. Pure, free of Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.config import MAX_DISK_BYTES
from client.facts import DeviceFacts, Facts
from client.ui.preferences import Preferences
from client.ui.text import (
    MAX_NAME_CHARACTERS,
    MAX_SENTENCE_CHARACTERS,
    clean,
    format_bytes,
    format_limit,
    format_memory,
)
from protocol.pause import DEFAULT_RULES, PauseMode

MAX_FOLDER_CHARACTERS = 90
MAX_SHOWN_DEVICES = 4
_TIGHT_DISK_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class PlanRow:
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`problem`: what the volunteer should know before, as one or more sentences; empty: nothing."""

    rows: tuple[PlanRow, ...]
    problem: str = ""


def plan_of(facts: Facts | None, is_looking: bool, preferences: Preferences) -> Plan:
    """Without facts (still looking, or they could not be had) it says what is true of every machine."""
    rows = (
        PlanRow("Uses", _devices_text(facts, is_looking, preferences)),
        *_download_rows(facts, preferences),
        PlanRow("Pauses", pauses_text(preferences)),
    )
    return Plan(rows, "" if facts is None else _problem(facts))


def _devices_text(facts: Facts | None, is_looking: bool, preferences: Preferences) -> str:
    if facts is None:
        return "Looking for your devices…" if is_looking else "Your GPU. It is looked for when you start."
    if not facts.devices:
        return "This computer's processor: no GPU was found."
    shown = [_device_text(device) for device in facts.devices[:MAX_SHOWN_DEVICES]]
    more = len(facts.devices) - len(shown)
    text = ", ".join(shown) + (f" and {more} more" if more else "")
    limit = preferences.max_memory_bytes
    return (
        f"{text}; at most {format_memory(limit)} of memory{' each' if len(facts.devices) > 1 else ''}"
        if limit
        else text
    )


def _device_text(device: DeviceFacts) -> str:
    name = clean(device.name, MAX_NAME_CHARACTERS) or "Unnamed device"
    return f"{name}, {format_memory(device.memory_bytes)}" if device.memory_bytes else name


def _download_rows(facts: Facts | None, preferences: Preferences) -> tuple[PlanRow, ...]:
    layers = f"The layers that the pool gives you, up to {format_limit(preferences.max_disk_bytes or MAX_DISK_BYTES)}"
    if facts is None:
        return PlanRow("Downloads", "Once: what runs models, a few GB"), PlanRow("Then", layers)
    free = f" ({format_limit(facts.free_disk_bytes)} free)" if facts.free_disk_bytes else ""
    layers += f", into {_folder(facts.weights_folder)}{free}" if facts.weights_folder else free
    if facts.runtime_ready:
        return (PlanRow("Downloads", layers),)
    size = f", {format_bytes(facts.runtime_bytes)}" if facts.runtime_bytes else ""
    folder = f", into {_folder(facts.runtime_folder)}" if facts.runtime_folder else ""
    return PlanRow("Downloads", f"Once: what runs models{size}{folder}"), PlanRow("Then", layers)


def _folder(folder: str) -> str:
    """As people write it: the own folder is `~`."""
    home = str(Path.home())
    is_within = len(home) > 1 and folder.startswith(home + "/")
    return clean(f"~{folder[len(home) :]}" if is_within else folder, MAX_FOLDER_CHARACTERS)


def pauses_text(preferences: Preferences) -> str:
    """When it gives the GPU back by itself. You always can by hand."""
    rules = preferences.rules
    mode = rules.mode or DEFAULT_RULES.mode or PauseMode.WHEN_FREE
    parts = {
        PauseMode.ALWAYS: [],
        PauseMode.WHEN_FREE: ["another program needs the GPU", "a game or film fills the screen"],
        PauseMode.WHEN_AWAY: ["you use the computer", "another program needs the GPU"],
    }[mode]
    parts += ["a program that you chose runs"] if rules.programs else []
    parts += [] if rules.run_on_battery else ["the computer runs on battery"]
    parts += ["it gets too hot"]
    hours = " Only in the hours that you chose." if rules.hours is not None else ""
    return f"By itself, when {', '.join(parts[:-1])}{' or ' if parts[:-1] else ''}{parts[-1]}.{hours}"


def _problem(facts: Facts) -> str:
    told = clean(facts.problem, MAX_SENTENCE_CHARACTERS)
    needed = 0 if facts.runtime_ready else facts.runtime_bytes
    is_tight = 0 < facts.free_disk_bytes < needed + _TIGHT_DISK_BYTES
    free = f"Only {format_bytes(facts.free_disk_bytes)} are free on the disk." if is_tight else ""
    return " ".join(part for part in (told, free) if part)
