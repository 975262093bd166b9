"""The command `decentllm`: without arguments the tray app, `decentllm node run` the agent alone.

Nothing heavy is imported before it is known which of the two this process is: in a frozen app one program is both."""

from __future__ import annotations

import argparse
import functools
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from client.config import NodeConfig, parse_join_url, parse_size
from client.errors import ClientError
from client.paths import FolderError, data_dir, private_folder
from protocol.version import app_version


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.what == "node":
            from client.agent.main import run_node

            return run_node(node_config(arguments))
        return _gui(arguments)
    except (ClientError, FolderError) as error:
        print(f"decentllm: {error}", file=sys.stderr)
        return 2


def node_config(arguments: argparse.Namespace) -> NodeConfig:
    """The node's settings from the command line; raises ClientError or FolderError for what cannot be used."""
    return NodeConfig(
        join_url=parse_join_url(arguments.join),
        data_dir=private_folder(arguments.data_dir) if arguments.data_dir else data_dir(),
        name=clean_name(arguments.name or platform.node()),
        max_memory_bytes=arguments.max_memory,
        max_layers=arguments.max_layers,
        use_gpu=not arguments.cpu,
        worker_python=arguments.worker_python,
        attached=arguments.attached,
    )


def clean_name(name: str) -> str:
    """A node's name as the wire takes it (protocol.values.Name)."""
    return re.sub(r"[^\w .:@+-]", "", name).strip()[:64] or "node"


def _gui(arguments: argparse.Namespace) -> int:
    from client.app import GuiSettings, run_gui

    return run_gui(
        GuiSettings(
            join_url=arguments.join or None,
            data_dir=arguments.data_dir,
            agent_arguments=agent_arguments(arguments),
            start_contributing=arguments.contribute,
            start_hidden=arguments.hidden,
        )
    )


def agent_arguments(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The limits that the volunteer gave the app, as the words that give them to its agent."""
    words = ["--name", arguments.name] if arguments.name else []
    words += ["--max-memory", str(arguments.max_memory)] if arguments.max_memory is not None else []
    words += ["--max-layers", str(arguments.max_layers)] if arguments.max_layers is not None else []
    return (*words, *(["--cpu"] if arguments.cpu else []))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="decentllm", description="Contribute a GPU to a pool.")
    parser.set_defaults(what="gui", name="", max_memory=None, max_layers=None, cpu=False)
    parser.add_argument("--version", action="version", version=f"decentllm {app_version()}")
    parser.add_argument("--join", metavar="ADDRESS", default="", help="the pool's address, such as http://host:8000")
    parser.add_argument("--contribute", action="store_true", help="contribute at once, without a click")
    parser.add_argument("--hidden", action="store_true", help="start in the tray, without the window")
    parser.add_argument("--data-dir", type=Path, help="where weights are kept")
    _limit_arguments(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    node = commands.add_parser("node", help="the agent without a window").add_subparsers(required=True, metavar="run")
    _node_arguments(node.add_parser("run", help="contribute until stopped"))
    return parser


def _node_arguments(run: argparse.ArgumentParser) -> None:
    run.set_defaults(what="node")
    run.add_argument("--join", metavar="ADDRESS", required=True, help="the pool's address, such as http://host:8000")
    run.add_argument("--data-dir", type=Path, default=argparse.SUPPRESS, help="where weights are kept")
    _limit_arguments(run)
    run.add_argument("--worker-python", default=os.environ.get("DECENTLLM_WORKER_PYTHON", ""), help=argparse.SUPPRESS)
    run.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    """The same before and after `node run`: what is not given in one place does not undo the other."""
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--name", help="what the pool calls this node (default: the machine's name)")
    add("--max-memory", type=_size, metavar="SIZE", help="per device, such as 6GB")
    add("--max-layers", type=_count, metavar="N", help="hold at most this many layers per device")
    add("--cpu", action="store_true", help="do not use a GPU")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
