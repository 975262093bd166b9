"""Makes sure that the Debian packages of debian-packages.txt are there: installs them if it may, else names them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIST = Path(__file__).with_name("debian-packages.txt")


def wanted_packages() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [line for line in lines if line]


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those that dpkg does not know as installed."""
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,  # it fails when it does not know one of the names, and still lists the others
    )
    installed = {line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def main() -> int:
    if shutil.which("dpkg-query") is None:
        print("This is no Debian: Chromium, Xvfb and Qt's libraries must be there already.", file=sys.stderr)
        return 0
    missing = missing_packages(wanted_packages())
    if not missing:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"Missing Debian packages, install them first: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1
    print(f"Installing Debian packages: {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
