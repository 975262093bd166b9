"""The words that `decentllm` takes, and what it says to those who give it others."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path

from client.config import Direct, parse_size
from client.pace import parse_pace
from protocol.pause import PauseMode
from protocol.version import app_version

JOIN_VARIABLE = "DECENTLLM_JOIN"
"""The environment variable with the join link: a command line is readable for every user, and links invite."""
LINK_HELP = "the pool's join link (decentllm://...), or its address, such as http://host:8000"


def parser() -> argparse.ArgumentParser:
    """`what` of the result is what to do: gui, run, unit, facts, prepare or clean."""
    parser = argparse.ArgumentParser(
        prog="decentllm",
        description="Contribute a GPU to a pool.",
        epilog="decentllm decentllm://... opens the app with that join link.",
    )
    parser.set_defaults(
        what="gui", name="", max_memory=None, max_layers=None, max_disk=None, cpu=False, direct=None, nvml_module=None,
        pace="",
        index_url=os.environ.get("DECENTLLM_INDEX_URL", ""), find_links=os.environ.get("DECENTLLM_FIND_LINKS", ""),
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"decentllm {app_version()}")
    parser.add_argument("--join", metavar="LINK", default="", help=LINK_HELP)
    parser.add_argument("--contribute", action="store_true", help="contribute at once, without a click")
    parser.add_argument("--hidden", action="store_true", help="start in the tray, without the window")
    parser.add_argument("--data-dir", type=Path, help="where weights are kept")
    _limit_arguments(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    node = commands.add_parser("node", help="the agent without a window")
    verbs = node.add_subparsers(required=True, metavar="COMMAND")
    _run_arguments(verbs.add_parser("run", help="contribute until stopped"))
    _unit_arguments(verbs.add_parser("unit", help="print a systemd unit for a machine without a desktop"))
    _facts_arguments(verbs.add_parser("facts", help="print what contributing would use and download, as JSON"))
    _prepare_arguments(verbs.add_parser("prepare", help="get the runtime (torch) now, without contributing yet"))
    _clean_arguments(commands.add_parser("clean", help="delete all that is stored for you: weights, runtime, settings"))
    return parser


def _run_arguments(run: argparse.ArgumentParser) -> None:
    run.set_defaults(what="run")
    join_help = f"{LINK_HELP} (default: the environment variable {JOIN_VARIABLE})"
    run.add_argument("--join", metavar="LINK", default="", help=join_help)
    run.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    # Benchmarks play unequal machines on one.
    run.add_argument("--pace", type=_pace, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    _data_dir_argument(run)
    _limit_arguments(run)
    _rules_arguments(run)
    _worker_argument(run)


def _unit_arguments(unit: argparse.ArgumentParser) -> None:
    unit.set_defaults(what="unit")
    unit.add_argument("--program", type=Path, default=None, help="the installed program (default: this one)")
    _limit_arguments(unit)
    _rules_arguments(unit)


def _facts_arguments(facts: argparse.ArgumentParser) -> None:
    facts.set_defaults(what="facts", rules_file=None, pause_mode=None, attached=False)
    _data_dir_argument(facts)
    _limit_arguments(facts)
    _worker_argument(facts)


def _prepare_arguments(prepare: argparse.ArgumentParser) -> None:
    _facts_arguments(prepare)
    prepare.set_defaults(what="prepare")


def _clean_arguments(clean: argparse.ArgumentParser) -> None:
    clean.set_defaults(what="clean")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    _data_dir_argument(clean)


def _data_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=argparse.SUPPRESS, help="where weights are kept")


def _worker_argument(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("DECENTLLM_WORKER_PYTHON", "")
    parser.add_argument("--worker-python", default=default, help=argparse.SUPPRESS)


def _rules_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules-file", type=Path, metavar="FILE", help="when to pause (TOML)")
    parser.add_argument(
        "--pause-mode", choices=[mode.value for mode in PauseMode], metavar="MODE",
        help=f"instead of the file's: {', '.join(PauseMode)}",
    )  # fmt: skip


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    """The same before and after `node run`: what is not given in one place does not undo the other."""
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--name", help="what the pool calls this node (default: the machine's name)")
    add("--max-memory", type=_size, metavar="SIZE", help="per device, such as 6GB")
    add("--max-layers", type=_count, metavar="N", help="hold at most this many layers per device")
    add("--max-disk", type=_size, metavar="SIZE", help="for all weights together (default: 50GB)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--nvml-module", help=argparse.SUPPRESS)  # instead of pynvml: tests drive whole processes with a fake
    add(
        "--direct", choices=[direct.value for direct in Direct], metavar="|".join(Direct),
        help="links between nodes without the coordinator, which then see each other's addresses (default: auto, "
        "in pools on the local network)",
    )  # fmt: skip


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _pace(text: str) -> str:
    try:
        return str(parse_pace(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999")
    return int(text)
