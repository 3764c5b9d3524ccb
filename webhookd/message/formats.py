"""What an event looks like on the wire: the formats that are built in, and those that users write as templates.

The payload is copied byte for byte and never parsed: re-encoding turns `1.10` into `1.1` and long integers into floats.
Nothing here depends on the clock, so a retry sends the same bytes as the first attempt.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import quote

import orjson

from webhookd.metadata import member, members
from webhookd.model import Body, Event, Format, HeaderValue

# (event, payload) -> JSON text
_Value = Callable[[Event, bytes], bytes]


class _Placeholder(NamedTuple):
    name: str
    value: _Value


_JSON: Final = "application/json"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_HEADER_SAFE: Final = _PRINTABLE + " \t"
_CLOUDEVENTS_SAFE: Final = _PRINTABLE.translate({ord('"'): None, ord("%"): None})

# CloudEvents 1.0, type system: control characters, surrogates and noncharacters are no part of a String.
_NOT_CLOUDEVENTS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + 0xFFFE) + chr(plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000))
    + "]"
)


_WHOLE_METADATA: Final = re.compile(r"\$metadata\.([^\s$|]+(?:\|[^$]*)?)")
_PLACEHOLDER: Final = re.compile(r"\$(\$|\{[^{}]*\}|metadata\.\w+(?:[.-]\w+)*|[^\W\d]\w*)")
_KNOWN: Final = (
    "$type, $event_id, $tenant, $timestamp, $timestamp_seconds, $data, $metadata, $metadata.KEY, "
    "${metadata.KEY|DEFAULT}, $event; $$ is a dollar sign"
)


def standard(event: Event, payload: bytes, source: str) -> Body:
    """The body of Standard Webhooks: type, timestamp and data. Source: standardwebhooks.com, "Payload structure"."""
    return Body(_JSON, b'{"type":%b,"timestamp":%b,"data":%b}' % (orjson.dumps(event.type), _iso(event), payload))


def raw(event: Event, payload: bytes, source: str) -> Body:
    """The payload itself."""
    return Body(_JSON, payload)


def cloudevents(event: Event, payload: bytes, source: str) -> Body:
    """One JSON object with attributes and data. Source: CloudEvents 1.0, JSON format and HTTP binding 3.2."""
    attributes = orjson.dumps({**_attributes(event, source), "datacontenttype": _JSON})
    return Body("application/cloudevents+json; charset=utf-8", b'%b,"data":%b}' % (attributes[:-1], payload))


def cloudevents_binary(event: Event, payload: bytes, source: str) -> Body:
    """The payload itself, with the attributes in `ce-` headers. Source: CloudEvents 1.0, HTTP binding 3.1."""
    attributes = _attributes(event, source).items()
    return Body(_JSON, payload, tuple((f"ce-{name}", quote(text, _CLOUDEVENTS_SAFE)) for name, text in attributes))


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {"standard": standard, "raw": raw, "cloudevents": cloudevents, "cloudevents-binary": cloudevents_binary}
)


def compile_template(body: object) -> Format:
    """The format that a template of the configuration describes, with placeholders in its strings (not in its keys).

    A string that is one placeholder becomes that JSON value; `$data` and `$metadata`, and what is in it, come byte for
    byte as the application wrote them. In a longer string a placeholder becomes text: nothing where the value is null
    or absent. `$event` is all of these in one object.
    Raises ValueError, one sentence, for a placeholder or a value that a template cannot hold.
    """
    values: list[_Value] = []
    template = _compile(body, values).encode()
    fields = tuple(values)

    def render(event: Event, payload: bytes, source: str) -> Body:
        return Body(_JSON, template % tuple([field(event, payload) for field in fields]))

    return render


def compile_header_value(text: str) -> str | HeaderValue:
    """A header's value: the text itself, or what makes it of an event where the text has placeholders.

    What is made holds tabs and printable ASCII only; every other character is percent-encoded as UTF-8, so an event
    cannot inject a header. Raises ValueError, one sentence that does not quote the text: a header may be a secret.
    """
    try:
        parts = _parse(text)
    except ValueError:
        raise ValueError(f"a $ of the header value starts no placeholder; known are {_KNOWN}") from None
    literals = [part for part in parts if isinstance(part, str)]
    if len(literals) == len(parts):
        return "".join(literals)
    _refuse_whole(parts, "a header value")

    def render(event: Event, payload: bytes) -> str:
        made = "".join([part if isinstance(part, str) else _text(part.value(event, payload)) for part in parts])
        return quote(made, _HEADER_SAFE, errors="replace")

    return render


def _iso(event: Event) -> bytes:
    return orjson.dumps(_when(event), option=orjson.OPT_UTC_Z)


def _when(event: Event) -> datetime:
    when = event.occurred_at or event.created_at
    if when.tzinfo is UTC:
        return when
    if when.tzinfo is None:  # asyncpg gives `infinity` as a naive datetime
        return when.replace(tzinfo=UTC)
    return when.astimezone(UTC)


def _attributes(event: Event, source: str) -> dict[str, str]:
    """The context attributes of CloudEvents in their order; optional ones only where their value is a valid String."""
    attributes = {
        "specversion": "1.0",
        "id": event.event_id,
        "source": source,
        "type": event.type,
        "time": _iso(event)[1:-1].decode(),
    }
    subject = members(event.metadata).get("subject", b"") if event.metadata else b""
    optional = {
        "subject": _text(subject) if subject.startswith(b'"') else "",
        "partitionkey": event.ordering_key or "",  # CloudEvents extension "Partitioning"
        "tenant": event.tenant,
    }
    attributes.update({name: text for name, text in optional.items() if text and not _NOT_CLOUDEVENTS.search(text)})
    return attributes


def _text(value: bytes) -> str:
    """A JSON value as text: a string without its quotes and escapes, nothing for null, else the JSON text."""
    if value.startswith(b'"'):
        return str(json.loads(value))
    return "" if value == b"null" else value.decode()


def _inside(field: _Value) -> _Value:
    """`field`, as it stands inside a JSON string."""

    def value(event: Event, payload: bytes) -> bytes:
        text = field(event, payload)
        if text.startswith(b'"'):
            return text[1:-1]  # its escapes are right already
        return orjson.dumps(_text(text))[1:-1]

    return value


_VALUES: Final[Mapping[str, _Value]] = MappingProxyType(
    {
        "type": lambda event, payload: orjson.dumps(event.type),
        "event_id": lambda event, payload: orjson.dumps(event.event_id),
        "tenant": lambda event, payload: orjson.dumps(event.tenant),
        "timestamp": lambda event, payload: _iso(event),
        "timestamp_seconds": lambda event, payload: b"%d" % ((_when(event) - _EPOCH) // timedelta(seconds=1)),
        "data": lambda event, payload: payload,
        "metadata": lambda event, payload: event.metadata or b"null",
        "event": lambda event, payload: _whole(event, payload),
    }
)
_WHOLES: Final = ("data", "metadata", "event")


def _whole(event: Event, payload: bytes) -> bytes:
    """Everything that the application has said of it, in one object."""
    known = orjson.dumps({"id": event.event_id, "type": event.type, "tenant": event.tenant})[:-1]
    return b'%b,"timestamp":%b,"metadata":%b,"data":%b}' % (known, _iso(event), event.metadata or b"null", payload)


def _placeholder(name: str) -> _Placeholder:
    kind, _, rest = name.partition(".")
    path, bar, given = rest.partition("|")
    if kind == "metadata" and path:
        default = _default(given) if bar else b"null"

        def value(event: Event, payload: bytes) -> bytes:
            found = member(event.metadata, path) if event.metadata else None
            return default if found is None or found == b"null" else found

        return _Placeholder(name, value)
    if name not in _VALUES:
        raise ValueError(f"unknown placeholder ${name}; known are {_KNOWN}")
    return _Placeholder(name, _VALUES[name])


def _default(text: str) -> bytes:
    """The JSON that it is, or else a JSON string of it."""
    try:
        orjson.loads(text)
    except ValueError:
        return orjson.dumps(text)
    return text.strip().encode()


def _parse(text: str) -> list[str | _Placeholder]:
    if whole := _WHOLE_METADATA.fullmatch(text):
        return [_placeholder(f"metadata.{whole[1]}")]
    parts: list[str | _Placeholder] = []
    for index, piece in enumerate(_PLACEHOLDER.split(text)):  # literal, placeholder, literal, …
        if index % 2 and piece != "$":
            parts.append(_placeholder(piece.strip("{}")))
        elif index % 2 == 0 and "$" in piece:
            raise ValueError(f"a $ starts no placeholder in {text!r}; known are {_KNOWN}")
        elif piece:
            parts.append(piece)
    return parts


def _refuse_whole(parts: list[str | _Placeholder], place: str) -> None:
    for part in parts:
        if isinstance(part, _Placeholder) and part.name in _WHOLES:
            raise ValueError(f"${part.name} is a whole JSON value and cannot be part of {place}")


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("%", "%%")


def _compile(body: object, values: list[_Value]) -> str:
    """The JSON text of `body` with a `%b` for each placeholder, whose values are appended to `values` in that order."""
    match body:
        case str():
            return _compile_string(_parse(body), values)
        case dict():
            return (
                "{" + ",".join(f"{_literal(str(key))}:{_compile(value, values)}" for key, value in body.items()) + "}"
            )
        case list():
            return "[" + ",".join(_compile(value, values) for value in body) + "]"
        case float() if not isfinite(body):
            raise ValueError(f"a template cannot hold {body}, which JSON has no number for")
        case bool() | int() | float():
            return _literal(body)
    raise ValueError(f"a template holds tables, lists, strings, numbers and booleans, not a {type(body).__name__}")


def _compile_string(parts: list[str | _Placeholder], values: list[_Value]) -> str:
    if len(parts) == 1 and isinstance(parts[0], _Placeholder):
        values.append(parts[0].value)
        return "%b"
    _refuse_whole(parts, "a longer string")
    values.extend(_inside(part.value) for part in parts if isinstance(part, _Placeholder))
    return '"' + "".join(_literal(part)[1:-1] if isinstance(part, str) else "%b" for part in parts) + '"'
