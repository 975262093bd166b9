"""Making a runtime: an interpreter, the locked packages, our own code, a self-test, and only then the switch.

What was fetched before a failure or a cancellation is kept in the cache: trying again goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from client.provision.choice import Choice
from client.provision.errors import ProvisionError
from client.provision.place import RuntimePlace, size_bytes
from client.provision.tool import ToolFailed, run_tool
from protocol.env import Env

log = logging.getLogger(__name__)

SPARE_BYTES = 2**30
"""Left free on the disk beside the runtime itself."""
LOOK_EVERY_S = 0.5

Show = Callable[[str, int, int], None]
"""What is being done, bytes that are there, bytes in all (0: not known)."""


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where packages come from instead of the public index: for firms with a mirror and machines without internet.

    Proxies and certificates follow the usual environment variables (HTTPS_PROXY, SSL_CERT_FILE)."""

    index_url: str = ""
    find_links: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make, where, from what. `code` is our own wheel, or the folder of our sources."""

    choice: Choice
    place: RuntimePlace
    uv: Path
    code: Path
    device: str
    mirrors: Mirrors = Mirrors()

    @property
    def environment(self) -> dict[str, str]:
        """For uv: its own cache, nobody's configuration, no prompts."""
        return {
            "UV_CACHE_DIR": str(self.place.cache),
            "UV_PYTHON_INSTALL_DIR": str(self.place.interpreters),
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_NO_BUILD": "1",
        }


async def prepare(plan: Plan, env: Env, show: Show) -> Path:
    """The runtime's interpreter, made if it is not there. Raises ProvisionError."""
    place = plan.place
    if place.is_ready:
        return place.python
    try:
        await env.run_blocking(_check_disk, plan)
        await _make(plan, env, show)
        facts = await _self_test(plan, show)
        await env.run_blocking(place.mark_ready, facts)
        await env.run_blocking(place.remove_others)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ProvisionError("install_failed", f"The runtime cannot be written to {place.root}: {reason}.") from None
    return place.python


async def _make(plan: Plan, env: Env, show: Show) -> None:
    lock, place = plan.choice.lock, plan.place
    lock_file = place.root / f"{place.identity}.lock.txt"
    await env.run_blocking(_write_lock, lock_file, plan.choice.text)
    async with _bytes_shown(plan, env, show):
        await _uv(plan, "venv", "--python", lock.python, "--allow-existing", "--no-project", str(place.folder))
        await _uv(plan, "pip", "sync", "--require-hashes", *_sources(plan), str(lock_file))
        await _add_code(plan, env)
    lock_file.unlink()


def _sources(plan: Plan) -> list[str]:
    """Where uv looks; mirrors replace the lock's own index, which a firm's network may not reach. Looking for the best
    match everywhere lets nobody slip in another package: the hashes decide."""
    lock, mirrors = plan.choice.lock, plan.mirrors
    words = ["--python", str(plan.place.python)]
    if lock.index and mirrors == Mirrors():
        words += ["--index", lock.index]
    if mirrors.index_url:
        words += ["--default-index", mirrors.index_url]
    if mirrors.find_links:
        words += ["--find-links", mirrors.find_links]
    return [*words, "--index-strategy", "unsafe-best-match"]


async def _add_code(plan: Plan, env: Env) -> None:
    if plan.code.is_dir():
        await env.run_blocking(_link_code, plan)
        return
    words = ["--python", str(plan.place.python), "--no-deps", "--no-index", str(plan.code)]
    await _uv(plan, "pip", "install", *words)


def _link_code(plan: Plan) -> None:
    """A path file: Python's `site` adds the folder that it names (docs.python.org/3/library/site.html)."""
    folder = next(plan.place.folder.glob("lib/python3*/site-packages"), plan.place.folder / "Lib" / "site-packages")
    (folder / "decentllm-source.pth").write_text(f"{plan.code}\n", "utf-8")


async def _uv(plan: Plan, *words: str) -> None:
    try:
        await run_tool([str(plan.uv), *words], plan.environment)
    except ToolFailed as error:
        raise _explained(error) from None


def _explained(error: ToolFailed) -> ProvisionError:
    """uv's own words decide: it has one exit status for everything."""
    text = "\n".join(error.lines)
    said = next((line for line in error.lines if line.startswith(("error:", "cause:"))), "no reason given")
    fetched = next((line for line in error.lines if "Failed to fetch" in line), said)
    last, low = fetched.partition(": ")[2][:200] or fetched[:200], text.lower()
    if "hash" in low and "mismatch" in low:
        return ProvisionError(
            "wrong_hash", "A downloaded package is not the expected one, and was not used. Try again later."
        )
    if "no solution found" in low:
        return ProvisionError(
            "cannot_download", f"A package of the runtime is not to be had where it was looked for: {last}"
        )
    if "no space left" in low or "not enough space" in low:
        return ProvisionError("disk_full", "The disk is full. Make room and try again; what is there is kept.")
    if any(words in low for words in ("error sending request", "failed to fetch", "dns error", "connect", "timed out")):
        return ProvisionError(
            "cannot_download",
            f"The runtime could not be downloaded ({last}). Check the internet connection or the mirror settings and "
            "try again; what is there is kept.",
        )
    return ProvisionError("install_failed", f"The runtime could not be installed: {last}")


async def _self_test(plan: Plan, show: Show) -> str:
    """The worker's interpreter multiplies matrices on the device; what it says of itself is kept beside it."""
    lock = plan.choice.lock
    show("Testing the runtime", lock.installed_bytes, lock.installed_bytes)
    argv = [str(plan.place.python), "-m", "client.runtime.self_test", "--device", plan.device]
    try:
        lines = await run_tool(argv, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    except ToolFailed as error:
        last = error.lines[-1][:200] if error.lines else f"status {error.status}"
        raise ProvisionError("self_test_failed", f"The runtime does not work on this machine: {last}") from None
    return json.dumps({"build": lock.build, "said": lines[-1:]})


@asynccontextmanager
async def _bytes_shown(plan: Plan, env: Env, show: Show) -> AsyncIterator[None]:
    looking = asyncio.create_task(_look(plan, env, show))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(plan: Plan, env: Env, show: Show) -> None:
    """uv tells its progress to terminals only; what has reached the disk says the same."""
    lock, place = plan.choice.lock, plan.place
    while True:
        there = await env.run_blocking(_bytes_there, place)
        show("Preparing the runtime", min(there, lock.installed_bytes), lock.installed_bytes)
        await env.clock.sleep(LOOK_EVERY_S)


def _bytes_there(place: RuntimePlace) -> int:
    return size_bytes(place.cache) + size_bytes(place.interpreters)


def _check_disk(plan: Plan) -> None:
    place = plan.place
    place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = max(0, plan.choice.lock.installed_bytes - _bytes_there(place))
    free = shutil.disk_usage(place.root).free
    if free < missing + SPARE_BYTES:
        raise ProvisionError(
            "disk_full",
            f"The runtime needs {(missing + SPARE_BYTES) / 1e9:.1f} GB in {place.root}, "
            f"{free / 1e9:.1f} GB are free. Make room and try again.",
        )


def _write_lock(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
