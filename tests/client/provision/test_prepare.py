"""Preparations with a tool that plays uv: a script that writes what it was asked, and fails as told."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from client.provision.choice import Choice
from client.provision.errors import ProvisionError
from client.provision.lock import Lock
from client.provision.place import RuntimePlace
from client.provision.prepare import Mirrors, Plan, prepare
from shell import AsyncioEnv

UV = """#!{python}
import json, os, pathlib, sys, threading
root = pathlib.Path({root!r})
with (root / "calls").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], os.environ["UV_CACHE_DIR"], os.environ["UV_NO_CONFIG"]]) + "\\n")
if sys.argv[1] == "venv":
    folder = pathlib.Path(sys.argv[-1])
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "lib/python3.11/site-packages").mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    python.write_text("#!{python}\\nprint('fine')\\n" if not (root / "bad-runtime").exists()
                      else "#!{python}\\nprint('RuntimeError: no kernel image'); raise SystemExit(1)\\n")
    python.chmod(0o755)
if sys.argv[1:3] == ["pip", "sync"]:
    cache = pathlib.Path(os.environ["UV_CACHE_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "torch").write_bytes(bytes(500))
    says = root / "says"
    if says.exists():
        sys.exit(says.read_text())
    if (root / "hang").exists():
        (root / "hangs").touch()
        threading.Event().wait(600)
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    uv = tmp_path / "uv"
    uv.write_text(UV.format(python=sys.executable, root=str(tmp_path)))
    uv.chmod(0o755)
    code = tmp_path / "decentllm-1.whl"
    code.touch()
    lock = Lock("linux-x86_64-cpu", ">=3.11", None, "https://example.org/cpu", 400, 1000, "a" * 64)
    place = RuntimePlace(tmp_path / "runtime", "abc")
    return Plan(Choice(lock, "torch==1 --hash=sha256:00\n"), place, uv, code, "cpu")


@pytest.fixture
async def env() -> AsyncioEnv:
    return AsyncioEnv()


def calls(plan: Plan) -> list[list[str]]:
    lines = (plan.uv.parent / "calls").read_text().splitlines()
    return [json.loads(line)[0] for line in lines]


def ignore(what: str, done_bytes: int, total_bytes: int) -> None:
    pass


async def test_a_runtime_is_made_tested_and_then_switched_to(plan: Plan, env: AsyncioEnv) -> None:
    python = await prepare(plan, env, ignore)
    assert python == plan.place.python
    assert plan.place.is_ready
    venv, sync, code = calls(plan)
    assert venv[:3] == ["venv", "--python", ">=3.11"]
    assert {"--require-hashes", "https://example.org/cpu"} <= set(sync)
    assert code[:2] == ["pip", "install"] and "--no-deps" in code and code[-1] == str(plan.code)
    assert "fine" in (plan.place.folder / "ready.json").read_text()


async def test_a_prepared_runtime_is_not_made_again(plan: Plan, env: AsyncioEnv) -> None:
    await prepare(plan, env, ignore)
    num_calls = len(calls(plan))
    await prepare(plan, env, ignore)
    assert len(calls(plan)) == num_calls


async def test_progress_is_in_bytes_and_never_more_than_all(plan: Plan, env: AsyncioEnv) -> None:
    shown: list[tuple[str, int, int]] = []
    await prepare(plan, env, lambda *what: shown.append(what))
    assert shown[0] == ("Preparing the runtime", 0, 1000)
    assert shown[-1] == ("Testing the runtime", 1000, 1000)
    assert all(0 <= done <= total == 1000 for _, done, total in shown)


async def test_mirrors_replace_the_public_indexes(plan: Plan, env: AsyncioEnv) -> None:
    await prepare(replace(plan, mirrors=Mirrors("https://mirror.example/simple", "/wheels")), env, ignore)
    sync = calls(plan)[1]
    assert "https://example.org/cpu" not in sync
    assert sync[sync.index("--default-index") + 1] == "https://mirror.example/simple"
    assert sync[sync.index("--find-links") + 1] == "/wheels"


async def test_from_source_the_code_is_linked_not_installed(plan: Plan, env: AsyncioEnv, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    await prepare(replace(plan, code=sources), env, ignore)
    link = plan.place.folder / "lib/python3.11/site-packages/decentllm-source.pth"
    assert link.read_text().strip() == str(sources)
    assert len(calls(plan)) == 2


@pytest.mark.parametrize(
    ("says", "code", "sentence"),
    [
        ("error: Failed to fetch: `https://x/`\ncause: dns error", "cannot_download", "Check the internet connection"),
        ("error: Hash mismatch for `torch`", "wrong_hash", "not the expected one"),
        ("error: write failed: No space left on device", "disk_full", "Make room"),
        ("error: No solution found when resolving dependencies", "cannot_download", "not to be had"),
        ("error: something new", "install_failed", "something new"),
    ],
)
async def test_what_uv_complains_of_is_one_sentence(
    plan: Plan, env: AsyncioEnv, says: str, code: str, sentence: str
) -> None:
    (plan.uv.parent / "says").write_text(says)
    with pytest.raises(ProvisionError, match=sentence) as caught:
        await prepare(plan, env, ignore)
    assert caught.value.code == code
    assert not plan.place.is_ready


async def test_after_a_failure_the_next_try_goes_on_and_succeeds(plan: Plan, env: AsyncioEnv) -> None:
    says = plan.uv.parent / "says"
    says.write_text("error: timed out")
    with pytest.raises(ProvisionError):
        await prepare(plan, env, ignore)
    assert (plan.place.cache / "torch").exists(), "what was fetched is kept"
    says.unlink()
    assert await prepare(plan, env, ignore) == plan.place.python


async def test_a_runtime_that_fails_its_test_is_never_switched_to(plan: Plan, env: AsyncioEnv) -> None:
    (plan.uv.parent / "bad-runtime").touch()
    with pytest.raises(ProvisionError, match="no kernel image") as caught:
        await prepare(plan, env, ignore)
    assert caught.value.code == "self_test_failed"
    assert not plan.place.is_ready
    assert not (plan.place.root / "current").exists()


async def test_cancelling_stops_the_tool_and_a_later_try_works(plan: Plan, env: AsyncioEnv) -> None:
    hang, hangs = plan.uv.parent / "hang", plan.uv.parent / "hangs"
    hang.touch()
    running = asyncio.create_task(prepare(plan, env, ignore))
    async with asyncio.timeout(60):
        while not hangs.exists():
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    hang.unlink()
    assert await prepare(plan, env, ignore) == plan.place.python


async def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(plan: Plan, env: AsyncioEnv) -> None:
    huge = replace(plan.choice.lock, installed_bytes=10**18)
    with pytest.raises(ProvisionError, match="are free") as caught:
        await prepare(replace(plan, choice=replace(plan.choice, lock=huge)), env, ignore)
    assert caught.value.code == "disk_full"
    assert not (plan.uv.parent / "calls").exists()


async def test_a_folder_that_cannot_be_written_is_named(plan: Plan, env: AsyncioEnv, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = RuntimePlace(tmp_path / "file" / "runtime", "abc")
    with pytest.raises(ProvisionError, match="cannot be written to") as caught:
        await prepare(replace(plan, place=blocked), env, ignore)
    assert caught.value.code == "install_failed"
