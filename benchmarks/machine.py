"""What a figure was measured on: goes above every table in docs/."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> str:
    """One line: processor, cores, memory, versions, date."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB",
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}",
        datetime.date.today().isoformat(),
    ]
    return "; ".join(parts)


def _processor() -> str:
    """The processor's name and its widest vector instructions, which decide what float32 costs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    widest = next((name for name in ("avx512f", "avx2") if name in facts.get("flags", "").split()), "no AVX2")
    return f"{facts.get('model name', platform.machine())} ({widest})"
