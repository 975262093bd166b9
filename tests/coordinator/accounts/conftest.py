"""Accounts in a folder of their own, on a clock that the test sets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.accounts import Accounts, Store
from tests.coordinator.accounts.wall import Wall
from tests.fakes.virtual_env import SeededRandom


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


@pytest.fixture
def accounts(store: Store, wall: Wall) -> Accounts:
    return Accounts(store, SeededRandom(random.Random(7)), wall)
