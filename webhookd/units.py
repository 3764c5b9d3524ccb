"""Durations, sizes and rates as people write them: "20s", "5m", "1MiB", "50/s"."""

import re
from typing import Final

MILLISECOND: Final = 0.001
MINUTE: Final = 60.0
DAY: Final = 86400.0
KIB: Final = 1024
MIB: Final = 1024**2

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_SIZE = re.compile(r"([0-9]{1,15})(B|[kK]B|MB|GB|KiB|MiB|GiB)?")
_BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

_RATE = re.compile(r"([0-9]{1,9})/([smhd])")


def duration(value: object) -> float:
    """Seconds of "500ms", "20s", "5m", "6h" or "3d"; ValueError for anything else, a bare number included."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{quoted(value)} is no duration; write "20s", "5m" or "3d"')
    number, unit = int(match[1]), match[2]
    return number / 1000 if unit == "ms" else float(number * _SECONDS[unit])


def size(value: object) -> int:
    """Bytes of "512KiB", "1MiB", "10MB" or a whole number; ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{quoted(value)} is no size; write "512KiB", "1MiB" or a number of bytes')
    unit = match[2] or "B"
    return int(match[1]) * _BYTES["KB" if unit == "kB" else unit]


def rate(value: object) -> float:
    """Requests per second of "50/s", "600/m", "1000/h" or "5000/d"; ValueError for anything else."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{quoted(value)} is no rate; write "50/s", "600/m" or "1000/h"')
    return int(match[1]) / _SECONDS[match[2]]


def written_duration(seconds: float) -> str:
    """The shortest text that `duration` reads as these whole milliseconds."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds % (_SECONDS[unit] * 1000) == 0:
            return f"{milliseconds // (_SECONDS[unit] * 1000)}{unit}"
    return f"{milliseconds}ms"


def written_size(number: int) -> str:
    """The shortest text that `size` reads as these bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        if number % _BYTES[unit] == 0:
            return f"{number // _BYTES[unit]}{unit}"
    return f"{number}B"


def quoted(value: object) -> str:
    """The value as a configuration file would show it, on one line and at most about 80 characters long."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return f"{value!r:.80}"
    shown = value if len(value) <= 80 else value[:77] + "..."
    return '"' + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown) + '"'
