"""What goes out for a delivery, and what comes back: a request and its answer."""

import ssl
from collections.abc import Mapping
from typing import NamedTuple

from webhookd.model import Grant


class Trace(NamedTuple):
    """Where a request stands in the trace that its event belongs to; ids are in hex, as W3C Trace Context has them."""

    trace_id: str
    parent_id: str  # the span of the application
    span_id: str  # that of the request, which the receiver is told
    flags: int
    state: str = ""


class Request(NamedTuple):
    """One HTTP POST, ready to send."""

    url: str
    headers: Mapping[str, str]
    content: bytes
    timeout: float
    tls: ssl.SSLContext | None = None  # None for the usual one
    grant: Grant | None = None  # it still wants a token
    whole: bool = False  # the body of the answer is wanted, up to 16 KiB, also that of a 2xx
    by_api: bool = False  # as its endpoint
    trace: Trace | None = None


class Response(NamedTuple):
    """A status line came. `body`: its first KiB, nothing of a 2xx, or what was wanted. `retry_after`: as it came."""

    status: int
    body: bytes = b""
    retry_after: str | None = None
    disable: bool = False  # it wants nothing more


class NoResponse(NamedTuple):
    """No status line came. `code` is one of sender.CODES; a fault of our own side (`ours`) costs no attempt.

    Nor does `auth_error`, as the receiver was not asked; but its endpoint does not work.
    """

    code: str
    ours: bool = False
