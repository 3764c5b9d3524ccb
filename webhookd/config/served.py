"""What the values of [api] and [metrics] are checked for: where something listens, and who reaches it."""

import re
from contextlib import suppress
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from webhookd.config.checks import Kind
from webhookd.units import quoted

_SOCKET_PATH: Final = 5 + 107  # bytes that the name of a socket has room for, behind "unix:"
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]")
_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?")


def _listen(value: str) -> str:
    if value in ("", "systemd") or (value.startswith("unix:/") and len(value) <= _SOCKET_PATH):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not _HOST.fullmatch(host):
        raise ValueError('wants "127.0.0.1:8484", "unix:/run/webhookd/api.sock" or "systemd"')
    return value


def _watched(value: str) -> str:
    with suppress(ValueError):
        if value != "systemd":  # which hands one socket over, for the API
            return _listen(value)
    raise ValueError('wants "127.0.0.1:9464" or "unix:/run/webhookd/metrics.sock"')


def _base_path(value: str) -> str:
    if value and not _BASE_PATH.fullmatch(value):
        raise ValueError(f'{quoted(value)} is no path; write one such as "/webhooks", without a slash at the end')
    return value


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f'{quoted(value)} is no origin; write one such as "https://app.example.com"')
    return value


Listen = Annotated[str, AfterValidator(_listen), Kind("text", {"type": "string"})]
Watched = Annotated[str, AfterValidator(_watched), Kind("text", {"type": "string"})]
BasePath = Annotated[str, AfterValidator(_base_path), Kind("path", {"type": "string"})]
Origin = Annotated[str, AfterValidator(_origin), Kind("origin", {"type": "string", "format": "uri"})]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$|^\[[0-9a-fA-F:.]+\]$"), Kind("host", {"type": "string"})]
