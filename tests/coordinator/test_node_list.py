"""`nodes`: who has joined, and what was found of them."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from coordinator.accounts import Accounts
from coordinator.api.operator_view import overview
from coordinator.api.plan_view import PlanBoard
from coordinator.config import DATABASE_NAME
from coordinator.node_list import OVERVIEW_PATH, NodeTroubles, Overview, node_list
from coordinator.store import Store
from shell.clock import SystemClock
from shell.randomness import SystemRandom
from tests.fakes import pool_facts as facts
from tests.fakes.answering_pool import answering, make_folder
from tests.fakes.api_driver import running_api, speaker
from tests.fakes.virtual_loop import on_virtual_time

ADA, BOB = facts.node_id(1), facts.node_id(2)
FOUND = Overview((NodeTroubles(ADA, {"hangs": 2, "silent": 0, "cut": 1}), NodeTroubles(BOB, {"hangs": 0})))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a pool that two machines have joined; one was removed."""
    make_folder(tmp_path)
    with closing(Store.open(tmp_path / DATABASE_NAME)) as store:
        accounts = Accounts(store, SystemRandom(), SystemClock().wall)
        accounts.admit_node(ADA, "b" * 64, "ada", None, is_open=True)
        accounts.admit_node(BOB, "d" * 64, "bob", None, is_open=True)
        accounts.block_node(BOB)
    return tmp_path


def test_a_running_pool_adds_what_it_found_of_each_machine(folder: Path) -> None:
    with answering(folder, msgspec.json.encode(FOUND)) as asked:
        text, missing = node_list(folder)
    assert [path for path, _ in asked] == [OVERVIEW_PATH]
    assert not missing
    head, *rows = text.splitlines()
    begin = head.index("TROUBLES")
    assert {row[:32].strip(): row[begin:].split("  ")[0] for row in rows} == {ADA: "hangs 2, cut 1", BOB: ""}
    assert next(row for row in rows if row.startswith(BOB)).endswith("removed")


def test_a_pool_that_does_not_run_has_found_nothing(folder: Path) -> None:
    text, missing = node_list(folder)
    assert "TROUBLES" not in text
    assert "ada" in text
    assert not missing


def test_the_list_is_there_though_a_running_pool_does_not_say_what_it_found(folder: Path) -> None:
    with answering(folder, b"busy", status=503):
        text, missing = node_list(folder)
    assert "TROUBLES" not in text
    assert "ada" in text
    assert "HTTP status 503" in missing


@on_virtual_time
async def test_it_reads_what_the_operators_page_is_told() -> None:
    async with running_api(speaker()) as api:
        api.pool.hub.core.lateness.troubles[ADA] = Counter(hangs=2)
        told = await overview(api.services, PlanBoard(api.pool.hub, api.services.env.clock))
        [ada] = msgspec.convert(msgspec.to_builtins(told), Overview).nodes
        assert (ada.node_id, ada.troubles["hangs"]) == (ADA, 2)
