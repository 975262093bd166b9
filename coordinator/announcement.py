"""What `serve` prints when the pool begins to listen: the addresses and links with which its operator goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.config import Site
from protocol.join_link import fingerprint_text


@dataclass(frozen=True, slots=True)
class StartTokens:
    """Secrets that were made for this start and are shown once; empty where none was needed."""

    operator: str = ""
    invite: str = ""


def announcement(site: Site, model_names: Sequence[str], tokens: StartTokens) -> str:
    """The lines. Programs wait for "Chat page: " (demo/local_pool.py), so the order stays."""
    lines = [_models(model_names), f"Chat page: {site.base_url}/", f"API: {site.base_url}/v1"]
    lines += _joining(site, tokens.invite)
    if tokens.operator:
        lines.append(f"Operator page (one sign-in): {site.operator_link(tokens.operator)}")
    else:
        lines.append(f"Operator page: {site.base_url}/operator (`decentllm-coordinator operator-link` signs in)")
    if site.pin:
        lines.append(f"Fingerprint (SHA-256): {fingerprint_text(site.pin)}")
    return "\n".join(lines)


def join_command(link: str) -> str:
    """How a machine without a desktop joins. A link has no quotation marks (protocol.join_link)."""
    return f"decentllm node run --join '{link}'"


def _models(names: Sequence[str]) -> str:
    if names:
        return f"Models: {', '.join(names)}"
    return "This pool has no model yet: add one with --model FOLDER, FILE.gguf or HUB-ID, or on the operator page."


def _joining(site: Site, invite: str) -> list[str]:
    link = site.join_link(invite)
    lines = [f"Contribute a machine: {join_command(link)}", f"Join link: {link}"]
    if invite:
        lines.append(f"Invitation to the chat page: {site.browser_link(invite)}")
    elif not site.is_open:
        lines.append(
            "By invitation only: `decentllm-coordinator invite` makes links that let new people and machines in."
        )
    return lines
