"""The interpreter that workers run in: this one if torch is here, else a runtime prepared for this machine."""

from __future__ import annotations

import logging
import platform
import sys
from typing import Any

from client.config import NodeConfig
from client.facts import DeviceFacts, Facts
from client.provision.bundle import find_code, find_uv, has_torch_here
from client.provision.choice import Machine, choose
from client.provision.errors import ProvisionError
from client.provision.place import place_of
from client.provision.prepare import Mirrors, Plan, Show, prepare
from protocol.env import Env
from protocol.values import DeviceKind, DeviceSpec

log = logging.getLogger(__name__)


async def worker_python(
    config: NodeConfig, devices: tuple[DeviceSpec, ...], nvml: Any | None, env: Env, show: Show
) -> str:
    """The interpreter, prepared first if need be. Raises ProvisionError."""
    if config.worker_python:
        return config.worker_python
    if has_torch_here():
        return sys.executable
    plan = await env.run_blocking(runtime_plan, config, devices, nvml)
    return str(await prepare(plan, env, show))


def runtime_plan(config: NodeConfig, devices: tuple[DeviceSpec, ...], nvml: Any | None) -> Plan:
    """What would be prepared for these devices. Raises ProvisionError."""
    gpu = next((device.device_id for device in devices if device.kind is DeviceKind.CUDA), "")
    machine = Machine(sys.platform, platform.machine(), cuda_version(nvml) if gpu else None)
    choice, code = choose(machine), find_code()
    mirrors = Mirrors(config.index_url, config.find_links)
    return Plan(choice, place_of(config.data_dir, choice.lock.identity, code), find_uv(), code, gpu or "cpu", mirrors)


def cuda_version(nvml: Any | None) -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports (13000 stands for 13.0); None where NVML does not say."""
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        log.warning("the driver does not say which CUDA version it supports: %s", error)
        return None
    return version // 1000, version % 1000 // 10


def facts_of(config: NodeConfig, devices: tuple[DeviceSpec, ...], nvml: Any | None, env: Env) -> Facts:
    """What contributing would use, download and where: said before anything is done."""
    described = tuple(DeviceFacts(device.name, device.memory_bytes) for device in devices)
    folder = config.data_dir / "runtime"
    facts = Facts(
        devices=described,
        runtime_ready=True,
        runtime_folder=str(folder),
        weights_folder=str(config.data_dir / "weights"),
        free_disk_bytes=env.disk.free_bytes(config.data_dir),
    )
    if config.worker_python or has_torch_here():
        return facts
    return _with_runtime(facts, config, devices, nvml)


def _with_runtime(facts: Facts, config: NodeConfig, devices: tuple[DeviceSpec, ...], nvml: Any | None) -> Facts:
    from msgspec.structs import replace

    try:
        plan = runtime_plan(config, devices, nvml)
    except ProvisionError as error:
        return replace(facts, runtime_ready=False, problem=str(error))
    if plan.place.is_ready:
        return replace(facts, runtime_folder=str(plan.place.folder))
    return replace(facts, runtime_ready=False, runtime_bytes=plan.choice.lock.download_bytes)
