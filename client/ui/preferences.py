"""What the app remembers between starts: a TOML file that people may edit."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from client.config import parse_join_url
from client.errors import JoinError

FILE_NAME = "gui.toml"
MAX_FILE_BYTES = 64 * 1024
MAX_ADDRESS_CHARACTERS = 400
"""protocol.values.Url has the same limit."""
_EXAMPLE = "https://pool.example.org"


class AddressError(Exception):
    """A pool's address that cannot be one; the sentence is for the volunteer."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class PreferencesError(Exception):
    """The settings file cannot be read or written; the sentence says where and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"The settings file {self.path} cannot be used: {self.reason}."


@dataclass(frozen=True, slots=True)
class Preferences:
    """`version` grows when a field changes its meaning. An empty `join_url`: not told yet."""

    join_url: str = ""
    version: int = 1


def parse_pool_address(text: str) -> str:
    """The pool's base address, as the agent takes it. Raises AddressError with one sentence."""
    address = text.strip()
    if not address:
        raise AddressError(f"Paste the pool's address, for example {_EXAMPLE}.")
    if len(address) > MAX_ADDRESS_CHARACTERS:
        raise AddressError(f"The address is longer than {MAX_ADDRESS_CHARACTERS} characters.")
    if re.search(r"[\s\x00-\x1f\x7f\"'<>\\]", address):
        raise AddressError("The address contains a blank, a quotation mark or a character that cannot be shown.")
    for socket_scheme, scheme in (("ws://", "http://"), ("wss://", "https://")):
        if address.lower().startswith(socket_scheme):
            address = scheme + address[len(socket_scheme) :]
    try:
        address = parse_join_url(address)
    except JoinError as error:
        raise AddressError(str(error)) from None
    _check_host(urlsplit(address).hostname or "")
    return address


def _check_host(host: str) -> None:
    if host.isascii():
        return
    try:
        plain = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise AddressError("The address has a host that cannot be right.") from None
    # Two hosts can look the same in different scripts, so the volunteer sees what would be called (RFC 3492).
    raise AddressError(f"The host is really “{plain}”: if that is the one you mean, write it like this.")


def load_preferences(path: Path) -> Preferences:
    """The defaults if there is no file. Raises PreferencesError for a file that cannot be used."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PreferencesError(path, f"it is larger than {MAX_FILE_BYTES} bytes")
        found = msgspec.convert(tomllib.loads(path.read_text("utf-8-sig")), Preferences)
    except FileNotFoundError:
        return Preferences()
    except OSError as error:
        raise PreferencesError(path, error.strerror or str(error)) from None
    except (ValueError, msgspec.ValidationError) as error:
        raise PreferencesError(path, str(error).rstrip(".")) from None
    return _with_checked_address(path, found)


def _with_checked_address(path: Path, found: Preferences) -> Preferences:
    try:
        return Preferences(parse_pool_address(found.join_url)) if found.join_url else Preferences()
    except AddressError as error:
        raise PreferencesError(path, str(error).rstrip(".")) from None


def save_preferences(path: Path, preferences: Preferences) -> None:
    """Replace the file; one that could not be used is kept beside it. Raises PreferencesError."""
    # A JSON string of printable characters is a TOML basic string.
    text = f"version = {preferences.version}\njoin_url = {json.dumps(preferences.join_url)}\n"
    new = path.with_name(path.name + ".new")
    try:
        _set_aside_unusable(path)
        new.write_text(text, "utf-8")
        new.chmod(0o600)
        os.replace(new, path)  # noqa: PTH105 - its atomic replacement is documented for all platforms
    except OSError as error:
        raise PreferencesError(path, error.strerror or str(error)) from None


def _set_aside_unusable(path: Path) -> None:
    try:
        load_preferences(path)
    except PreferencesError:
        now = datetime.now(tz=UTC)
        path.rename(path.with_name(f"{path.name}.bad-{now:%Y%m%dT%H%M%S}"))
