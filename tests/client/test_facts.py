"""What a machine would bring, as one line."""

from __future__ import annotations

import msgspec
import pytest

from client.facts import DeviceFacts, Facts, decode_facts, encode_facts


@pytest.mark.parametrize("facts", [Facts(), Facts((DeviceFacts("GPU\n", 1),), True, 2, "/a", "/b", 3, "none")])
def test_facts_survive_the_trip_in_one_line(facts: Facts) -> None:
    line = encode_facts(facts)
    assert line.count(b"\n") == 1
    assert decode_facts(line) == facts


@pytest.mark.parametrize("line", [b"", b"[]", b'{"devices":[{"name":1}]}', b'{"runtime_bytes":-1}', b"\xff"])
def test_what_are_no_facts_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_facts(line)
