"""The trace that an event belongs to, which its receiver goes on with. Source: W3C Trace Context, levels 1 and 2."""

import random
import re
from collections.abc import Mapping
from typing import Final

import orjson

from webhookd.exchange import Trace
from webhookd.metadata import members

PARENT, STATE = "traceparent", "tracestate"
_NAMED: Final = b'"traceparent"'
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_MOST: Final = 512  # characters that everybody has to pass on
_MEMBERS_MOST: Final = 32
_MEMBER: Final = re.compile(
    r"([a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_FLAGS: Final = 3  # those that are defined: sampled, and random


def trace_of(metadata: bytes | None) -> Trace | None:
    """The trace that the metadata of an event names, with a new span for one request; None where it names none.

    What is no valid `traceparent` counts as none, and a `tracestate` that cannot be passed on is left out.
    """
    if metadata is None or _NAMED not in metadata:  # which costs those without a trace next to nothing
        return None
    found = members(metadata)
    match = _PARENT.fullmatch(_text(found, PARENT).strip())
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return Trace(trace_id, parent_id, new_span_id(), int(flags, 16) & _FLAGS, _state(_text(found, STATE)))


def _state(text: str) -> str:
    """The same where it is a list of members, each of its own key; else nothing."""
    if len(text) > _STATE_MOST:
        return ""
    members_ = [part.strip(" \t") for part in text.split(",")]
    matches = [_MEMBER.fullmatch(part) for part in members_ if part]
    keys = {match[1] for match in matches if match is not None}
    return ",".join(filter(None, members_)) if len(keys) == len(matches) <= _MEMBERS_MOST else ""


def new_span_id() -> str:
    """One that nobody else has, in hex."""
    return f"{random.getrandbits(64) or 1:016x}"


def headers_of(trace: Trace) -> Mapping[str, str]:
    """What the receiver goes on with."""
    parent = {PARENT: f"00-{trace.trace_id}-{trace.span_id}-{trace.flags:02x}"}
    return parent | {STATE: trace.state} if trace.state else parent


def _text(found: Mapping[str, bytes], name: str) -> str:
    value = found.get(name, b"")
    try:
        text = orjson.loads(value) if value.startswith(b'"') else ""
    except ValueError:  # a lone surrogate
        return ""
    return str(text)
