"""What the values of [api], [metrics] and [traces] are checked for: where something listens, and who reaches it."""

import re
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from webhookd.config.checks import Kind
from webhookd.units import quoted

_SOCKET_PATH: Final = 5 + 107  # bytes that the name of a socket has room for, behind "unix:"
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]")
_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_OTEL: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
# Without a user or a query, which would come into the log.
_COLLECTOR = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?(?:/[A-Za-z0-9._~%-]+)+/?")
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


def _collector(value: str) -> str:
    if not value:
        return value
    if not _COLLECTOR.fullmatch(value):
        raise ValueError('wants the URL of a collector with its path, such as "http://127.0.0.1:4318/v1/traces"')
    if not all(map(_is_there, _OTEL)):
        raise ValueError('wants what is not installed here: `pip install "webhookd[otel]"`')
    return value


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of what it is in
        return False


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
Collector = Annotated[str, AfterValidator(_collector), Kind("URL", {"type": "string", "format": "uri"})]
BasePath = Annotated[str, AfterValidator(_base_path), Kind("path", {"type": "string"})]
Origin = Annotated[str, AfterValidator(_origin), Kind("origin", {"type": "string", "format": "uri"})]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$|^\[[0-9a-fA-F:.]+\]$"), Kind("host", {"type": "string"})]
