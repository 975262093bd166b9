"""`plan`: what it prints, and what it says when there is nothing to print."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from coordinator.accounts import Role
from coordinator.api import plan_view as v
from coordinator.asking import NoAnswer
from coordinator.config import ConfigError
from coordinator.plan_command import PlanError, Wanted, fetch, plan, plan_text
from coordinator.scheduler.explain import Part
from tests.fakes.answering_pool import answering, make_folder

FORECAST = v.ForecastView(0.041, 0.8, 96.0, 14)


def holder(node: str, layers: str = "0-13", part: Part = Part.SERVING) -> v.HolderView:
    return v.HolderView(
        f"{node}0000beef", node, "cuda:0", "a GPU", part, layers, f"because {node}", ("It is quick.",), 2, 9
    )


NEWCOMER = v.NewcomerView(
    "ada's a GPU", 16 * 10**9, "0-13", "the narrowest stage", msgspec.structs.replace(FORECAST, tokens_per_s=120.0), 0
)
LANE = v.LaneView((v.StageView("0-13", (holder("ada"),)), v.StageView("14-27", (holder("bert", "14-27"),))), FORECAST)
MODEL = v.ModelPlanView("qwen", "bfloat16", 28, 2, 3.5, "", FORECAST, (LANE,), (holder("carl", "0-3"),), NEWCOMER)
VIEW = v.PlanView("Lab", 0.0, 4, 0.25, 10.0, (MODEL,), (holder("dora", "", Part.STANDBY),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def telling(folder: Path) -> AbstractContextManager[object]:
    return answering(folder, msgspec.json.encode(VIEW))


def test_it_asks_the_running_pool(folder: Path) -> None:
    with answering(folder, msgspec.json.encode(VIEW)) as asked:
        assert fetch(folder) == VIEW
    assert asked == [("/api/operator/plan", Role.OPERATOR)]


def test_where_no_pool_ran_or_none_runs_now_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No pool has run"):
        fetch(tmp_path / "elsewhere")
    with pytest.raises(NoAnswer, match="is not running: start it with"):
        fetch(folder)


# ---------------------------------------------------------------- printing


def test_lanes_have_their_stages_holders_reasons_and_figures() -> None:
    text = plan_text(VIEW)
    for words in (
        "Lab: 4 devices. Throughput counts what keeps 250 ms a token and 10.0 s to the first.",
        "qwen (bfloat16, 28 layers)",
        "1 lane, 41 ms per token, 800 ms to the first, at most 96.0 tokens/s, KV room for 14 requests.",
        "At least 2 copies by the operator's floor; 3.5 tokens/s are wanted.",
        "would take layers 0-13 (the narrowest stage): 120.0 tokens/s instead of 96.0 tokens/s.",
        "1     14-27   bert  a GPU   serving  because bert",
        "-     0-3     carl  a GPU   serving  because carl",
        "dora  a GPU   standby  because dora",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_needed": 3}, "is not enough: a first lane needs 3 of them"),
        ({"num_needed": None}, "can hold no layer"),
        ({"layers": "", "reason": "it would stand by"}, "would stand by"),
        ({"forecast": FORECAST}, "it would change hardly anything"),
    ],
)
def test_what_one_more_device_would_add_is_a_sentence(change: dict[str, object], words: str) -> None:
    model = msgspec.structs.replace(MODEL, newcomer=msgspec.structs.replace(NEWCOMER, **change))
    assert words in plan_text(msgspec.structs.replace(VIEW, models=(model,)))


def test_a_pool_without_lanes_says_what_is_missing() -> None:
    model = msgspec.structs.replace(MODEL, forecast=None, lanes=(), others=(), message="Layers 4-9 have no holder.")
    text = plan_text(msgspec.structs.replace(VIEW, models=(model,)))
    assert "Layers 4-9 have no holder." in text
    assert "no lane is complete" in text
    assert "Nothing is planned" in plan_text(msgspec.structs.replace(VIEW, models=()))


def test_a_node_is_explained_by_name_or_id_or_all_are(folder: Path) -> None:
    with telling(folder):
        by_name, by_id = plan(folder, Wanted(explain="ada")), plan(folder, Wanted(explain="ada0000"))
        everybody = plan(folder, Wanted(explain=""))
        with pytest.raises(PlanError, match=r"No node is called 'zoe'.*ada, bert, carl, dora"):
            plan(folder, Wanted(explain="zoe"))
    assert by_name == by_id
    assert "layers 0-13 of 28 of qwen, lane 1 of 1, serving" in by_name
    assert "Why: because ada.\n  It is quick.\n  2 requests run over it now." in by_name
    assert "dora0000" in everybody
    assert "in no lane" in everybody


def test_a_model_is_shown_alone_and_an_unknown_one_is_refused_by_name(folder: Path) -> None:
    with telling(folder):
        assert msgspec.json.decode(plan(folder, Wanted("qwen", as_json=True)), type=v.PlanView) == VIEW
        with pytest.raises(PlanError, match="no plan for a model 'other'; planned: qwen"):
            plan(folder, Wanted("other"))


def test_names_of_nodes_cannot_move_the_cursor() -> None:
    hostile = msgspec.structs.replace
    view = hostile(VIEW, idle=(hostile(VIEW.idle[0], node="\x1b[2J", reason="a\nb"),))
    assert "\x1b" not in plan_text(view)
    assert "a?b" in plan_text(view)
