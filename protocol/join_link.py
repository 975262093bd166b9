"""The link that brings a node (or a person) to a pool: address, the certificate to expect, an invitation.

    decentllm://pool.example.org:8443/join?pin=SHA256HEX&invite=TOKEN     for the app
    https://pool.example.org:8443/#invite=TOKEN                          for the browser

`pin` is the SHA-256 of the pool's own certificate (DER): a pool that signs its certificate itself is trusted by this
link and by nothing else. Without a pin, `tls=1` means a certificate of a public authority, neither means plain HTTP,
which is for loopback. The invitation is in a fragment in the browser's form, so that it reaches no server log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

SCHEME = "decentllm"
MAX_LINK_CHARACTERS = 600
_HOST = re.compile(r"[\w.:%-]+")
"""A name (in any script), an IPv4 or an IPv6 address."""
_PIN = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,128}")
_BAD = re.compile(r"[\s\x00-\x1f\x7f\"'<>\\]")


class JoinLinkError(Exception):
    """What was pasted is no join link and no address; the sentence is for the person who pasted it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class JoinLink:
    """`url` is the pool's base address, such as https://pool.example.org:8443. Empty `pin`: a public certificate, or
    plain HTTP. Empty `invite`: an open pool, or a node that is enrolled already."""

    url: str
    pin: str = ""
    invite: str = field(default="", repr=False)

    @property
    def host_and_port(self) -> str:
        return urlsplit(self.url).netloc

    def __str__(self) -> str:
        """For logs and windows: without the invitation."""
        return self.url


def format_join_link(link: JoinLink) -> str:
    """The app's form."""
    parts = urlsplit(link.url)
    query = {"pin": link.pin, "tls": "1" if parts.scheme == "https" and not link.pin else "", "invite": link.invite}
    given = urlencode({name: value for name, value in query.items() if value})
    return f"{SCHEME}://{parts.netloc}/join{'?' if given else ''}{given}"


def format_browser_link(link: JoinLink) -> str:
    """The browser's form."""
    return f"{link.url}/#invite={link.invite}" if link.invite else f"{link.url}/"


def fingerprint_text(pin: str) -> str:
    """A certificate's SHA-256 as browsers show it and people compare it: AA:BB:..."""
    return ":".join(pin[start : start + 2] for start in range(0, len(pin), 2)).upper()


def parse_join_link(text: str) -> JoinLink:
    """Either form, or a bare address (`host:port`, http or https). Raises JoinLinkError with one sentence."""
    text = text.strip()
    if not text:
        raise JoinLinkError("Paste the pool's join link, or its address, such as https://pool.example.org.")
    if len(text) > MAX_LINK_CHARACTERS:
        raise JoinLinkError(f"The link is longer than {MAX_LINK_CHARACTERS} characters.")
    if _BAD.search(text):
        raise JoinLinkError("The link contains a blank, a quotation mark or a character that cannot be shown.")
    text = text if "://" in text else f"http://{text}"
    try:
        return _from_app(text) if text.lower().startswith(f"{SCHEME}:") else _from_browser(text)
    except ValueError:
        raise JoinLinkError("The pool's address is not a valid URL.") from None


def _from_app(text: str) -> JoinLink:
    parts = urlsplit(text)
    query = parse_qs(parts.query, max_num_fields=16)
    pin, invite = _one(query, "pin"), _one(query, "invite")
    if pin and not _PIN.fullmatch(pin):
        raise JoinLinkError("The link's fingerprint is damaged; copy the whole link again.")
    is_secure = bool(pin) or _one(query, "tls") == "1"
    return JoinLink(_base("https" if is_secure else "http", parts.netloc), pin, _checked_invite(invite))


def _from_browser(text: str) -> JoinLink:
    parts = urlsplit(text)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https"):
        raise JoinLinkError(f"A pool's link begins with {SCHEME}://, https:// or http://.")
    invite = _one(parse_qs(parts.fragment, max_num_fields=16), "invite")
    return JoinLink(_base(scheme, parts.netloc), "", _checked_invite(invite))


def _base(scheme: str, netloc: str) -> str:
    parts = urlsplit(f"{scheme}://{netloc}")
    has_port_in_range = parts.port is None or parts.port > 0  # urlsplit raises ValueError above 65535
    (parts.hostname or "").encode("idna")  # ValueError for a name that no network could be asked for
    if not has_port_in_range or not _HOST.fullmatch(parts.hostname or ""):
        raise JoinLinkError("The pool's address must look like https://host:port.")
    if "@" in netloc:
        raise JoinLinkError("The pool's address must not contain a user name or password.")
    return f"{scheme}://{netloc.lower()}"


def _checked_invite(token: str) -> str:
    if token and not _TOKEN.fullmatch(token):
        raise JoinLinkError("The link's invitation is damaged; copy the whole link again.")
    return token


def _one(query: dict[str, list[str]], name: str) -> str:
    values = query.get(name, [""])
    if len(values) > 1:
        raise JoinLinkError(f"The link has two values for {name!r}; copy it again.")
    return values[0]
