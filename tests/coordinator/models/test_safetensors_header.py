from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from coordinator.models.errors import BrokenModelError
from coordinator.models.safetensors_header import Header, read_header

ENTRY = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def _file(path: Path, header: Any, num_data_bytes: int = 12) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_data_bytes))
    return path


def _refused(path: Path, match: str) -> None:
    with pytest.raises(BrokenModelError, match=match) as caught:
        read_header(path, "weights.safetensors")
    assert str(caught.value).startswith("weights.safetensors is damaged or incomplete: ")


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": np.arange(6, dtype=np.float32), "y": np.ones((2, 2), np.float16)}, path, metadata={"format": "pt"})
    header = read_header(path, path.name, file_number=7)
    by_name = {tensor.name: tensor for tensor in header.tensors}
    x = by_name["x"]
    assert np.frombuffer(path.read_bytes()[x.start : x.stop], np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert (x.file, x.dtype, x.shape) == (7, "F32", (6,))
    assert header.size_bytes == path.stat().st_size == max(tensor.stop for tensor in header.tensors)


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    assert read_header(_file(tmp_path / "a", {}, 0), "a") == Header(10, 10, ())


def test_a_tensor_without_elements_is_read(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    assert read_header(_file(tmp_path / "a", {"x": entry, "y": ENTRY}), "a").tensors[0].numel == 0


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "a", {"x": ENTRY})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(BrokenModelError):
            read_header(path, "a")


def test_a_truncated_file_is_named_with_its_first_missing_tensor(tmp_path: Path) -> None:
    _refused(_file(tmp_path / "a", {"x": ENTRY}, 11), "tensor x: it ends at byte .* the file is truncated")


@pytest.mark.parametrize("num_data_bytes", [13, 5000])
def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path, num_data_bytes: int) -> None:
    _refused(_file(tmp_path / "a", {"x": ENTRY}, num_data_bytes), "longer than declared")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**27, 2**63, 2**64 - 1])
def test_a_header_length_that_cannot_be_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}")
    _refused(tmp_path / "a", "header size")


HEADERS = {
    "no JSON": (b"{...}", "not valid JSON"),
    "deeply nested JSON": (b"[" * 200_000, "not valid JSON"),
    "a number of 5,000 digits": (b'{"x":' + b"9" * 5000 + b"}", "not valid JSON"),
    "a list": ([1, 2], "not a JSON object"),
    "a name twice": (b'{"x":1,"x":2}', "has 'x' twice"),
    "an entry that is a number": ({"x": 1}, "tensor x"),
    "an entry with an unknown field": ({"x": ENTRY | {"code": 1}}, "tensor x"),
    "an entry without a shape": ({"x": {"dtype": "F16", "data_offsets": [0, 12]}}, "tensor x"),
    "an unknown type": ({"x": ENTRY | {"dtype": "F17"}}, "tensor x: unknown type"),
    "a shape that does not fit": ({"x": ENTRY | {"shape": [2, 4]}}, "tensor x: 12 bytes for .* 16 bytes"),
    "a shape that overflows": ({"x": ENTRY | {"shape": [2**48, 2**48, 2**48]}}, "tensor x: 12 bytes"),
    "a negative dimension": ({"x": ENTRY | {"shape": [-2, -3]}}, "tensor x"),
    "half a number of bytes": ({"x": ENTRY | {"dtype": "F4", "shape": [3]}}, "tensor x"),
    "reversed offsets": ({"x": ENTRY | {"data_offsets": [12, 0]}}, "tensor x"),
    "three offsets": ({"x": ENTRY | {"data_offsets": [0, 6, 12]}}, "tensor x"),
    "a hole at the start": ({"x": ENTRY | {"data_offsets": [4, 16]}}, "tensor x.*belong to no tensor"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_refused_that_is_or_has(tmp_path: Path, case: str) -> None:
    header, match = HEADERS[case]
    _refused(_file(tmp_path / "a", header, 16 if "hole" in case else 12), match)


@pytest.mark.parametrize(("start", "match"), [(6, "tensor y: it overlaps x"), (14, "tensor y: it leaves a hole after")])
def test_tensors_that_overlap_or_leave_a_hole_are_refused(tmp_path: Path, start: int, match: str) -> None:
    second = ENTRY | {"data_offsets": [start, start + 12]}
    _refused(_file(tmp_path / "a", {"x": ENTRY, "y": second}, start + 12), match)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
)
_ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F16", "U8", "F4"]), "shape": st.lists(st.integers(-1, 4), max_size=3)},
    optional={"data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2)},
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=60) | _JSON | st.dictionaries(st.text(max_size=3), _ENTRIES, max_size=3))
def test_any_file_gives_a_sound_header_or_one_typed_error(tmp_path: Path, header: Any) -> None:
    path = _file(tmp_path / "a", header)
    try:
        found = read_header(path, "a")
    except BrokenModelError:
        return
    assert sum(tensor.stop - tensor.start for tensor in found.tensors) == found.size_bytes - found.header_bytes
