"""`decentllm` on a machine that has no torch yet: `python -m tests.integration.without_torch LOCK WORDS...`.

LOCK is the file that takes the place of the app's own lock, which needs gigabytes."""

from __future__ import annotations

import sys
from pathlib import Path

from client.__main__ import main
from client.provision import choice
from client.provision.lock import parse_lock

if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text("utf-8")
    sys.modules["torch"] = None  # type: ignore[assignment] # importlib then finds none
    choice._read = lambda name: choice.Choice(parse_lock(text), text)
    sys.exit(main(sys.argv[2:]))
