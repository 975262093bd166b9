"""The command `decentllm-coordinator`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator.config import PoolConfig, default_data_dir
from coordinator.errors import PoolError
from coordinator.models.errors import ModelError
from protocol.version import app_version


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit status. Whatever people did wrong is one sentence, never a traceback."""
    arguments = _parser().parse_args(argv)
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
    except KeyboardInterrupt:
        return 130


def _serve(arguments: argparse.Namespace) -> int:
    from coordinator.app import serve  # importing the web stack takes a second that `--help` need not wait for

    serve(
        PoolConfig(
            data_dir=arguments.data_dir,
            host=arguments.host,
            port=arguments.port,
            pool_name=arguments.name,
            models=tuple(arguments.model),
        )
    )
    return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="decentllm-coordinator", description="Run a pool.")
    parser.add_argument("--version", action="version", version=f"decentllm-coordinator {app_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the pool: scheduler, API, chat page and weight mirror")
    serve.set_defaults(run=_serve)
    serve.add_argument(
        "--model", action="append", default=[], metavar="SPEC", help="a folder, a .gguf file or a hub id"
    )
    serve.add_argument("--host", default="127.0.0.1", help="loopback only in this version")
    serve.add_argument("--port", type=_port, default=8000, help="0 takes any free port")
    serve.add_argument("--name", default="DecentLLM pool", help="what people see")
    _data_dir(serve)
    models = commands.add_parser("model", help="the model catalog").add_subparsers(required=True, metavar="ACTION")
    add = models.add_parser("add", help="check a model, convert it if need be, and remember it")
    add.set_defaults(run=_add_model)
    add.add_argument("spec", metavar="SPEC", help="a folder, a .gguf file or a hub id")
    add.add_argument("--name", default=None, help="what people see (default: from SPEC)")
    listing = models.add_parser("list", help="names of the models")
    listing.set_defaults(run=_list_models)
    remove = models.add_parser("remove", help="forget a model; its files stay")
    remove.set_defaults(run=_remove_model)
    remove.add_argument("name")
    for command in (add, listing, remove):
        _data_dir(command)
    return parser


def _data_dir(command: argparse.ArgumentParser) -> None:
    default = os.environ.get("DECENTLLM_COORDINATOR_DATA_DIR")
    command.add_argument("--data-dir", type=Path, default=Path(default) if default else default_data_dir())


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
