"""Habits of the house that a machine can check, on the syntax trees of our own sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protocol", "shell", "coordinator", "client")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def uses(path: Path) -> Iterator[str]:
    """Every dotted name that is used or imported: `time.time`, `import random`, `open`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"import {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield f"{node.func.id}()"


# ---------------------------------------------------------------- only the shell is impure

IMPURE = {
    "time.time", "time.monotonic", "time.perf_counter", "time.sleep", "asyncio.sleep", "open()",
    "import random", "import uuid", "import secrets", "import socket",
    "asyncio.open_connection", "asyncio.start_server", "asyncio.create_subprocess_exec", "asyncio.to_thread",
    "datetime.now", "os.urandom",
}  # fmt: skip

ALLOWED: dict[str, tuple[set[str], str]] = {
    "coordinator/app.py": ({"import socket"}, "the edge: takes the listening socket before the slow work begins"),
    "coordinator/models/catalog.py": ({"import uuid"}, "names of partial files; runs before the pool, off the loop"),
}
"""Exceptions outside shell/, each with its reason. coordinator/models reads disks: it runs before the pool."""


@pytest.mark.parametrize(
    "path", sources("protocol", "coordinator", "client/agent"), ids=lambda path: name_of(path).removesuffix(".py")
)
def test_clock_chance_network_and_disk_come_from_the_env(path: Path) -> None:
    if name_of(path).startswith("coordinator/models/convert"):
        pytest.skip("a process of its own")
    allowed, _ = ALLOWED.get(name_of(path), (set(), ""))
    read_disk = {"open()"} if name_of(path).startswith("coordinator/models/") else set()
    assert set(uses(path)) & IMPURE <= allowed | read_disk


def test_no_exception_to_that_is_left_over() -> None:
    for name, (allowed, _) in ALLOWED.items():
        assert allowed <= set(uses(ROOT / name)), f"{name} needs its exception no more"


# ---------------------------------------------------------------- what nobody may do

FORBIDDEN_NAMES = {
    "import pickle", "import marshal", "import shelve", "import dill", "torch.load", "yaml.load", "eval()", "exec()",
    "os.system", "ssl._create_unverified_context",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {("shell", True), ("verify", False), ("trust_remote_code", True), ("weights_only", False)}


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: name_of(path).removesuffix(".py"))
def test_nothing_from_outside_is_ever_run(path: Path) -> None:
    assert not set(uses(path)) & FORBIDDEN_NAMES
    given = {
        (keyword.arg, keyword.value.value)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
    }
    assert not given & FORBIDDEN_ARGUMENTS


# ---------------------------------------------------------------- size


def code_lines(function: ast.AST) -> int:
    """Lines of a function without its documentation."""
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    documentation = function.body[0] if ast.get_docstring(function) is not None else None
    documented = 0 if documentation is None else (documentation.end_lineno or 0) - documentation.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - documented


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: name_of(path).removesuffix(".py"))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {function.name: code_lines(function) for function in functions if code_lines(function) > MAX_FUNCTION_LINES}
    assert not long


# ---------------------------------------------------------------- a test file per module

COVERED_ELSEWHERE = {
    "protocol/env.py": "interfaces; what implements them is tested in tests/shell/ and tests/fakes/test_virtual_env.py",
    "coordinator/effects.py": "values, asserted on in tests/coordinator/test_core.py",
    "coordinator/answer_times.py": "values, read in tests/coordinator/test_settings_file.py",
    "coordinator/models/stored_tensors.py": "tests/coordinator/models/test_unpack.py, through whole folders",
    "coordinator/models/unpack_floats.py": "tests/coordinator/models/test_unpack.py, through whole folders",
    "coordinator/node_news.py": "tests/coordinator/test_core_measurements.py, with whole pools",
    "coordinator/openings.py": "tests/coordinator/test_sessions.py and test_hedges.py",
    "coordinator/orders.py": "tests/coordinator/test_core.py, with whole pools",
    "coordinator/scheduler/chains.py": "tests/coordinator/scheduler/test_dispatcher.py",
    "coordinator/scheduler/refusals.py": "tests/coordinator/scheduler/test_dispatcher.py",
    "coordinator/scheduler/room.py": "tests/coordinator/scheduler/test_dispatcher.py",
    "coordinator/relaying.py": "tests/coordinator/test_core.py, with whole chains",
    "coordinator/__main__.py": "tests/coordinator/test_main.py",
    "coordinator/scheduler/commands.py": "values, asserted on in tests/coordinator/scheduler/test_scheduler.py",
    "coordinator/scheduler/policy.py": "interfaces and values; see test_routing.py and test_allocation.py",
    "coordinator/scheduler/events.py": "values, told in tests/coordinator/scheduler/test_scheduler.py",
}


def has_test(path: Path) -> bool:
    """`tests/<package>/.../test_<module>.py`, or one whose name begins so."""
    folder = ROOT / "tests" / path.relative_to(ROOT).parent
    return any(folder.glob(f"test_{path.stem}*.py"))


@pytest.mark.parametrize(
    "path", sources("protocol", "shell", "coordinator"), ids=lambda path: name_of(path).removesuffix(".py")
)
def test_every_module_has_a_test_file_or_says_where_it_is_tested(path: Path) -> None:
    defines = any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in tree_of(path).body)
    only_exports = path.name == "__init__.py" and not defines
    assert has_test(path) or name_of(path) in COVERED_ELSEWHERE or only_exports


def test_what_is_covered_elsewhere_exists_and_has_no_test_of_its_own() -> None:
    for name in COVERED_ELSEWHERE:
        assert (ROOT / name).exists()
        assert not has_test(ROOT / name)
