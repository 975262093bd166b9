"""The systemd unit of a node without a desktop: a user of its own, and the join link in a file that only root reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.errors import ClientError

USER = "decentllm"
UNIT = "decentllm-node.service"
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))

_TEMPLATE = """\
# {unit}: contributes this machine from its start on, whoever is logged in. To install it:
#   sudo useradd --system --home-dir /var/lib/{user} --shell /usr/sbin/nologin {user}
#   sudo install -d -m 0755 /etc/{user}
#   sudo install -m 0600 /dev/null /etc/{user}/node.env
#   sudoedit /etc/{user}/node.env        # one line: DECENTLLM_JOIN=the pool's join link
#   sudo cp THIS-FILE /etc/systemd/system/{unit}
#   sudo systemctl daemon-reload && sudo systemctl enable --now {unit}
# What it does:  journalctl --unit {unit} --follow

[Unit]
Description=DecentLLM node
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
Group={user}
StateDirectory={user}
StateDirectoryMode=0700
WorkingDirectory=/var/lib/{user}
Environment=HOME=/var/lib/{user}
EnvironmentFile=/etc/{user}/node.env
ExecStart={exec_start}
Restart=on-failure
RestartSec=60
KillMode=mixed
TimeoutStopSec=30
UMask=0077
LimitCORE=0
Nice=10

# It reads the GPU and other programs' names (to make way for them), and writes only to its folder. Not here:
# PrivateDevices and ProtectClock, which take the GPU away, and ProtectProc.
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


class UnitError(ClientError):
    title = "No unit can be written"


def node_unit(program: Sequence[str], options: Sequence[str], reads: Sequence[Path] = ()) -> str:
    """The unit's text. `program` starts the app, which needs the folders `reads`; `options` are those of `decentllm
    node run` but the join link, which is not written here: every user can read a unit.

    Raises UnitError for words that a unit cannot hold."""
    words = [*program, "node", "run", "--data-dir", f"/var/lib/{USER}", *options]
    in_home = any(path.is_relative_to(home) for path in (*map(Path, words), *reads) for home in HOMES)
    return _TEMPLATE.format(
        unit=UNIT, user=USER, exec_start=" ".join(map(_word, words)), protect_home="read-only" if in_home else "yes"
    )


def _word(text: str) -> str:
    """One word of a command line, quoted where need be (systemd.service(5), "Command lines")."""
    if not text.isprintable():
        raise UnitError("bad_word", "A word with a control character cannot be written into a unit.")
    text = text.replace("%", "%%").replace("$", "$$")
    if text and not any(char.isspace() or char in "\"'\\;" for char in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
