"""Every node and every reader of an answer is an open file, and shells start programs with 1,024 of them (systemd's
units have a limit of their own, units.py)."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger(__name__)

WANTED = 65_536


def raise_open_files() -> int:
    """Let this process open as many files as it may without asking anybody, WANTED at most; returns how many.

    0 where there is no such limit (Windows)."""
    if sys.platform == "win32":
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError) as error:  # macOS has a second limit, of the kernel's
        log.warning("only %d files may be open at once, so about as many nodes: %s", soft, error)
        return soft
    return limit
