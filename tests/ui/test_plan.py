"""What is said before the first click."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from client.facts import DeviceFacts, Facts
from client.ui.plan import plan_of
from client.ui.preferences import Preferences
from protocol.pause import Hours, PauseMode, PauseRules
from tests.ui.facts_double import FACTS


def rows(facts: Facts | None, preferences: Preferences = Preferences(), is_looking: bool = False) -> dict[str, str]:
    return {row.label: row.text for row in plan_of(facts, is_looking, preferences).rows}


def test_it_says_what_is_downloaded_where_and_how_large() -> None:
    found = rows(FACTS)
    assert found["Uses"] == "NVIDIA GeForce RTX 4090, 24 GB"
    assert found["Downloads"] == "Once: what runs models, 2.9 GB, into /home/ada/.local/share/decentllm/runtime"
    assert found["Then"] == (
        "The layers that the pool gives you, up to 50 GB, into /home/ada/.local/share/decentllm/weights (81 GB free)"
    )


def test_a_runtime_that_is_ready_is_not_downloaded_again() -> None:
    found = rows(msgspec.structs.replace(FACTS, runtime_ready=True))
    assert found["Downloads"].startswith("The layers that the pool gives you")
    assert "Then" not in found


def test_the_own_folder_is_written_as_people_write_it() -> None:
    facts = msgspec.structs.replace(FACTS, runtime_folder=str(Path.home() / "x/runtime"))
    assert rows(facts)["Downloads"].endswith("into ~/x/runtime")


def test_without_facts_it_says_what_is_true_everywhere() -> None:
    assert rows(None, is_looking=True)["Uses"] == "Looking for your devices…"
    found = rows(None)
    assert found["Uses"] == "Your GPU. It is looked for when you start."
    assert found["Downloads"] == "Once: what runs models, a few GB"
    assert set(found) == {"Uses", "Downloads", "Then", "Pauses"}


def test_the_volunteers_limits_are_told() -> None:
    found = rows(FACTS, Preferences(max_memory_bytes=8 * 2**30, max_disk_bytes=20 * 10**9))
    assert found["Uses"].endswith("; at most 8 GB of memory")
    assert "up to 20 GB" in found["Then"]


def test_without_a_gpu_it_says_so() -> None:
    assert rows(Facts())["Uses"] == "This computer's processor: no GPU was found."


def test_many_devices_are_counted() -> None:
    facts = Facts(devices=(DeviceFacts("GPU", 2**33),) * 8)
    assert rows(facts)["Uses"] == "GPU, 8 GB, GPU, 8 GB, GPU, 8 GB, GPU, 8 GB and 4 more"


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        (PauseRules(), ("another program needs the GPU", "fills the screen", "on battery", "too hot")),
        (PauseRules(mode=PauseMode.WHEN_AWAY), ("you use the computer", "another program")),
        (PauseRules(programs=("blender",)), ("a program that you chose runs",)),
        (PauseRules(hours=Hours(0, 60)), ("Only in the hours that you chose.",)),
    ],
)
def test_it_says_when_it_pauses(rules: PauseRules, parts: tuple[str, ...]) -> None:
    text = rows(FACTS, Preferences(rules=rules))["Pauses"]
    assert text.startswith("By itself, when ")
    assert all(part in text for part in parts)


def test_always_means_always_but_for_heat() -> None:
    rules = PauseRules(mode=PauseMode.ALWAYS, run_on_battery=True)
    assert rows(FACTS, Preferences(rules=rules))["Pauses"] == "By itself, when it gets too hot."


def test_a_problem_and_a_tight_disk_are_told() -> None:
    facts = msgspec.structs.replace(FACTS, problem="The driver is too old.", free_disk_bytes=4 * 10**9)
    assert plan_of(facts, False, Preferences()).problem == ("The driver is too old. Only 4.0 GB are free on the disk.")
    assert plan_of(FACTS, False, Preferences()).problem == ""
