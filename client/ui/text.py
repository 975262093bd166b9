"""How sizes, times and names from elsewhere are written. Free of Qt."""

from __future__ import annotations

import unicodedata
from datetime import datetime

MAX_NAME_CHARACTERS = 64
MAX_SENTENCE_CHARACTERS = 400


def clean(text: str, max_characters: int) -> str:
    """One line without control, format (bidirectional overrides, zero-width) or unpaired characters, shortened."""
    shown = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in text[: 4 * max_characters])
    shown = " ".join(shown.split())
    return shown if len(shown) <= max_characters else shown[: max_characters - 1] + "…"


def format_bytes(num_bytes: int) -> str:
    """Decimal units, as file managers and network plans count."""
    size = float(max(0, num_bytes))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("bytes", "kB") or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def format_memory(num_bytes: int) -> str:
    """Binary, as a GPU's memory is sold: 24 GB are 24 GiB."""
    gibibytes = num_bytes / 2**30
    return f"{gibibytes:.0f} GB" if gibibytes >= 4 else f"{gibibytes:.1f} GB"


def format_moment(at_s: float, now_s: float) -> str:
    """A point in time (seconds since 1970) near now, as people say it: "18:30", "tomorrow 8:00", "Sat 8:00"."""
    moment, today = datetime.fromtimestamp(at_s), datetime.fromtimestamp(now_s).date()
    clock = f"{moment.hour}:{moment.minute:02}"
    match (moment.date() - today).days:
        case 0:
            return clock
        case 1:
            return f"tomorrow {clock}"
        case -1:
            return f"yesterday {clock}"
        case days if -7 < days < 7:
            return f"{_WEEKDAYS[moment.weekday()]} {clock}"
    return f"{moment:%Y-%m-%d} {clock}"


def format_point(at_s: float, now_s: float) -> str:
    """The same within a sentence: "at 18:30", "tomorrow at 8:00"."""
    day, _, clock = format_moment(at_s, now_s).rpartition(" ")
    return f"{day} at {clock}".strip()


def format_limit(num_bytes: int) -> str:
    """A size that somebody chose: "50 GB", not "50.0 GB"."""
    return format_bytes(num_bytes).replace(".0 ", " ")


def format_duration(seconds: float) -> str:
    """A short wait: "42 s", "3 min", "2 h 5 min". Never less than a second."""
    seconds = max(1, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
