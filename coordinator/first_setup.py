"""`decentllm-coordinator init`: take or ask for what matters, write pool.toml with every setting explained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.config import (
    DEFAULT_POOL_NAME,
    ConfigError,
    PoolConfig,
    check_config,
    check_pool_name,
    default_data_dir,
    is_loopback,
)
from coordinator.private_files import write_private
from coordinator.settings_file import FILE_NAME, parse_settings
from protocol.pause import DEFAULT_RULES

COMMAND = "decentllm-coordinator"

Ask = Callable[[str], str]
"""Shows a question and returns the line that was typed."""

_TEMPLATE = """\
# The settings of a DecentLLM pool. `{command} serve` reads this file when it starts;
# what is given on its command line wins. A line that begins with # is a comment: remove the # to decide
# something else than the default that it shows.

[pool]
# What people see.
name = {name}

# Where the pool listens. 127.0.0.1: only this machine. 0.0.0.0: every network of this machine (with encryption, by a
# certificate that the pool makes itself and whose fingerprint is in the join links).
host = {host}
port = {port}

# What is served from the start: folders with safetensors, .gguf files or hub ids (owner/name). Empty: every model of
# the catalog, that is what `{command} model add` and the operator page have added.
models = {models}

# true: everybody who reaches the pool may chat and contribute. false: only with an invitation or an API key.
open = {open}

# The address in links, if it is another than host and port: a name, or what a router or reverse proxy is reached by.
{public_url}

# true: a reverse proxy on this machine ends TLS and passes plain HTTP on; needs public_url = "https://...".
# behind_proxy = false

# A certificate of an authority instead of the pool's own, with its chain, and its key (both PEM, the key without a
# password). Relative paths begin at this file's folder.
# tls_certificate = "/etc/ssl/pool/fullchain.pem"
# tls_key = "/etc/ssl/pool/key.pem"

# How the models are divided among the machines. `{command} plan` shows what comes of it.
[plan]
# So many whole copies of a model are held before another model gets more than its own. Every model that is not named
# here has 1; with 0 a model gets only what others leave. The names are those of `{command} model list`.
# replicas = {{ "a-model" = 2, "another-model" = 0 }}

# true: neighbouring parts of a model are held by different machines, and one person's requests go over different ones
# where there is a choice, so that no machine sees more than it must. Costs some speed.
# keep_apart = {keep_apart}

# How long the pool keeps answers whose reader is away, in seconds. They are on its disk for as long.
[answers]
# The connection of somebody who can come back has broken in the middle of an answer.
# grace_s = {grace_s}

# The pool was restarted in the middle of an answer, and its reader has not come back.
# unread_s = {unread_s}

# The answer is complete.
# retention_s = {retention_s}

# What every contributing machine keeps to, unless its owner is stricter. Without these lines each owner decides alone.
[defaults]
# "always", "when_free" (nothing else needs the GPU) or "when_away" (nobody is at the machine).
# mode = "{mode}"

# Serve while a laptop runs on battery.
# run_on_battery = {run_on_battery}

# Without keyboard and mouse for so long, nobody is at the machine.
# away_after_s = {away_after_s:g}

# The share of the GPU's time from which another program's use of it counts.
# other_gpu_percent = {other_gpu_percent}

# Pause when less GPU memory than this is free.
# min_free_gpu_memory = "{min_free_gpu_mib}MiB"

# Pause when the GPU is hotter (degrees Celsius).
# max_temperature_c = {max_temperature_c}

# Programs that have the machine to themselves while they run.
# programs = ["blender", "obs"]

# Contribute only at these times of day (local time of each machine; may cross midnight).
# hours = "20:00-07:30"

