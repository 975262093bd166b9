from __future__ import annotations

import pytest

from client.provision.choice import Machine, choose
from client.provision.errors import ProvisionError


@pytest.mark.parametrize(
    ("machine", "build"),
    [
        (Machine("linux", "x86_64", (13, 0)), "linux-x86_64-cuda"),
        (Machine("linux", "x86_64", (13, 2)), "linux-x86_64-cuda"),
        (Machine("linux", "x86_64", None), "linux-x86_64-cpu"),
        (Machine("win32", "AMD64", None), "windows-x86_64-cpu"),
    ],
)
def test_a_machine_gets_the_build_that_suits_it(machine: Machine, build: str) -> None:
    assert choose(machine).lock.build == build


def test_an_old_driver_is_told_which_version_is_needed() -> None:
    with pytest.raises(
        ProvisionError, match=r"supports CUDA 12\.4, the runtime needs 13\.0: update the driver"
    ) as caught:
        choose(Machine("linux", "x86_64", (12, 4)))
    assert caught.value.code == "old_driver"


@pytest.mark.parametrize(
    "machine",
    [Machine("darwin", "arm64", None), Machine("linux", "riscv64", None), Machine("win32", "AMD64", (13, 0))],
)
def test_a_platform_without_a_runtime_is_refused_by_name(machine: Machine) -> None:
    with pytest.raises(ProvisionError) as caught:
        choose(machine)
    assert caught.value.code == "unsupported_platform"
