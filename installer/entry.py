"""What the installed app starts: window, agent and commands are one program (client/__main__.py tells them apart)."""

import multiprocessing
import sys

from client.__main__ import main

if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(main())
