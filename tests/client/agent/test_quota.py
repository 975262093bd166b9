"""Which weights make room: oldest used first, never what is in use, and nothing at all where it would not help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent.quota import RESERVE_BYTES, Kept, Room, disk_filled_up, to_evict
from client.errors import DiskFullError

GB = 10**9
OLD, MIDDLE, NEW = Kept("old", 4 * GB, 1.0), Kept("middle", 4 * GB, 2.0), Kept("new", 4 * GB, 3.0)
KEPT = (NEW, OLD, MIDDLE)
PLENTY = 1000 * GB


def room(quota_bytes: int = PLENTY, free_bytes: int = PLENTY, used_bytes: int = 12 * GB) -> Room:
    return Room(quota_bytes, used_bytes, free_bytes)


def test_what_fits_costs_nothing() -> None:
    assert to_evict(KEPT, (), 8 * GB, room(quota_bytes=20 * GB)) == ()
    assert to_evict(KEPT, (), 8 * GB, room(free_bytes=8 * GB + RESERVE_BYTES)) == ()


def test_nothing_is_removed_for_a_download_of_nothing_even_over_the_limit() -> None:
    assert to_evict(KEPT, (), 0, room(quota_bytes=GB, free_bytes=0)) == ()


@pytest.mark.parametrize(
    ("need_bytes", "evicted"), [(1, ("old",)), (4 * GB, ("old",)), (4 * GB + 1, ("old", "middle")), (12 * GB, None)]
)
def test_over_the_limit_the_models_go_that_were_not_used_for_longest(
    need_bytes: int, evicted: tuple[str, ...] | None
) -> None:
    assert to_evict(KEPT, (), need_bytes, room(quota_bytes=12 * GB)) == (evicted or ("old", "middle", "new"))


def test_the_reserve_of_free_space_counts_as_the_limit_does() -> None:
    assert to_evict(KEPT, (), 2 * GB, room(free_bytes=2 * GB + RESERVE_BYTES - 1)) == ("old",)


def test_what_is_in_use_stays() -> None:
    assert to_evict(KEPT, {"old"}, GB, room(quota_bytes=12 * GB)) == ("middle",)


def test_a_model_that_takes_no_space_is_not_removed_for_space() -> None:
    assert to_evict((Kept("empty", 0, 0.0), *KEPT), (), GB, room(quota_bytes=12 * GB)) == ("old",)


@pytest.mark.parametrize(
    ("given", "short_bytes", "sentence"),
    [
        (
            room(quota_bytes=12 * GB),
            5 * GB,
            "The weights need 9.0 GB more disk space, and this node may keep 12.0 GB of weights in all.",
        ),
        (
            room(free_bytes=5 * GB),
            RESERVE_BYTES,
            "The weights need 9.0 GB more disk space; 5.0 GB are free, and 2.1 GB stay free.",
        ),
    ],
)
def test_what_can_never_fit_is_refused_with_what_it_needs(given: Room, short_bytes: int, sentence: str) -> None:
    with pytest.raises(DiskFullError) as caught:
        to_evict(KEPT, {"new", "middle"}, 9 * GB, given)
    error = caught.value
    assert (error.code, str(error), error.short_bytes) == ("disk_full", sentence, short_bytes)


def test_of_a_disk_that_filled_up_what_has_come_fits() -> None:
    error = disk_filled_up("/weights", 3 * GB, RESERVE_BYTES).out_of(12 * GB)
    assert error.share == 0.75
    below_reserve = disk_filled_up("/weights", 3 * GB, 0).out_of(12 * GB).share
    assert below_reserve is not None
    assert below_reserve < 0.75
    assert disk_filled_up("/weights", 0, 0).out_of(12 * GB).share is None


SIZES = st.integers(0, 20)


@given(st.lists(st.tuples(SIZES, SIZES, st.booleans()), max_size=6), SIZES, SIZES, SIZES)
def test_whatever_is_removed_is_enough_and_not_in_use(
    models: list[tuple[int, int, bool]], need: int, quota: int, free: int
) -> None:
    kept = [Kept(f"{number}", size * GB, float(used)) for number, (size, used, _) in enumerate(models)]
    in_use = {f"{number}" for number, (_, _, is_used) in enumerate(models) if is_used}
    used = sum(model.used_bytes for model in kept)
    given = Room(quota * GB, used, free * GB)
    try:
        evicted = to_evict(kept, in_use, need * GB, given)
    except DiskFullError:
        idle = sum(model.used_bytes for model in kept if model.digest not in in_use)
        assert given.lacks(need * GB) > idle
        return
    freed = sum(model.used_bytes for model in kept if model.digest in evicted)
    assert not in_use & set(evicted)
    assert need == 0 or given.lacks(need * GB) <= freed
    kept_idle = [model.used_s for model in kept if model.digest not in {*in_use, *evicted} and model.used_bytes]
    gone = [model.used_s for model in kept if model.digest in evicted]
    assert not gone or not kept_idle or max(gone) <= min(kept_idle)