# At most so much memory per device, so many layers, so much disk for weights.
# max_memory = "8GB"
# max_layers = 24
# max_disk = "50GB"
"""


def settings_text(config: PoolConfig) -> str:
    """The content of a new pool.toml."""
    public_url = f"public_url = {_quoted(config.public_url)}"
    assert DEFAULT_RULES.min_free_gpu_bytes is not None
    return _TEMPLATE.format(
        command=COMMAND,
        name=_quoted(config.pool_name),
        host=_quoted(config.host),
        port=config.port,
        models=f"[{', '.join(map(_quoted, config.models))}]",
        open=json.dumps(config.is_open),
        public_url=public_url if config.public_url else '# public_url = "https://pool.example.org"',
        keep_apart=json.dumps(config.plan.keeps_apart),
        grace_s=config.answers.grace_s,
        unread_s=config.answers.unread_s,
        retention_s=config.answers.retention_s,
        mode=DEFAULT_RULES.mode,
        run_on_battery=json.dumps(DEFAULT_RULES.run_on_battery),
        away_after_s=DEFAULT_RULES.away_after_s,
        other_gpu_percent=DEFAULT_RULES.other_gpu_percent,
        min_free_gpu_mib=DEFAULT_RULES.min_free_gpu_bytes // 2**20,
        max_temperature_c=DEFAULT_RULES.max_temperature_c,
    )


def write_settings(data_dir: Path, given: Mapping[str, Any], *, may_replace: bool) -> PoolConfig:
    """Write data_dir/pool.toml (mode 0600). Raises ConfigError for what `serve` would refuse, and for a file that is
    there already."""
    path = data_dir / FILE_NAME
    if path.exists() and not may_replace:
        raise ConfigError(f"{path} is there already; edit it, or replace it with --force.")
    config = PoolConfig(**{"data_dir": data_dir, **given, "models": tuple(map(_lasting, given.get("models", ())))})
    check_config(config)
    data = _encoded(settings_text(config))
    parse_settings(data, data_dir)  # whatever `serve` would refuse is refused now
    write_private(path, data)
    return config


def ask_settings(ask: Ask) -> dict[str, Any]:
    """Name, model, and who may come in, from a person at a terminal; an empty line takes the default."""
    name = _ask_name(ask)
    model = ask("Model (a folder, a .gguf file or a hub id like owner/name; empty: later): ").strip()
    is_open = _ask_is_open(ask)
    return {"pool_name": name, "models": (model,) if model else (), "is_open": is_open}


def next_steps(config: PoolConfig) -> str:
    """What to do after init."""
    place = "" if config.data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(config.data_dir))}"
    lines = [
        f"Wrote {config.data_dir / FILE_NAME}: every setting is explained there.",
        f"Start the pool:                    {COMMAND} serve{place}",
        f"Let the system start it (systemd): {COMMAND} unit{place} > {COMMAND}.service",
    ]
    if not config.models:
        lines.insert(1, f"Add a model:                       {COMMAND} model add FOLDER|FILE.gguf|HUB-ID{place}")
    if is_loopback(config.host) and not config.public_url:
        lines.append('Only this machine reaches the pool: for others, write host = "0.0.0.0" into that file.')
    return "\n".join(lines)


def _ask_name(ask: Ask) -> str:
    question = f"Name of the pool [{DEFAULT_POOL_NAME}]: "
    while True:
        name = ask(question).strip() or DEFAULT_POOL_NAME
        try:
            check_pool_name(name, "A name")
        except ConfigError as fault:
            question = f"{fault} Name of the pool: "
        else:
            return name


def _ask_is_open(ask: Ask) -> bool:
    question = "Who may chat and contribute: everybody who reaches it (open), or invited people only (invited) [open]: "
    answers = {"": True, "open": True, "o": True, "invited": False, "i": False}
    while (answer := ask(question).strip().lower()) not in answers:
        question = "Please type open or invited [open]: "
    return answers[answer]


def _lasting(spec: str) -> str:
    """A relative path means nothing to a service that starts in another folder."""
    try:
        path = Path(spec).expanduser()
        return str(path.absolute()) if path.exists() else spec
    except (OSError, ValueError, RuntimeError):  # too long, has a NUL, or is in an unknown user's home
        return spec


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among its own, but for pairs of surrogates (TOML 1.0, "String")."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConfigError("A name or path has characters that cannot be written as UTF-8.") from None
