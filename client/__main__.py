"""The command `decentllm`: without arguments the tray app, `decentllm node run` the agent alone.

Nothing heavy is imported before it is known which of them this process is: in a frozen app one program is all."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from client.arguments import JOIN_VARIABLE, parser
from client.config import NVML_MODULE, Direct, NodeConfig, join_link
from client.errors import ClientError, JoinError
from client.paths import FolderError, data_dir, private_folder
from client.rules_file import read_rules
from client.service_unit import node_unit
from protocol.join_link import SCHEME, JoinLink
from protocol.pause import PauseMode, PauseRules


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit status."""
    offered, words = split_offered_link(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    try:
        if arguments.what == "gui":
            return _gui(arguments, join_link(offered) if offered else None)
        if offered:
            raise JoinError("bad_link", "A node is given its pool's link with --join.")
        return _COMMANDS[arguments.what](arguments)
    except (ClientError, FolderError) as error:
        print(f"decentllm: {error}", file=sys.stderr)
        return 2


def split_offered_link(words: Sequence[str]) -> tuple[str, list[str]]:
    """A join link among the words, as a desktop gives one that was clicked, and the other words."""
    for number, word in enumerate(words):
        is_value = number > 0 and words[number - 1] == "--join"
        if word.lower().startswith(f"{SCHEME}:") and not is_value:
            return word, [*words[:number], *words[number + 1 :]]
    return "", list(words)


# ---------------------------------------------------------------- without a window


def node_config(arguments: argparse.Namespace) -> NodeConfig:
    """The node's settings from the command line and the environment; raises ClientError or FolderError for what cannot
    be used."""
    from_environment = os.environ.pop(JOIN_VARIABLE, "")  # workers have no use for an invitation
    link = arguments.join or from_environment
    if not link:
        raise JoinError("no_link", f"Give the pool's join link with --join, or in the variable {JOIN_VARIABLE}.")
    return _config(arguments, join_link(link))


def _config(arguments: argparse.Namespace, join: JoinLink) -> NodeConfig:
    return NodeConfig(
        join=join,
        data_dir=private_folder(arguments.data_dir) if arguments.data_dir else data_dir(),
        name=clean_name(arguments.name or platform.node()),
        max_memory_bytes=arguments.max_memory,
        max_layers=arguments.max_layers,
        max_disk_bytes=arguments.max_disk,
        use_gpu=not arguments.cpu,
        direct=Direct(arguments.direct or Direct.AUTO),
        rules=_rules(arguments),
        worker_python=arguments.worker_python,
        index_url=arguments.index_url,
        find_links=arguments.find_links,
        nvml_module=arguments.nvml_module or NVML_MODULE,
        pace=arguments.pace,
        attached=arguments.attached,
    )


def _rules(arguments: argparse.Namespace) -> PauseRules:
    rules = read_rules(arguments.rules_file) if arguments.rules_file else PauseRules()
    return structs.replace(rules, mode=PauseMode(arguments.pause_mode)) if arguments.pause_mode else rules


def clean_name(name: str) -> str:
    """A node's name as the wire takes it (protocol.values.Name)."""
    return re.sub(r"[^\w .:@+-]", "", name).strip()[:64] or "node"


def _run(arguments: argparse.Namespace) -> int:
    from client.agent.main import run_node

    return run_node(node_config(arguments))


def _print_unit(arguments: argparse.Namespace) -> int:
    _rules(arguments)  # a file that cannot be used is better found here than in the service's log
    itself = (sys.executable,) if getattr(sys, "frozen", False) else (sys.executable, "-P", "-m", "client")
    program = itself if arguments.program is None else (str(arguments.program),)
    reads = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__)] if arguments.program is None else []
    print(node_unit(program, [*agent_arguments(arguments), *_rules_words(arguments)], reads), end="")
    return 0


def _rules_words(arguments: argparse.Namespace) -> list[str]:
    words = ["--rules-file", str(arguments.rules_file.absolute())] if arguments.rules_file else []
    return words + (["--pause-mode", arguments.pause_mode] if arguments.pause_mode else [])


def _print_facts(arguments: argparse.Namespace) -> int:
    from client.agent.agent import nvml_of
    from client.agent.hardware import Limits, find_devices
    from client.agent.prepared import facts_of
    from client.facts import encode_facts
    from shell import AsyncioEnv

    config = _config(arguments, JoinLink(""))
    nvml = nvml_of(config)
    devices = find_devices(nvml, Limits(config.max_memory_bytes, config.max_layers))
    print(encode_facts(facts_of(config, devices, nvml, AsyncioEnv())).decode(), end="")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from client.agent.main import prepare_runtime

    print(f"The runtime is ready: {prepare_runtime(_config(arguments, JoinLink('')))}")
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    from client.autostart import system_autostart
    from client.clean import clean, describe, stored_folders
    from client.paths import all_folders

    folders = stored_folders([*all_folders(), *([arguments.data_dir] if arguments.data_dir else [])])
    print(describe(folders) if folders else "Nothing is stored.")
    if folders and not arguments.yes and input("Delete it? [y/N] ").strip().lower() not in ("y", "yes"):
        return 1
    clean(folders, system_autostart().turn_off)
    return 0


_COMMANDS = {"run": _run, "unit": _print_unit, "facts": _print_facts, "prepare": _prepare, "clean": _clean}


# ---------------------------------------------------------------- the app


def _gui(arguments: argparse.Namespace, offered_link: JoinLink | None) -> int:
    from client.app import GuiSettings, run_gui

    return run_gui(
        GuiSettings(
            join_url=arguments.join or None,
            offered_link=offered_link,
            data_dir=arguments.data_dir,
            agent_arguments=agent_arguments(arguments),
            start_contributing=arguments.contribute,
            start_hidden=arguments.hidden,
        )
    )


def agent_arguments(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The limits that the volunteer gave, as the words that give them to the agent."""
    given = {
        "--name": arguments.name or None,
        "--max-memory": arguments.max_memory,
        "--max-layers": arguments.max_layers,
        "--max-disk": arguments.max_disk,
        "--direct": arguments.direct,
        "--nvml-module": arguments.nvml_module,
    }
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    return (*words, *(["--cpu"] if arguments.cpu else []))


if __name__ == "__main__":
    sys.exit(main())
