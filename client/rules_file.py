"""Rules for pausing in a TOML file, for nodes without a window. Names and values are those of a pool's [defaults].

mode = "when_free"              # or "always", "when_away"
run_on_battery = false
away_after_s = 180
other_gpu_percent = 20
min_free_gpu_memory = "1GiB"
max_temperature_c = 83
programs = ["blender", "obs"]
hours = "22:00-07:00"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from client.config import parse_size
from client.errors import RulesFileError
from protocol.pause import PauseRules

MAX_FILE_BYTES = 2**16
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")

_WANTED = {
    "mode": 'one of "always", "when_free" and "when_away"',
    "run_on_battery": "true or false",
    "away_after_s": "a number of seconds from 1 to 86400",
    "other_gpu_percent": "a whole number from 1 to 100",
    "min_free_gpu_memory": 'a size in quotes, such as "2GiB"',
    "max_temperature_c": "a whole number from 40 to 110",
    "programs": "a list of at most 64 program names in quotes, of 1 to 64 characters",
    "hours": 'a time of day such as "22:00-07:00"',
}
"""Every rule by its name in the file, and what it must be."""


def read_rules(path: Path) -> PauseRules:
    """The rules in the file. Raises RulesFileError with one sentence that names the rule."""
    document = _document(path)
    fields: dict[str, Any] = {}
    for name, value in document.items():
        if name not in _WANTED:
            raise RulesFileError(
                "bad_rules", f"{path}: there is no rule {name[:40]!r}; there are {', '.join(_WANTED)}."
            )
        try:
            fields |= _checked(name, value)
        except (ValueError, msgspec.ValidationError):
            raise RulesFileError("bad_rules", f"{path}: {name} must be {_WANTED[name]}.") from None
    return msgspec.convert(fields, PauseRules)


def _document(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise RulesFileError("bad_rules", f"{path} is longer than {MAX_FILE_BYTES} bytes.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise RulesFileError("bad_rules", f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise RulesFileError("bad_rules", f"{path} must be UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise RulesFileError("bad_rules", f"{path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise RulesFileError("bad_rules", f"{path} is nested too deeply.") from None


def _checked(name: str, value: object) -> dict[str, Any]:
    """The field of PauseRules that a rule becomes. Raises ValueError or ValidationError."""
    field, read = _READERS.get(name, (name, _as_it_is))
    fields = {field: read(value)}
    msgspec.convert(fields, PauseRules)
    return fields


def _as_it_is(value: object) -> object:
    return value


def _size(value: object) -> int:
    return parse_size(_text(value))


def _hours(value: object) -> dict[str, int]:
    start, dash, stop = _text(value).partition("-")
    if not dash:
        raise ValueError
    return {"start_minute": _minute(start.strip()), "stop_minute": _minute(stop.strip())}


def _minute(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError
    return 60 * int(match[1]) + int(match[2])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


_READERS: dict[str, tuple[str, Callable[[object], object]]] = {
    "min_free_gpu_memory": ("min_free_gpu_bytes", _size),
    "hours": ("hours", _hours),
}
"""Rules that are written otherwise than the wire has them, with the wire's field."""
