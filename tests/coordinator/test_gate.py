"""Who may contribute, with the real accounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.accounts import AccountError, Accounts, Store, StoreError
from coordinator.gate import AccountsGate, GateFailed, OpenGate
from shell.keys import public_key_of
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_env import WALL_AT_START_S, VirtualEnv, VirtualWorld
from tests.fakes.virtual_loop import on_virtual_time

NODE = facts.node_id(1)
KEY = public_key_of(facts.private_key(1))


class Records:
    """Accounts over a real database, at a wall clock of the test's choice."""

    def __init__(self, path: Path) -> None:
        self.now_s = WALL_AT_START_S
        self.store = Store.open(path)
        self.env: VirtualEnv = VirtualWorld().env()
        self.accounts = Accounts(self.store, self.env.random, lambda: self.now_s)

    def gate(self, is_open: bool) -> AccountsGate:
        return AccountsGate(self.accounts, self.env, is_open)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records(tmp_path / "pool.db")
    yield records
    records.store.close()


@on_virtual_time
async def test_an_open_gate_lets_everybody_in() -> None:
    await OpenGate().admit(NODE, KEY, "a node", None)
    await OpenGate().note_seen([NODE])


def test_an_open_pool_enrols_who_comes(records: Records) -> None:
    admit = on_virtual_time(records.gate(is_open=True).admit)
    admit(NODE, KEY, "a node", None)
    assert [record.node_id for record in records.accounts.nodes()] == [NODE]


def test_a_closed_pool_asks_for_an_invitation(records: Records) -> None:
    admit = on_virtual_time(records.gate(is_open=False).admit)
    with pytest.raises(AccountError) as caught:
        admit(NODE, KEY, "a node", None)
    assert caught.value.code == "invitation_needed"
    _, token = records.accounts.invite("lab", allows_chat=False, allows_nodes=True, max_uses=1, expires_in_s=None)
    admit(NODE, KEY, "a node", token)
    admit(NODE, KEY, "a node", None)


def test_a_blocked_node_is_refused_by_open_pools_too(records: Records) -> None:
    admit = on_virtual_time(records.gate(is_open=True).admit)
    admit(NODE, KEY, "a node", None)
    records.accounts.block_node(NODE)
    with pytest.raises(AccountError) as caught:
        admit(NODE, KEY, "a node", None)
    assert caught.value.code == "node_blocked"


def test_when_a_node_was_seen_is_noted(records: Records) -> None:
    gate = records.gate(is_open=True)
    on_virtual_time(gate.admit)(NODE, KEY, "a node", None)
    records.now_s += 60
    on_virtual_time(gate.note_seen)({NODE, facts.node_id(2)})
    [record] = records.accounts.nodes()
    assert (record.first_seen_s, record.last_seen_s) == (WALL_AT_START_S, WALL_AT_START_S + 60)


class BrokenAccounts:
    def admit_node(self, node_id: str, public_key: str, name: str, invite: str | None, *, is_open: bool) -> None:
        raise StoreError("store_full", "secret-folder/pool.db")


@on_virtual_time
async def test_a_database_that_fails_is_not_the_nodes_fault() -> None:
    gate = AccountsGate(BrokenAccounts(), VirtualWorld().env(), is_open=True)  # type: ignore[arg-type]
    with pytest.raises(GateFailed) as caught:
        await gate.admit(NODE, KEY, "a node", None)
    assert caught.value.code == "store_full"
    assert "secret-folder" not in str(caught.value)
