"""A coordinator that was started from a shell may hold more nodes than the shell's limit of open files."""

from __future__ import annotations

import resource

import pytest

from coordinator.open_files import WANTED, raise_open_files

Limits = tuple[int, int]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """The process's limits; the last of them is now."""
    known: list[Limits] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: known[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: known.append(pair))
    return known


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 20_000), (20_000, 20_000)),
        ((1024, 1_000_000), (WANTED, 1_000_000)),
        ((1024, resource.RLIM_INFINITY), (WANTED, resource.RLIM_INFINITY)),
        ((500_000, 1_000_000), (500_000, 1_000_000)),
        ((1024, 1024), (1024, 1024)),
    ],
)
def test_as_many_files_may_be_open_as_the_system_lets_us(limits: list[Limits], before: Limits, after: Limits) -> None:
    limits.append(before)
    assert raise_open_files() == after[0]
    assert limits[-1] == after


@pytest.mark.expected_logs("only 256 files may be open at once")
def test_a_system_that_refuses_is_served_with_what_there_is(
    limits: list[Limits], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int, pair: Limits) -> None:
        raise ValueError(f"not {pair}")

    limits.append((256, 10_000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_open_files() == 256
