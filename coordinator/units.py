"""The systemd unit of a coordinator: its own user, no rights but its folder and its port."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.config import ConfigError, PoolConfig

USER = "decentllm-coordinator"
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp")))  # noqa: S108 - to refuse them
FIRST_FREE_PORT = 1024
"""Below it, binding needs a capability (ip(7), ip_unprivileged_port_start)."""

_TEMPLATE = """\
# {name}: a systemd unit for this pool. To install it:
#   sudo useradd --system --home-dir {shell_data_dir} --shell /usr/sbin/nologin {user}
#   sudo install -d -m 0700 {shell_data_dir}
#   sudo chown -R {user}: {shell_data_dir}
#   sudo cp THIS-FILE /etc/systemd/system/{name}
#   sudo systemctl daemon-reload && sudo systemctl enable --now {name}
# Links and invitations, while it runs:
#   sudo -u {user} {shell_command} invite --data-dir {shell_data_dir}

[Unit]
Description=DecentLLM coordinator
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=exec
User={user}
Group={user}
DynamicUser=no
ExecStart={exec_start}
WorkingDirectory={data_dir}
Environment=HF_HOME={hub_folder}
Restart=on-failure
RestartSec=5
TimeoutStopSec=20
UMask=0077
LimitCORE=0
LimitNOFILE=65536

# It reads models and serves; it writes only to its folder.
ProtectSystem=strict
ReadWritePaths={data_dir}
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Program:
    """How this coordinator is started: the words before its own arguments, and the folders that Python needs."""

    words: tuple[str, ...]
    folders: tuple[str, ...] = ()


def this_program(argv0: str, executable: str = sys.executable) -> Program:
    """The console script if that is what runs, else `python -m coordinator`. Raises ConfigError."""
    script, folders = Path(argv0), (sys.prefix, sys.base_prefix)
    if script.name == USER and script.is_absolute() and os.access(script, os.X_OK):
        return Program((str(script),), folders)
    if not executable:
        raise ConfigError("The Python interpreter's place is unknown; run the installed command decentllm-coordinator.")
    return Program(
        (executable, "-P", "-m", "coordinator"), folders
    )  # -P: nothing is imported from the folder it writes to


def coordinator_unit(config: PoolConfig, program: Program) -> str:
    """The unit's text. Settings are not in it: it reads data_dir/pool.toml. Raises ConfigError for paths that a unit
    cannot name."""
    data_dir = config.data_dir.absolute()
    if any(data_dir.is_relative_to(folder) for folder in TEMPORARY):
        raise ConfigError(f"The data folder {data_dir} is for temporary files: choose a lasting one with --data-dir.")
    words = [*program.words, "serve", "--data-dir", str(data_dir)]
    return _TEMPLATE.format(
        name=f"{USER}.service",
        user=USER,
        shell_command=shlex.join(program.words),
        shell_data_dir=shlex.quote(str(data_dir)),
        exec_start=" ".join(map(_word, words)),
        data_dir=_path(data_dir),
        hub_folder=_path(data_dir / "hub"),
        protect_home="read-only" if _reads_homes(config, program) else "yes",
        capabilities="CAP_NET_BIND_SERVICE" if 0 < config.port < FIRST_FREE_PORT else "",
    )


def _reads_homes(config: PoolConfig, program: Program) -> bool:
    """Whether anything that the service needs lies in a home folder."""
    files = [path for path in (config.tls_certificate, config.tls_key) if path is not None]
    needed: Sequence[str | Path] = [
        config.data_dir.absolute(),
        *config.models,
        *files,
        program.words[0],
        *program.folders,
    ]
    return any(Path(path).is_relative_to(home) for path in needed for home in HOMES)


def _path(path: Path) -> str:
    """Where a unit takes the rest of the line as one path, specifiers are all that is special (systemd.unit(5))."""
    text = _checked(str(path))
    if any(c.isspace() or c in "\"'\\;" for c in text):
        raise ConfigError(f"The data folder {text} has a blank or a quotation mark; a unit needs one without.")
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a command line (systemd.service(5), "Command lines")."""
    text = _checked(text).replace("%", "%%").replace("$", "$$")
    if text and not any(c.isspace() or c in "\"'\\;" for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _checked(text: str) -> str:
    if not text.isprintable():
        raise ConfigError("A path with a control character cannot be written into a unit.")
    return text
