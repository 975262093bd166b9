"""`python -m benchmarks.network.inside NAMESPACE NICENESS WORDS...`: `python WORDS...` in a network namespace.

A program in between rather than words before: whoever starts pools starts `python ...`. It becomes the other program,
so that the process's id and signals are that one's. Network.words says how to call it.
"""

from __future__ import annotations

import os
import sys

FIRST_WORD = 3


def main() -> None:
    """Does not return."""
    _, namespace, niceness = sys.argv[:FIRST_WORD]
    os.nice(int(niceness))
    os.execvp("ip", ["ip", "netns", "exec", namespace, sys.executable, *sys.argv[FIRST_WORD:]])


if __name__ == "__main__":
    main()
