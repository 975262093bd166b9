"""site.json: written by the pool, read by the commands that print links."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import ConfigError, MachineNames, PoolConfig, make_site
from coordinator.site_file import FILE_NAME, read_site, write_site


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    site = make_site(PoolConfig(tmp_path, host="0.0.0.0"), 8443, "ab" * 32, MachineNames(("ada",), ("10.0.0.1",)))
    write_site(tmp_path, site)
    assert read_site(tmp_path) == site


def test_a_folder_in_which_no_pool_has_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No pool has run in .*--data-dir") as caught:
        read_site(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"base_url": 1}', b"\xff\xfe", b"[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=r"site\.json is damaged"):
        read_site(tmp_path)
