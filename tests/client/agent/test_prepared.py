from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from client.agent import prepared
from client.agent.prepared import cuda_version, facts_of, runtime_plan, worker_python
from client.config import NodeConfig
from client.provision.errors import ProvisionError
from protocol.join_link import JoinLink
from protocol.values import DeviceId, DeviceKind, DeviceSpec, Variant
from shell import AsyncioEnv

CPU = (DeviceSpec(DeviceId("cpu"), DeviceKind.CPU, "CPU", 8 * 10**9, Variant.FLOAT32),)
GPU = (DeviceSpec(DeviceId("cuda:0"), DeviceKind.CUDA, "GPU", 8 * 10**9, Variant.BFLOAT16),)


class Driver:
    """The part of pynvml in use: a driver that supports this CUDA version."""

    NVMLError = RuntimeError

    def __init__(self, version: int | None) -> None:
        self._version = version

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        if self._version is None:
            raise RuntimeError("unknown")
        return self._version


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(JoinLink("http://127.0.0.1:8000"), tmp_path, "ada", find_links="/wheels")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in an installed app."""
    (tmp_path / "code.whl").touch()
    monkeypatch.setattr(prepared, "has_torch_here", lambda: False)
    monkeypatch.setattr(prepared, "find_uv", lambda: Path("/uv"))
    monkeypatch.setattr(prepared, "find_code", lambda: tmp_path / "code.whl")


def never(what: str, done_bytes: int, total_bytes: int) -> None:
    pytest.fail("nothing is prepared")


async def test_an_interpreter_that_was_named_is_used(config: NodeConfig) -> None:
    named = replace(config, worker_python="/other/python")
    assert await worker_python(named, CPU, None, AsyncioEnv(), never) == "/other/python"


async def test_an_interpreter_that_has_torch_is_used_as_it_is(config: NodeConfig) -> None:
    assert await worker_python(config, CPU, None, AsyncioEnv(), never) == sys.executable


@pytest.mark.usefixtures("without_torch")
def test_a_gpu_gets_its_own_build_and_the_self_test_runs_on_it(config: NodeConfig) -> None:
    plan = runtime_plan(config, GPU, Driver(13000))
    assert (plan.choice.lock.build, plan.device) == ("linux-x86_64-cuda", "cuda:0")
    assert plan.mirrors.find_links == "/wheels"


@pytest.mark.usefixtures("without_torch")
def test_without_a_gpu_the_small_build_does_whatever_driver_there_is(config: NodeConfig) -> None:
    plan = runtime_plan(config, CPU, Driver(12040))
    assert (plan.choice.lock.build, plan.device) == ("linux-x86_64-cpu", "cpu")


@pytest.mark.usefixtures("without_torch")
def test_an_old_driver_is_a_fact_that_is_told_before_the_click(config: NodeConfig) -> None:
    with pytest.raises(ProvisionError, match=r"12\.4"):
        runtime_plan(config, GPU, Driver(12040))
    facts = facts_of(config, GPU, Driver(12040), AsyncioEnv())
    assert not facts.runtime_ready
    assert "update the driver" in facts.problem


@pytest.mark.usefixtures("without_torch")
def test_what_would_be_downloaded_is_told(config: NodeConfig, tmp_path: Path) -> None:
    facts = facts_of(config, CPU, None, AsyncioEnv())
    assert not facts.runtime_ready
    assert facts.runtime_bytes > 10**8
    assert facts.runtime_folder.startswith(str(tmp_path))
    assert facts.devices[0].memory_bytes == 8 * 10**9


def test_with_torch_here_there_is_nothing_to_download(config: NodeConfig) -> None:
    facts = facts_of(config, CPU, None, AsyncioEnv())
    assert facts.runtime_ready
    assert facts.runtime_bytes == 0


@pytest.mark.allowed_logs("does not say")
def test_nvml_s_number_is_a_version() -> None:
    assert cuda_version(Driver(12040)) == (12, 4)
    assert cuda_version(Driver(13000)) == (13, 0)
    assert cuda_version(Driver(None)) is None
    assert cuda_version(None) is None
