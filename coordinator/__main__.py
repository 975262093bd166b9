"""The command `decentllm-coordinator`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator.config import PoolConfig, check_config, checked_public_url, default_data_dir
from coordinator.errors import PoolError
from coordinator.models.errors import ModelError
from protocol.version import app_version

MAX_DAYS = 3650.0
MAX_USES = 1_000_000
SETTINGS = (
    "host",
    "port",
    "pool_name",
    "models",
    "is_open",
    "public_url",
    "behind_proxy",
    "tls_certificate",
    "tls_key",
)
"""Fields of PoolConfig that the command line can give. An option that was not given is None (or an empty list)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit status. Whatever people did wrong is one sentence, never a traceback."""
    arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("httpx", "httpx2"):  # the hub's library logs every request with it
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return int(arguments.run(arguments))
    except (PoolError, ModelError) as error:
        print(f"decentllm-coordinator: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the data folder cannot be written, the disk is full
        where = f": {error.filename}" if error.filename else ""
        print(f"decentllm-coordinator: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):  # EOFError: Ctrl-D at a question
        return 130


# ---------------------------------------------------------------- the pool


def _init(arguments: argparse.Namespace) -> int:
    from coordinator.first_setup import ask_settings, next_steps, write_settings
    from coordinator.settings_file import FILE_NAME

    given = _given(arguments)
    is_new = arguments.force or not (arguments.data_dir / FILE_NAME).exists()
    if is_new and not given and sys.stdin.isatty():
        given = ask_settings(input)
    print(next_steps(write_settings(arguments.data_dir, given, may_replace=arguments.force)))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    from coordinator.app import serve  # importing the web stack takes a second that a wrong setting need not wait for

    serve(config, with_operator_link=arguments.operator_link)
    return 0


def _unit(arguments: argparse.Namespace) -> int:
    from coordinator.units import coordinator_unit, this_program

    print(coordinator_unit(_config(arguments), this_program(sys.argv[0])), end="")
    return 0


def _config(arguments: argparse.Namespace) -> PoolConfig:
    from coordinator.settings_file import load_config

    config = load_config(arguments.data_dir, _given(arguments))
    check_config(config)
    return config


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line has."""
    options = {name: getattr(arguments, name, None) for name in SETTINGS}
    given = {name: value for name, value in options.items() if value is not None and value != []}
    if "models" in given:
        given["models"] = tuple(given["models"])
    if "public_url" in given:
        given["public_url"] = checked_public_url(given["public_url"])
    return given


def _plan(arguments: argparse.Namespace) -> int:
    from coordinator import plan_command

    wanted = plan_command.Wanted(arguments.model, arguments.explain, arguments.json)
    print(plan_command.plan(arguments.data_dir, wanted))
    return 0


# ---------------------------------------------------------------- links, invitations, keys


def _operator_link(arguments: argparse.Namespace) -> int:
    from coordinator import administration

    with administration.opened(arguments.data_dir) as (accounts, site):
        print(administration.operator_link(accounts, site))
    return 0


def _invite(arguments: argparse.Namespace) -> int:
    from coordinator import administration

    wanted = administration.Invitation(
        arguments.label, arguments.chat, arguments.nodes, arguments.uses, _days_or_none(arguments.days)
    )
    with administration.opened(arguments.data_dir) as (accounts, site):
        print(administration.invite(accounts, site, wanted))
    return 0


def _key(arguments: argparse.Namespace) -> int:
    from coordinator import administration

    with administration.opened(arguments.data_dir) as (accounts, _):
        print(administration.make_key(accounts, arguments.label, _days_or_none(arguments.days)))
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from coordinator import administration

    with administration.opened(arguments.data_dir) as (accounts, _):
        print(administration.revoke(accounts, arguments.id))
    return 0


