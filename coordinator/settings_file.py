"""pool.toml: what the operator decided, read strictly. The command line wins over it, and it over the defaults.

Each setting is one line of a table: what it is called in the file, which field it becomes, what it must be, and how it
is read. A reader raises ValueError, and the sentence is made from the table.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.answer_times import AnswerTimes
from coordinator.config import (
    ConfigError,
    PlanSettings,
    PoolConfig,
    check_host,
    check_pool_name,
    checked_public_url,
)
from protocol.pause import Hours, PauseMode, PauseRules, PoolDefaults

FILE_NAME = "pool.toml"
MAX_FILE_BYTES = 2**18
MAX_MODELS = 256
MAX_PROGRAMS = 64
MAX_REPLICAS = 1000
MAX_NAME_CHARACTERS = 64
"""Of a model's name in the pool."""
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_SIZE = re.compile(r"(\d{1,16}(?:\.\d{1,6})?) ?([KMGT]i?B)")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_MAX_BYTES = 2**53
"""protocol.values.Bytes."""

Read = Callable[[Any, str], object]
"""From what TOML gave, and the setting's name for sentences, to the field's value. ValueError: not what it must be."""


@dataclass(frozen=True, slots=True)
class _Setting:
    field: str
    wants: str
    read: Read


def read_settings(data_dir: Path) -> dict[str, Any]:
    """The fields of PoolConfig that data_dir/pool.toml decides; none without a file. Raises ConfigError."""
    path = data_dir / FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}.") from None
    return parse_settings(data, data_dir)


def load_config(data_dir: Path, given: Mapping[str, Any]) -> PoolConfig:
    """The command line's settings (`given`, fields of PoolConfig) over the file's over the defaults.

    Raises ConfigError."""
    return PoolConfig(**{"data_dir": data_dir, **read_settings(data_dir), **given})


