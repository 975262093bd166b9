"""Value types: strict, frozen, and nothing out of range comes off the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import values as v


def decode(kind: Any, data: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(data), type=kind)


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_layer_range_is_never_empty(start: int, stop: int) -> None:
    if start < stop:
        layers = v.LayerRange(start, stop)
        assert len(layers) == stop - start
        assert str(layers) == f"{start}-{stop - 1}"
        assert decode(v.LayerRange, layers) == layers
    else:
        with pytest.raises(ValueError, match="empty"):
            v.LayerRange(start, stop)
        with pytest.raises(msgspec.ValidationError):
            decode(v.LayerRange, {"start": start, "stop": stop})


def test_layer_ranges_sort_by_their_start() -> None:
    ranges = [v.LayerRange(4, 8), v.LayerRange(0, 4), v.LayerRange(0, 2)]
    assert sorted(ranges) == [v.LayerRange(0, 2), v.LayerRange(0, 4), v.LayerRange(4, 8)]


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        v.Sampling().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": -1},
        {"seed": 2**63},
        {"surprise": 1},
    ],
)
def test_sampling_out_of_range_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(v.Sampling, bad)


@given(
    st.builds(
        v.Sampling,
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1, exclude_min=True),
        top_k=st.integers(0, 10**6),
        seed=st.integers(0, 2**63 - 1),
    )
)
def test_sampling_comes_back_as_it_was(sampling: v.Sampling) -> None:
    assert decode(v.Sampling, sampling) == sampling


@pytest.mark.parametrize("name", ["Ada", "Ada Lovelace", "Müller", "机器", "a" * 64, "x.y-z_1"])
def test_a_persons_name_is_accepted(name: str) -> None:
    assert decode(v.Name, name) == name


@pytest.mark.parametrize("name", ["", "a" * 65, "<b>", 'say "x"', "it's", "a&b", "a\x1bb", "a\n", "\x00"])
def test_a_name_that_could_be_markup_or_control_is_refused(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(v.Name, name)


@pytest.mark.parametrize(("kind", "length"), [(v.Hex32, 32), (v.Digest, 64)])
def test_hex_identifiers_have_one_form_only(kind: Any, length: int) -> None:
    assert decode(kind, "0f" * (length // 2))
    for bad in ("0F" * (length // 2), "0f" * (length // 2) + "\n", "0f" * (length // 2 - 1), "xy" * (length // 2), ""):
        with pytest.raises(msgspec.ValidationError):
            decode(kind, bad)


@pytest.mark.parametrize("seconds", [-1e-9, 1e10])
def test_durations_are_bounded(seconds: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(v.BatchTime, {"batch_size": 1, "layer_s": seconds})


def test_a_benchmark_has_at_least_one_time() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(v.LayerBenchmark, {"decode": [], "prefill_layer_s_per_token": 0, "head_s": 0})
