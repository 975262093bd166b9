"""Questions of a command to the pool that runs in its folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from coordinator.accounts import Role
from coordinator.administration import opened
from coordinator.asking import NoAnswer, ask
from coordinator.config import DATABASE_NAME
from coordinator.folder_lock import locked
from coordinator.store import Store
from tests.fakes.answering_pool import answering, make_folder

PATH = "/api/operator/weather"


class Weather(msgspec.Struct):
    is_fine: bool


def asked_in(folder: Path) -> Weather:
    with opened(folder) as (accounts, site):
        return ask(folder, accounts, site, PATH, Weather)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_it_asks_as_an_operator_who_is_one_no_more_afterwards(folder: Path) -> None:
    with answering(folder, b'{"is_fine":true}') as asked:
        assert asked_in(folder) == Weather(is_fine=True)
    assert asked == [(PATH, Role.OPERATOR)]
    with closing(Store.open(folder / DATABASE_NAME)) as store, store.read() as connection:
        assert connection.exec_driver_sql("select count(*) from sessions").scalar() == 0


def test_that_no_pool_runs_now_is_said(folder: Path) -> None:
    with pytest.raises(NoAnswer, match="is not running: start it with"):
        asked_in(folder)
    with (
        locked(folder),
        pytest.raises(NoAnswer, match=r"does not answer at http://127.0.0.1:9 \(Connection refused\)"),
    ):
        asked_in(folder)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [(403, b"no", "HTTP status 403"), (200, b"<html>", "cannot be read"), (200, b"{}", "cannot be read")],
)
def test_an_answer_to_another_question_is_a_sentence(folder: Path, status: int, body: bytes, words: str) -> None:
    with answering(folder, body, status), pytest.raises(NoAnswer, match=words):
        asked_in(folder)
