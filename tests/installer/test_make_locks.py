from __future__ import annotations

import io
import zipfile

import pytest

from installer import make_locks

BODY = """one==1.2 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
two==3 ; sys_platform == 'linux' \\
    --hash=sha256:cc
"""


def test_a_lock_s_packages_are_read_with_version_and_hashes() -> None:
    assert list(make_locks.pinned(BODY)) == [("one", "1.2", {"aa", "bb"}), ("two", "3", {"cc"})]


def test_the_versions_are_those_that_are_tested_together() -> None:
    cpu = next(build for build in make_locks.BUILDS if build.torch_suffix)
    wanted = dict(line.split("==") for line in make_locks.wanted(cpu))
    assert set(wanted) == set(make_locks.PACKAGES)
    assert wanted["torch"].endswith("+cpu")


def test_a_wheel_s_size_is_read_from_its_end() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("large", bytes(100_000))
        wheel.writestr("small", bytes(10))
    data = buffer.getvalue()
    tail = make_locks._Tail(data[-1000:], len(data))
    with zipfile.ZipFile(tail) as content:
        assert sum(entry.file_size for entry in content.infolist()) == 100_010


def test_what_lies_before_the_known_end_is_never_made_up() -> None:
    tail = make_locks._Tail(b"end", 100)
    with pytest.raises(ValueError, match="before the known part"):
        tail.read(1)
    tail.seek(-3, io.SEEK_END)
    assert tail.read() == b"end"