def parse_settings(data: bytes, data_dir: Path) -> dict[str, Any]:
    """The fields of PoolConfig that a file's content decides. Raises ConfigError, which names section and setting."""
    document = _document(data)
    for section, content in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{FILE_NAME}: {_unknown_section(section, content)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{FILE_NAME}: {section} must be a section: write [{section}] in a line of its own.")
    fields = _fields("pool", document.get("pool", {}))
    for name in ("tls_certificate", "tls_key"):
        if name in fields:
            fields[name] = data_dir / fields[name]
    if "defaults" in document:
        fields["defaults"] = _pool_defaults(_fields("defaults", document["defaults"]))
    if "plan" in document:
        fields["plan"] = PlanSettings(**_fields("plan", document["plan"]))
    if "answers" in document:
        fields["answers"] = AnswerTimes(**_fields("answers", document["answers"]))
    return fields


def _document(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{FILE_NAME} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{FILE_NAME} must be UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{FILE_NAME} is not valid TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{FILE_NAME} is nested too deeply.") from None


def _unknown_section(name: str, content: object) -> str:
    shown = name[:40]
    first, *others, last = (f"[{section}]" for section in SECTIONS)
    sections = f"{', '.join([first, *others])} and {last}"
    if not isinstance(content, dict):
        return f"{shown!r} stands before the first section; settings belong under {sections}."
    return f"there is no section [{shown}]; the sections are {sections}."


def _fields(section: str, content: dict[str, Any]) -> dict[str, Any]:
    table = SECTIONS[section]
    fields: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{FILE_NAME}: [{section}] {key[:40]}"
        if key not in table:
            raise ConfigError(f"{name} is no setting{_meant(key, table)}.")
        setting = table[key]
        try:
            fields[setting.field] = setting.read(value, name)
        except ValueError:
            raise ConfigError(f"{name} must be {setting.wants}.") from None
    return fields


def _meant(key: str, table: Mapping[str, _Setting]) -> str:
    close = difflib.get_close_matches(key[:40], table, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _pool_defaults(fields: dict[str, Any]) -> PoolDefaults:
    limits = {name: fields.pop(name) for name in ("max_memory_bytes", "max_layers", "max_disk_bytes") if name in fields}
    return PoolDefaults(rules=PauseRules(**fields), **limits)


# ---------------------------------------------------------------- readers


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError
    return value


def _true_or_false(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _whole(low: int, high: int) -> Read:
    def read(value: Any, name: str) -> int:
        if type(value) is not int or not low <= value <= high:  # bool is an int
            raise ValueError
        return value

    return read


def _seconds(low: float, high: float) -> Read:
    def read(value: Any, name: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError
        return float(value)

    return read


def _texts(most: int, longest: int) -> Read:
    def read(value: Any, name: str) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError
        if any(not _text(item, name) or len(item) > longest for item in value):
            raise ValueError
        return tuple(value)

    return read


def _size(value: Any, name: str) -> int:
    match = _SIZE.fullmatch(_text(value, name))
    if match is None:
        raise ValueError
    size = int(float(match[1]) * _UNITS[match[2]])
    if not 1 <= size <= _MAX_BYTES:
        raise ValueError
    return size


def _hours(value: Any, name: str) -> Hours:
    start, dash, stop = _text(value, name).partition("-")
    if not dash:
        raise ValueError
    return Hours(_minute(start.strip()), _minute(stop.strip()))


def _minute(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError
    return 60 * int(match[1]) + int(match[2])


def _mode(value: Any, name: str) -> PauseMode:
    return PauseMode(value)


def _replicas(value: Any, name: str) -> dict[str, int]:
    """A table of models; each is refused by its name."""
    if not isinstance(value, dict) or len(value) > MAX_MODELS:
        raise ValueError
    for model, number in value.items():
        shown = repr(model[:40])
        if not 1 <= len(model) <= MAX_NAME_CHARACTERS or not model.isprintable():
            raise ConfigError(f"{name}: {shown} is no model's name; a name has 1 to {MAX_NAME_CHARACTERS} characters.")
        if type(number) is not int or not 0 <= number <= MAX_REPLICAS:
            raise ConfigError(f"{name}: {shown} must be a whole number from 0 to {MAX_REPLICAS}.")
    return value


def _host(value: Any, name: str) -> str:
    check_host(_text(value, name), name)
    return str(value)


def _pool_name(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError
    check_pool_name(value, name)
    return value


def _public_url(value: Any, name: str) -> str:
    return checked_public_url(value, name) if _text(value, name) else ""


def _path(value: Any, name: str) -> Path:
    """Relative ones are beside pool.toml (parse_settings)."""
    if not _text(value, name):
        raise ValueError
    return Path(value).expanduser()


_A_SIZE = 'a size in quotes, such as "6GB" or "512MiB"'
SECTIONS: dict[str, dict[str, _Setting]] = {
    "pool": {
        "name": _Setting("pool_name", "text in quotes", _pool_name),
        "host": _Setting("host", "an address in quotes", _host),
        "port": _Setting("port", "a whole number from 0 to 65535", _whole(0, 65535)),
        "models": _Setting(
            "models", 'a list such as ["/srv/models/qwen", "owner/name"], of at most 256', _texts(MAX_MODELS, 4096)
        ),
        "open": _Setting("is_open", "true or false", _true_or_false),
        "public_url": _Setting("public_url", "an address in quotes", _public_url),
        "behind_proxy": _Setting("behind_proxy", "true or false", _true_or_false),
        "tls_certificate": _Setting("tls_certificate", "the path of a file, in quotes", _path),
        "tls_key": _Setting("tls_key", "the path of a file, in quotes", _path),
    },
    "plan": {
        "replicas": _Setting("replicas", 'a table such as { "qwen3-8b" = 2 }', _replicas),
        "keep_apart": _Setting("keeps_apart", "true or false", _true_or_false),
    },
    "answers": {
        "grace_s": _Setting("grace_s", "a number of seconds from 0 to 3600", _seconds(0, 3600)),
        "unread_s": _Setting("unread_s", "a number of seconds from 0 to 3600", _seconds(0, 3600)),
        "retention_s": _Setting("retention_s", "a number of seconds from 0 to 86400", _seconds(0, 86_400)),
    },
    "defaults": {
        "mode": _Setting("mode", 'one of "always", "when_free" and "when_away"', _mode),
        "run_on_battery": _Setting("run_on_battery", "true or false", _true_or_false),
        "away_after_s": _Setting("away_after_s", "a number of seconds from 1 to 86400", _seconds(1, 86_400)),
        "other_gpu_percent": _Setting("other_gpu_percent", "a whole number from 1 to 100", _whole(1, 100)),
        "min_free_gpu_memory": _Setting("min_free_gpu_bytes", _A_SIZE, _size),
        "max_temperature_c": _Setting("max_temperature_c", "a whole number from 40 to 110", _whole(40, 110)),
        "programs": _Setting(
            "programs", "a list of at most 64 program names in quotes, of 1 to 64 characters", _texts(MAX_PROGRAMS, 64)
        ),
        "hours": _Setting("hours", 'a time of day such as "20:00-07:30"', _hours),
        "max_memory": _Setting("max_memory_bytes", _A_SIZE, _size),
        "max_layers": _Setting("max_layers", "a whole number from 1 to 100000", _whole(1, 100_000)),
        "max_disk": _Setting("max_disk_bytes", _A_SIZE, _size),
    },
}
