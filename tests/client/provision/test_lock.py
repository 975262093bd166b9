from __future__ import annotations

from importlib.resources import files

import pytest

from client.provision.errors import ProvisionError
from client.provision.lock import parse_lock

GOOD = """# build: linux-x86_64-cuda
# python: >=3.11,<3.14
# min-cuda: 13.0
# download-bytes: 10
# installed-bytes: 20

torch==2.13.0 \\
    --hash=sha256:00
"""


def test_a_lock_says_what_it_is() -> None:
    lock = parse_lock(GOOD)
    assert (lock.build, lock.python, lock.min_cuda) == ("linux-x86_64-cuda", ">=3.11,<3.14", (13, 0))
    assert (lock.download_bytes, lock.installed_bytes, lock.index) == (10, 20, "")


def test_a_cpu_lock_needs_no_driver_and_may_name_an_index() -> None:
    text = GOOD.replace("# min-cuda: 13.0", "# index: https://example.org/cpu")
    assert parse_lock(text).min_cuda is None
    assert parse_lock(text).index == "https://example.org/cpu"


def test_another_hash_is_another_runtime() -> None:
    assert parse_lock(GOOD).identity != parse_lock(GOOD.replace(":00", ":01")).identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.replace("# build: linux-x86_64-cuda\n", ""),
        GOOD.replace("bytes: 10", "bytes: ten"),
        GOOD.replace("min-cuda: 13.0", "min-cuda: new"),
    ],
)
def test_a_damaged_lock_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ProvisionError, match="install the app again") as caught:
        parse_lock(text)
    assert caught.value.code == "bad_lock"


@pytest.mark.parametrize("lock", sorted(files("client.provision").joinpath("locks").iterdir(), key=str), ids=str)
def test_every_package_of_a_shipped_lock_has_one_version_and_hashes(lock: object) -> None:
    text = lock.read_text("utf-8")  # type: ignore[attr-defined]
    facts = parse_lock(text)
    blocks = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert facts.build in str(lock)
    assert 0 < facts.download_bytes < facts.installed_bytes
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)
    assert any(block.startswith("torch==") for block in blocks)
    assert "://" not in "".join(blocks), "where a package comes from is not a lock's business"
