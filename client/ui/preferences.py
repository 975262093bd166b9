"""What the app remembers between starts: a TOML file that people may edit.

It is for its user only: it may hold an invitation."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from client.config import Direct
from client.ui.pause_choice import ManualPause
from client.ui.pool_link import parse_pool_link
from protocol.join_link import JoinLink, JoinLinkError, format_join_link
from protocol.pause import PauseRules

FILE_NAME = "gui.toml"
MAX_FILE_BYTES = 64 * 1024
VERSION = 2
MIN_MEMORY_BYTES = 2**29
MIN_DISK_BYTES = 10**9

MemoryLimit = Annotated[int, Meta(ge=MIN_MEMORY_BYTES, le=2**53)]
DiskLimit = Annotated[int, Meta(ge=MIN_DISK_BYTES, le=2**53)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]
NodeName = Annotated[str, Meta(max_length=64)]


class PreferencesError(Exception):
    """The settings file cannot be read or written; the sentence says where and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"The settings file {self.path} cannot be used: {self.reason}."


class CloseAction(StrEnum):
    """What closing the window means."""

    ASK = "ask"
    KEEP = "keep"
    """Keep running in the tray."""
    QUIT = "quit"


class Preferences(msgspec.Struct, frozen=True):
    """`version` grows when a field changes its meaning. An empty `join_link`: not told yet.

    `contributes` is what the volunteer wished for last: after a restart the app goes on with it. `is_paused` and
    `paused_until_s` are a pause by hand that outlives the app."""

    version: int = VERSION
    join_link: str = ""
    contributes: bool = False
    is_paused: bool = False
    paused_until_s: Moment | None = None
    name: NodeName = ""
    max_memory_bytes: MemoryLimit | None = None
    max_disk_bytes: DiskLimit | None = None
    direct: Direct = Direct.AUTO
    close_action: CloseAction = CloseAction.ASK
    starts_hidden: bool = True
    """When the app is started at login."""
    rules: PauseRules = PauseRules()

    @property
    def link(self) -> JoinLink | None:
        return parse_pool_link(self.join_link) if self.join_link else None

    @property
    def pause(self) -> ManualPause | None:
        return ManualPause(self.paused_until_s) if self.is_paused else None

    def with_link(self, link: JoinLink) -> Preferences:
        return msgspec.structs.replace(self, join_link=format_join_link(link))

    def with_pause(self, pause: ManualPause | None) -> Preferences:
        """What a restart of the app ends is not remembered at all."""
        if pause is None or not pause.outlives_app:
            return msgspec.structs.replace(self, is_paused=False, paused_until_s=None)
        return msgspec.structs.replace(self, is_paused=True, paused_until_s=pause.until_s)


def load_preferences(path: Path) -> Preferences:
    """The defaults if there is no file. Raises PreferencesError for a file that cannot be used."""
    try:
        found = _read(path)
    except FileNotFoundError:
        return Preferences()
    try:
        preferences = msgspec.convert(_known(found), Preferences)
        _ = preferences.link
    except (ValueError, msgspec.ValidationError, JoinLinkError) as error:
        raise PreferencesError(path, str(error).rstrip(".")) from None
    return preferences


def _read(path: Path) -> dict[str, Any]:
    """The file as it is, in today's names. Raises FileNotFoundError or PreferencesError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PreferencesError(path, f"it is larger than {MAX_FILE_BYTES} bytes")
        found = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PreferencesError(path, error.strerror or str(error)) from None
    except ValueError as error:
        raise PreferencesError(path, str(error).rstrip(".")) from None
    version = found.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise PreferencesError(path, "a newer version of DecentLLM wrote it")
    if version == 1 and "join_url" in found:
        found["join_link"] = found.pop("join_url")
    return found | {"version": VERSION}


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that mean nothing to us."""
    known = {name: found[name] for name in Preferences.__struct_fields__ if name in found}
    if isinstance(rules := known.get("rules"), dict):
        known["rules"] = {name: rules[name] for name in PauseRules.__struct_fields__ if name in rules}
    return known


def save_preferences(path: Path, preferences: Preferences) -> None:
    """Replace the file; one that could not be used, or in part, is kept beside it. Raises PreferencesError."""
    new = path.with_name(path.name + ".new")
    try:
        _set_aside_unusable(path)
        new.unlink(missing_ok=True)
        # Created with its mode: between writing and a later chmod others could open it.
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(_lines(preferences)) + "\n")
        os.replace(new, path)  # noqa: PTH105 - its atomic replacement is documented for all platforms
    except OSError as error:
        raise PreferencesError(path, error.strerror or str(error)) from None


def _set_aside_unusable(path: Path) -> None:
    try:
        load_preferences(path)
        found = _read(path) if path.exists() else {}
        if _known(found) == found:
            return
    except PreferencesError:
        pass
    now = datetime.now(tz=UTC)
    path.rename(path.with_name(f"{path.name}.bad-{now:%Y%m%dT%H%M%S}"))


def _lines(preferences: Preferences) -> Iterator[str]:
    """TOML, its one table last. What is None or empty is not written."""
    fields = msgspec.to_builtins(preferences)
    rules = fields.pop("rules")
    yield "# DecentLLM writes this file. It may hold an invitation to a pool: keep it to yourself."
    yield from _assignments(fields)
    yield "\n[rules]"
    yield from _assignments(rules)


def _assignments(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} = {_toml(value)}" for name, value in fields.items() if value not in (None, "", []))


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(_assignments(value)) + " }"
        case list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case str():
            # A JSON string is a TOML basic string, but for DEL and for what is outside of the first plane.
            return re.sub(r"\x7f", r"\\u007f", json.dumps(value, ensure_ascii=False))
    return json.dumps(value)
