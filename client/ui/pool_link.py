"""A pool's link as a volunteer gave it: what protocol.join_link takes, with a host that looks like no other.

Free of Qt."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from protocol.join_link import JoinLink, JoinLinkError, parse_join_link


def parse_pool_link(text: str) -> JoinLink:
    """Raises JoinLinkError with one sentence."""
    link = parse_join_link(text)
    _check_host(urlsplit(link.url).hostname or "")
    return link


def _check_host(host: str) -> None:
    if host.isascii():
        return
    try:
        plain = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise JoinLinkError("The address has a host that cannot be right.") from None
    # Two hosts can look the same in different scripts, so the volunteer sees what would be called (RFC 3492).
    raise JoinLinkError(f"The host is really “{plain}”: if that is the one you mean, write it like this.")


def is_on_this_computer(link: JoinLink) -> bool:
    host = urlsplit(link.url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def without_invitation(link: JoinLink) -> JoinLink:
    return JoinLink(link.url, link.pin)
