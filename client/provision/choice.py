"""Which build of the runtime suits this machine. Pure, but for reading the locks that came with the app."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from client.provision.errors import ProvisionError
from client.provision.lock import Lock, parse_lock

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64"}
_SYSTEMS = {"linux": "linux", "win32": "windows"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides. `system` as sys.platform, `machine` as platform.machine(); `cuda` is the newest CUDA version that
    the NVIDIA driver supports (nvmlSystemGetCudaDriverVersion), None without an NVIDIA GPU that shall be used."""

    system: str
    machine: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Choice:
    lock: Lock
    text: str
    """The lock file's text."""


def choose(machine: Machine) -> Choice:
    """The lock for this machine. Raises ProvisionError (unsupported_platform, old_driver)."""
    system, processor = _SYSTEMS.get(machine.system), _MACHINES.get(machine.machine.lower())
    if system is None or processor is None:
        raise ProvisionError(
            "unsupported_platform",
            f"There is no ready-made runtime for {machine.system} on {machine.machine}; "
            "install from source with pip (see the README).",
        )
    kind = "cuda" if machine.cuda is not None else "cpu"
    choice = _read(f"{system}-{processor}-{kind}")
    needed = choice.lock.min_cuda
    if needed is not None and machine.cuda is not None and machine.cuda < needed:
        raise ProvisionError(
            "old_driver",
            f"The NVIDIA driver supports CUDA {_dotted(machine.cuda)}, the runtime needs {_dotted(needed)}: "
            "update the driver, or contribute with the CPU.",
        )
    return choice


def _read(name: str) -> Choice:
    try:
        text = files("client.provision").joinpath("locks", f"{name}.txt").read_text("utf-8")
    except OSError:
        raise ProvisionError("unsupported_platform", f"This version has no runtime for {name}.") from None
    return Choice(parse_lock(text), text)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