def _listing(what: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from coordinator import administration

        tables = {"invitations": administration.invitations, "keys": administration.keys}
        with administration.opened(arguments.data_dir) as (accounts, _):
            print(tables[what](accounts))
        return 0

    return run


def _nodes(arguments: argparse.Namespace) -> int:
    from coordinator.node_list import node_list

    text, missing = node_list(arguments.data_dir)
    print(text)
    if missing:
        print(f"decentllm-coordinator: What late answers were about is missing. {missing}", file=sys.stderr)
    return 0


def _days_or_none(days: float) -> float | None:
    """0 on the command line: without end."""
    return days or None


# ---------------------------------------------------------------- models


def _add_model(arguments: argparse.Namespace) -> int:
    from coordinator.app import show_progress
    from coordinator.models.catalog import Catalog

    model = Catalog(arguments.data_dir / "models").add(arguments.spec, arguments.name, show_progress)
    print(f"{model.name}: {model.shape.num_layers} layers, {model.shape.numel / 1e6:.0f} M parameters")
    return 0


def _list_models(arguments: argparse.Namespace) -> int:
    from coordinator.models.catalog import Catalog

    names = Catalog(arguments.data_dir / "models").names()
    print("\n".join(names) if names else "No models yet: decentllm-coordinator model add FOLDER|FILE.gguf|HUB-ID")
    return 0


def _remove_model(arguments: argparse.Namespace) -> int:
    from coordinator.models.catalog import Catalog

    Catalog(arguments.data_dir / "models").remove(arguments.name)
    return 0


# ---------------------------------------------------------------- the command line


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="decentllm-coordinator", description="Run a pool.")
    parser.add_argument("--version", action="version", version=f"decentllm-coordinator {app_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _pool_commands(commands)
    _account_commands(commands)
    _model_commands(commands)
    _simulate_command(commands, argv)
    return parser


def _pool_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = _command(commands, "init", _init, "write a file with the settings, each explained")
    _setting_arguments(init)
    init.add_argument("--force", action="store_true", help="replace the file that is there")
    serve = _command(commands, "serve", _serve, "start the pool: scheduler, API, pages and weight mirror")
    _setting_arguments(serve)
    _tls_arguments(serve)
    serve.add_argument("--operator-link", action="store_true", help="print a sign-in link for the operator page")
    _command(commands, "unit", _unit, "print a systemd unit for this coordinator")
    plan = _command(commands, "plan", _plan, "show who holds which layers of the running pool, and why")
    plan.add_argument("--model", metavar="NAME", help="only this model")
    form = plan.add_mutually_exclusive_group()
    form.add_argument(
        "--explain", nargs="?", const="", metavar="NODE", help="why each node, or this one, holds what it holds"
    )
    form.add_argument("--json", action="store_true", help="everything, for programs")


def _account_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "operator-link", _operator_link, "make a sign-in link for the operator page")
    invite = _command(commands, "invite", _invite, "make an invitation: a link that lets people and machines in")
    invite.add_argument("--label", type=_label, default="invitation", help="to tell it from others")
    invite.add_argument("--chat", action=argparse.BooleanOptionalAction, default=True, help="allow the chat page")
    invite.add_argument("--nodes", action=argparse.BooleanOptionalAction, default=True, help="allow new machines")
    invite.add_argument("--uses", type=_uses, default=None, help="how often it may be used (default: without limit)")
    invite.add_argument(
        "--days", type=_days, default=7.0, help="how long it lasts (default: 7; 0: until it is revoked)"
    )
    _command(commands, "invitations", _listing("invitations"), "list the invitations")
    key = _command(commands, "key", _key, "make a key for the API")
    key.add_argument("--label", type=_label, default="key", help="to tell it from others")
    key.add_argument("--days", type=_days, default=0.0, help="how long it lasts (default: 0, until it is revoked)")
    _command(commands, "keys", _listing("keys"), "list the keys, without their secrets")
    revoke = _command(commands, "revoke", _revoke, "end an invitation or a key")
    revoke.add_argument("id", metavar="ID", help="as the lists show it")
    _command(commands, "nodes", _nodes, "list the machines that have joined, with what was found of them")


def _model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = commands.add_parser("model", help="the model catalog").add_subparsers(required=True, metavar="ACTION")
    add = _command(models, "add", _add_model, "check a model, convert it if need be, and remember it")
    add.add_argument(
        "spec",
        metavar="SPEC",
        help="a folder, a .gguf file or a hub id; with :int8 or :int4 behind it, weights take 8 or 4 bits",
    )
    add.add_argument("--name", default=None, help="what people see (default: from SPEC)")
    _command(models, "list", _list_models, "names of the models")
    remove = _command(models, "remove", _remove_model, "forget a model; its files stay")
    remove.add_argument("name")


def _simulate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], argv: Sequence[str]) -> None:
    """Its arguments are known only to the simulator, whose import takes a second that other commands need not wait."""
    if next((word for word in argv if not word.startswith("-")), "") == "simulate":
        from coordinator.simulate.command import add_parser

        add_parser(commands)
    else:
        commands.add_parser("simulate", help="simulate a pool and its users")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    command.set_defaults(run=run)
    default = os.environ.get("DECENTLLM_COORDINATOR_DATA_DIR")
    command.add_argument(
        "--data-dir", type=Path, default=Path(default) if default else default_data_dir(), help="the pool's folder"
    )
    return command


def _setting_arguments(command: argparse.ArgumentParser) -> None:
    """Without a default: what is not given here is in pool.toml or PoolConfig."""
    add = command.add_argument
    add("--model", dest="models", action="append", metavar="SPEC", help="a folder, a .gguf file or a hub id")
    add("--host", help="where to listen: 127.0.0.1 is this machine only, 0.0.0.0 all of its networks, with TLS")
    add("--port", type=_port, help="0 takes any free port")
    add("--name", dest="pool_name", help="what people see")
    add("--public-url", metavar="URL", help="the address in links, such as https://pool.example.org")
    who = command.add_mutually_exclusive_group()
    who.add_argument("--open", dest="is_open", action="store_true", default=None, help="let everybody in")
    who.add_argument("--invite-only", dest="is_open", action="store_false", default=None, help="only who is invited")


def _tls_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--tls-cert", dest="tls_certificate", type=Path, metavar="FILE", help="a certificate with its chain (PEM)")
    add("--tls-key", dest="tls_key", type=Path, metavar="FILE", help="its key (PEM)")
    add(
        "--behind-proxy",
        action="store_true",
        default=None,
        help="a reverse proxy on this machine ends TLS; needs --public-url https://...",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port number from 0 to 65535")
    return int(text)


def _uses(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 7 or not 1 <= int(text) <= MAX_USES:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {MAX_USES}")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 <= days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of days from 0 to {MAX_DAYS:.0f}")
    return days


def _label(text: str) -> str:
    if not 1 <= len(text.strip()) <= 64 or not text.isprintable():
        raise argparse.ArgumentTypeError("a label has 1 to 64 characters, all of which can be shown")
    return text.strip()


if __name__ == "__main__":
    sys.exit(main())
